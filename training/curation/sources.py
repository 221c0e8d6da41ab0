"""Listing of source files and hashing of their content."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import replace
from pathlib import Path

from bya_core.errors import InputError
from training.curation.record import Record, digest
from training.curation.store import Store
from training.data.files import list_files


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
