"""The unit of work of a curation run: a source file, shot or clip with everything measured on it so far.

Also lists the source files of a run and hashes their content.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bya_core.errors import InputError
from training.data.files import list_files

if TYPE_CHECKING:
    from training.curation.store import Store

FPS = 25
"""Frame rate of the common timeline. Frame k of a record is shown at k / FPS seconds, whatever the source's rate."""

Level = Literal["source", "shot", "clip"]


def digest(*parts: Any) -> str:
    """Return a 32-digit hexadecimal hash of JSON-serializable values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Record:
    """One source file, shot or clip.

    Args:
        source: path of the file.
        name: path as listed, used in messages and in the index.
        level: kind of record.
        lineage: hash of the file content and of every stage applied so far, with version and settings.
        content: hash of the file content; empty before it was computed.
        start, end: frame range on the common timeline, end exclusive.
        data: JSON-serializable measurements.
        arrays: larger results by name: arrays, or files of the result store.
        stage: name of the stage that produced or rejected the record.
        rejected: reason of the rejection, or None.
        failed: rejected because of an error and not because of a measurement; retried by the next run.
    """

    source: str
    name: str
    level: Level = "source"
    lineage: str = ""
    content: str = ""
    start: int = 0
    end: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray | Path] = field(default_factory=dict)
    stage: str = ""
    rejected: str | None = None
    failed: bool = False

    @property
    def key(self) -> str:
        """Unique name within a dataset, built from the content hash and the frame range."""
        span = "" if self.level == "source" else f"-{self.start:07d}-{self.end:07d}"
        return f"{(self.content or self.lineage)[:16]}{span}"

    @property
    def num_frames(self) -> int:
        return self.end - self.start

    def reject(self, reason: str, **data: Any) -> Record:
        """Return a rejected copy."""
        return replace(self, rejected=reason, data={**self.data, **data})

    def with_data(self, **data: Any) -> Record:
        """Return a copy with additional measurements."""
        return replace(self, data={**self.data, **data})

    def with_arrays(self, **arrays: np.ndarray) -> Record:
        """Return a copy with additional arrays."""
        return replace(self, arrays={**self.arrays, **arrays})

    def child(self, level: Level, start: int, end: int, **data: Any) -> Record:
        """Return a record for a frame range of this one that inherits all measurements."""
        return replace(self, level=level, start=start, end=end, data={**self.data, **data})

    def array(self, name: str) -> np.ndarray:
        """Return an array by name, loading it from the store if needed."""
        value = self.arrays[name]
        if isinstance(value, np.ndarray):
            return value
        with np.load(value, allow_pickle=False) as file:
            return file["array"]


def list_sources(path: Path, ignore: Path | None = None) -> list[Record]:
    """List all files of a folder and its (linked) subfolders, or those named in a text file with one path per line.

    Hidden files and files below `ignore` (the output folder) are skipped. No file is opened.

    Raises:
        InputError: neither a folder nor a list, or it names no file.
    """
    if path.is_dir():
        files = list_files(path, ignored=(), broken_links=True)
        names = sorted(file.relative_to(path).as_posix() for file in files)
        root = path
    elif path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (UnicodeDecodeError, OSError) as error:
            problem = f"--input {path} cannot be read as text"
            raise InputError(problem, "a folder, or a text file with one path per line", "pass the folder") from error
        names = list(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.startswith("#")))
        root = path.parent
    else:
        raise InputError(f"--input {path} does not exist", "a folder or a list of files", "check the path")
    sources = [Record(source=str((root / name).absolute()), name=name) for name in names]
    if ignore is not None:
        sources = [record for record in sources if not Path(record.source).is_relative_to(ignore.absolute())]
    if not sources:
        raise InputError(f"--input {path} contains no files", "at least one video", "check the path")
    return sources


def hash_source(record: Record, store: Store) -> Record:
    """Return the record with the hash of its file, or rejected if the file cannot be read.

    The hash of a file with known path, size and modification time is read from the store.
    """
    path = Path(record.source)
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            return _reject_file(record, "not a regular file")
        if info.st_size == 0:
            return _reject_file(record, "empty file (0 bytes)")
        key = digest(str(path), info.st_size, info.st_mtime_ns)
        content = store.get_text("content", key)
        if content is None:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            store.put_text("content", key, content)
    except OSError as error:
        return _reject_file(record, f"the file cannot be read ({error.strerror or error})")
    return replace(record, content=content, lineage=content)


def _reject_file(record: Record, reason: str) -> Record:
    return replace(record.reject(reason), stage="probe", lineage=digest("unreadable", record.name))
