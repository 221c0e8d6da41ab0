"""Files that a command reads, recorded so that it never replaces one of them.

Files are compared by device and inode, so that links and other spellings of a path do not matter.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_FILES = 20_000  # recorded in one input folder

_Identity = tuple[int, int]
_inputs: dict[_Identity, Path] | None = None
_written: set[_Identity] = set()


@contextmanager
def protect_inputs() -> Iterator[None]:
    """Within this context, files that were passed to `note_input` cannot be replaced."""
    global _inputs, _written
    previous, _inputs, _written = (_inputs, _written), {}, set()
    try:
        yield
    finally:
        _inputs, _written = previous


def note_input(path: str | os.PathLike[str], ignore: Iterable[Path] = ()) -> None:
    """Record a file, or all files in a folder, as an input of the current command. Missing files are ignored.

    Args:
        path: File or folder.
        ignore: Subfolders to leave out, such as an output folder inside an input folder.
    """
    if _inputs is None:
        return
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return
    if not stat.S_ISDIR(status.st_mode):
        if identity(status) not in _written:
            _inputs[identity(status)] = Path(path)
        return
    ignored = {os.path.realpath(each) for each in ignore} - {os.path.realpath(path)}
    for count, file in enumerate(_files(path, ignored)):
        if count == MAX_FILES:
            break
        note_input(file)


def _files(path: str | os.PathLike[str], ignored: set[str]) -> Iterator[str]:
    for folder, folders, names in os.walk(path):
        folders[:] = [each for each in folders if os.path.realpath(os.path.join(folder, each)) not in ignored]
        yield from (each for name in names if not os.path.isdir(each := os.path.join(folder, name)))


def note_written(path: Path) -> None:
    """Record a file as written by this process: it may be replaced again, even if it was read in between."""
    _written.add(identity(os.stat(path)))


def has_inputs() -> bool:
    """Whether inputs are recorded."""
    return bool(_inputs)


def noted_input(status: os.stat_result) -> Path | None:
    """The input with this identity, or None."""
    return (_inputs or {}).get(identity(status))


def identity(status: os.stat_result) -> _Identity:
    """Device and inode of a file."""
    return status.st_dev, status.st_ino
