"""Which files there are, and what their content is called."""

from __future__ import annotations

import hashlib
import stat
from dataclasses import replace
from pathlib import Path

from bya_core.errors import InputError
from training.curation.record import Record, digest
from training.curation.store import Store

_PIECE = 1 << 22


def list_sources(given: Path, ignore: Path | None = None) -> list[Record]:
    """All files of a folder and its subfolders, or those a text file names one a line, in the order of their names.

    Hidden files and what lies in `ignore` (the output) are left out. Nothing is opened.

    Raises:
        InputError: neither a folder nor a list, or nothing in it.
    """
    if given.is_dir():
        hidden = (p.relative_to(given).as_posix() for p in given.rglob("*") if not (p.is_dir() and not p.is_symlink()))
        names = sorted(name for name in hidden if not any(part.startswith(".") for part in name.split("/")))
        paths = [given / name for name in names]
    elif given.is_file():
        try:
            lines = given.read_text(encoding="utf-8").splitlines()
        except (UnicodeDecodeError, OSError) as error:
            came = f"--input {given}, which cannot be read as text"
            raise InputError(came, "a folder, or a list of files, one a line", "give the folder") from error
        names = list(dict.fromkeys(line.strip() for line in lines if line.strip() and not line.startswith("#")))
        paths = [given.parent / name for name in names]
    else:
        raise InputError(f"--input {given}, which does not exist", "a folder or a list of files", "check the path")
    if ignore is not None:
        kept = [(n, p) for n, p in zip(names, paths, strict=True) if not p.absolute().is_relative_to(ignore.absolute())]
        names, paths = [n for n, _ in kept], [p for _, p in kept]
    if not paths:
        raise InputError(f"--input {given} with no files", "at least one video", "check the path")
    return [Record(source=str(path.absolute()), name=name) for name, path in zip(names, paths, strict=True)]


def fingerprinted(record: Record, store: Store) -> Record:
    """The record with the hash of its file's content; rejected where there is nothing that can be read.

    A file of known path, size and time of change is not read again.
    """
    path = Path(record.source)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return _unreadable(record, "it is no ordinary file")
        if found.st_size == 0:
            return _unreadable(record, "it is empty (0 bytes)")
        known = digest(str(path), found.st_size, found.st_mtime_ns)
        content = store.note("content", known)
        if content is None:
            content = _hash(path)
            store.keep_note("content", known, content)
    except OSError as error:
        return _unreadable(record, f"it cannot be read ({error.strerror or error})")
    return replace(record, content=content, trail=content)


def _unreadable(record: Record, reason: str) -> Record:
    return replace(record.reject(reason), stage="probe", trail=digest("nothing", record.name))


def _hash(path: Path) -> str:
    total = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            total.update(piece)
    return total.hexdigest()
