"""Fetching the files of a model: resumable, room checked before, sizes and hashes after; offline where all is here.

huggingface_hub speaks with the hub (or the mirror that HF_ENDPOINT names) and moves the bytes. What it does not do is
going on with a file after the process has ended; so the bytes go to `<file>.part` beside their place, and the next run
asks for the rest. A file gets its name only after its size and hash were found right.

What was fetched is recorded in `downloads.json` of the model's folder: repository, commit, size and SHA-256 of every
file. Repositories that are not pinned here are pinned by that record.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from bya_core.weights.download_record import RECORD, complete, read_record, sha256_of, write_record
from bya_core.weights.hub import Hub
from bya_core.weights.known_files import Part

log = logging.getLogger(__name__)

UNFINISHED = ".part"
SPARE = 200_000_000  # bytes of disk that stay free

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """One file to fetch.

    Args:
        part: it belongs to.
        path: in its repository.
        target: where it goes.
        size: bytes, as the hub tells.
        sha256: as this project or the hub knows it; None = the hub keeps it as a small text file.
        blob: git's SHA-1 of it, for those.
        familiar: whether this project or an earlier download knew the hash.
    """

    part: Part
    path: str
    target: Path
    size: int
    sha256: str | None
    blob: str | None
    familiar: bool

    @property
    def unfinished(self) -> Path:
        """Where its bytes are collected."""
        return self.target.with_name(self.target.name + UNFINISHED)

    @property
    def left(self) -> int:
        """Bytes that have to come yet."""
        if self.target.is_file():
            return 0
        return max(0, self.size - (self.unfinished.stat().st_size if self.unfinished.is_file() else 0))


Watch = Callable[[int, int], None]
"""Called while bytes arrive, with those that are here and all that are wanted; may raise Cancelled."""


@dataclass
class _Watched:
    """An open file that tells of every write."""

    file: Any
    wrote: Callable[[int], None]

    def write(self, data: bytes) -> int:
        self.wrote(len(data))
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def download(
    parts: Sequence[Part], root: Path, *, hub: Hub | None = None, tell: Tell = log.info, watch: Watch | None = None
) -> list[Path]:
    """Fetch what is missing of `parts` into `root`; returns the files that were fetched.

    Where all is here, nothing is asked of anybody.

    Args:
        tell: gets a sentence per part.

    Raises:
        InputError: a repository without the files, too little room, a file of the wrong size or hash.
        DownloadStopped: network trouble; what has arrived is kept.
    """
    hub = hub or Hub()
    repair_nested(root)
    todo = [part for part in parts if not complete(part, root)]
    for part in parts:
        if part not in todo:
            tell(f"{part.name}: all here")
    if not todo:
        return []
    plans = {part.name: _plan(part, root, hub) for part in todo}
    _room(root, sum(file.left for _, files in plans.values() for file in files))
    total = sum(file.size for _, files in plans.values() for file in files)
    done = total - sum(file.left for _, files in plans.values() for file in files)
    fetched: list[Path] = []

    def wrote(count: int) -> None:
        nonlocal done
        done += count
        if watch is not None:
            watch(done, total)

    for part in todo:
        commit, files = plans[part.name]
        size = sum(file.size for file in files)
        tell(f"{part.name}: {size / 1e9:.2f} GB from {part.repository} at {commit[:10]}; {part.licence}")
        ours = set(read_record(root).get(part.name, {"files": {}})["files"])
        sums = {}
        for file in files:
            if not _keep(file, ours):
                _fetch(file, commit, hub, wrote)
                fetched.append(file.target)
            sums[file.path] = {"size": file.size, "sha256": file.sha256 or sha256_of(file.target)}
        strange = [file.path for file in files if not file.familiar]
        if strange:
            tell(
                f"{part.name}: this project knows no hash of {_some(strange)}; they are what the hub says they are. "
                f"Their hashes are recorded in {root / RECORD} and held against them from now on"
            )
        write_record(root, part, commit, sums)
    return fetched


def repair_nested(root: Path) -> None:
    """antelopev2.zip unpacks one folder too deep (antelopev2/antelopev2/*.onnx): the models go where they belong."""
    outer = root / "face_encoder" / "models" / "antelopev2"
    inner = outer / "antelopev2"
    if not inner.is_dir():
        return
    for model in sorted(inner.glob("*.onnx")):
        if not (outer / model.name).exists():
            model.rename(outer / model.name)
            log.warning("moved %s out of its nested folder", model.name)
    if not any(inner.iterdir()):
        inner.rmdir()


def _plan(part: Part, root: Path, hub: Hub) -> tuple[str, list[Wanted]]:
    """Commit and files of a part, as the hub lists them."""
    recorded = read_record(root).get(part.name)
    if recorded is not None and recorded["repository"] != part.repository:
        recorded = None
    pinned = part.revision or (recorded["revision"] if recorded is not None else None)
    commit, entries = hub.look(part.repository, pinned)
    known = {file.path: file for file in part.known}
    earlier = recorded["files"] if recorded is not None and recorded["revision"] == commit else {}
    files = []
    for name in _choose(part, commit, entries):
        entry = entries[name]
        large = entry.lfs
        told = None if large is None else str(large["sha256"] if isinstance(large, Mapping) else large.sha256)
        size = int(entry.size if entry.size is not None else large.size)
        expected = known[name].sha256 if name in known else earlier.get(name, {}).get("sha256")
        if expected is not None and told not in (None, expected):
            came = f"{hub.endpoint} offers {name} of {part.repository} with the SHA-256 {told}"
            raise InputError(came, expected, "do not use that mirror, or look whether the project has a new version")
        if name in known and known[name].size not in (None, size):
            came = f"{hub.endpoint} offers {name} of {part.repository} with {size} bytes"
            raise InputError(came, f"{known[name].size}", "do not use that mirror")
        target = root / part.folder / name
        files.append(Wanted(part, name, target, size, expected or told, entry.blob_id, expected is not None))
    return commit, files


def _choose(part: Part, commit: str, entries: Mapping[str, Any]) -> list[str]:
    """Names of the files that are wanted."""
    chosen: dict[str, None] = {}
    for options in part.wanted:
        found: list[str] = []
        for option in options:
            found = [n for n in sorted(entries) if n.count("/") == option.count("/") and fnmatch(n, option)]
            if found:
                break
        if not found:
            came = f"the repository {part.repository} at {commit[:10]} holds no {' or '.join(options)}"
            raise InputError(came, f"the {part.purpose}", f"look at {part.page}; the files may have been moved")
        chosen |= dict.fromkeys(found)
    return list(chosen)


def _room(root: Path, needed: int) -> None:
    """Make the folder; raise InputError where the disk has not enough room."""
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if needed + SPARE > free:
        came = f"{free / 1e9:.1f} GB free for {root}"
        do = "make room, choose another disk with --models-dir, or fetch fewer --parts"
        raise InputError(came, f"{(needed + SPARE) / 1e9:.1f} GB for what is still to come", do)


def _keep(file: Wanted, ours: set[str]) -> bool:
    """Whether the file is there already as it should be; an outdated one that we fetched is replaced."""
    if not file.target.exists():
        return False
    if file.target.is_file() and file.target.stat().st_size == file.size and _right(file, file.target):
        return True
    if file.path not in ours:
        came = f"there is another file at {file.target}"
        raise InputError(came, f"{file.path} of {file.part.repository}", "move it away, then run this again")
    return False


def _fetch(file: Wanted, commit: str, hub: Hub, wrote: Callable[[int], None]) -> None:
    """Bring a file; it gets its name once it was found right."""
    file.target.parent.mkdir(parents=True, exist_ok=True)
    have = file.unfinished.stat().st_size if file.unfinished.is_file() else 0
    if have > file.size:
        file.unfinished.unlink()
        have = 0
    with file.unfinished.open("ab") as opened:
        try:
            hub.fetch(file.part.repository, commit, file.path, _Watched(opened, wrote), have, file.size)
        except OSError as error:
            if not str(error).startswith("Consistency check failed"):
                raise  # the disk, or the network
    size = file.unfinished.stat().st_size
    if size == file.size and _right(file, file.unfinished):
        os.replace(file.unfinished, file.target)
        return
    file.unfinished.unlink()
    what, expected = f"{size} bytes", f"{file.size}"
    if size == file.size:
        what, expected = "another content", f"the hash {file.sha256 or file.blob}"
    came = f"{file.path} of {file.part.repository} arrived with {what}"
    raise InputError(came, expected, "run this again; if it comes again, the source at hand is not to be trusted")


def _right(file: Wanted, path: Path) -> bool:
    """Whether the content is the wanted one."""
    if file.sha256 is not None:
        return sha256_of(path) == file.sha256
    if file.blob is None:
        return True
    content = path.read_bytes()  # a small text file
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == file.blob


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more files" if len(names) > 3 else "")
