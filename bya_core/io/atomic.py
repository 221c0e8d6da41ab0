"""Atomic output: a run that fails or is interrupted leaves no partial files."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from bya_core.errors import InputError
from bya_core.io.files import usable_path


def check_output(path: str | os.PathLike[str], suffixes: tuple[str, ...], what: str) -> Path:
    """Return the path after checking that a file can be written to it. Call it before a long operation.

    Args:
        path: output file.
        suffixes: allowed suffixes, such as (".mp4",).
        what: the output in error messages, such as "the video".

    Raises:
        InputError: unsupported suffix, missing or read-only folder, or the path is a folder.
    """
    path = usable_path(path, what)
    if path.suffix.lower() not in suffixes:
        expected = "a name that ends in " + " or ".join(suffixes)
        raise InputError(f"{what} was to be written to {path}", expected, "change the ending")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{what} was to be written to {path}", f"an existing folder {folder}", "create it first")
    if path.is_dir():
        raise InputError(f"{what} was to be written to {path}", "a file, not a folder", "name a file in it")
    try:  # permission bits are unreliable on network drives and for root
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = f"{what} was to be written to {path}, but that fails ({error.strerror})"
        raise InputError(problem, "a folder that can be written to", "choose another one") from error
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"{what} was to be written to {path}", "a file that may be replaced", "choose another name")
    return path


OWN_FOLDERS = ("bya_core", "nodes", "training", "web", "workflows", "locales")
"""Folders of this project that no run may write to."""


def check_outside_package(path: str | os.PathLike[str]) -> Path:
    """Return the path of an output after checking that it is not inside the installed code or its weights.

    Raises:
        InputError: It is, also through a link or another spelling of the path.
    """
    root = Path(__file__).resolve().parents[2]
    target = Path(path).expanduser().resolve()
    for name in OWN_FOLDERS:
        if target.is_relative_to(root / name):
            problem = f"the output {path} is inside the folder {name} of the program"
            raise InputError(problem, "a folder of your own", "choose another path, such as runs/NAME")
    return Path(path)


_PENDING: set[Path] = set()
"""Temporary paths of open contexts. A path in here, or below a folder in here, is written directly: contexts nest."""


class AtomicFiles:
    """Context manager for several output files that appear together, or not at all.

    `at(path)` returns a temporary path in the same folder. On a normal exit all files are renamed to their final
    names; on an exception, including cancellation, they are deleted.
    """

    def __init__(self) -> None:
        self._pending: dict[Path, Path] = {}

    def at(self, path: str | os.PathLike[str]) -> Path:
        """Temporary path for `path`, with the same suffix because writers choose the format by it."""
        path = Path(path)
        if _is_pending(path):
            return path
        if path not in self._pending:
            temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.part{path.suffix}")
            self._pending[path] = temporary
            _PENDING.add(temporary.absolute())
        return self._pending[path]

    def __enter__(self) -> AtomicFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for path, temporary in self._pending.items():
                    _sync(temporary)
                    os.replace(temporary, path)
        finally:
            for temporary in self._pending.values():
                temporary.unlink(missing_ok=True)
                _PENDING.discard(temporary.absolute())


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` on a normal exit and is deleted on an exception."""
    with AtomicFiles() as files:
        yield files.at(path)


@contextmanager
def atomic_folder(
    path: str | os.PathLike[str], main: bool = True, wait: Callable[[], object] = lambda: None
) -> Iterator[Path]:
    """Yield a new folder next to `path` that replaces `path` on a normal exit and is deleted on an exception.

    Args:
        path: final path of the folder; an existing folder is replaced.
        main: in a distributed job, whether this process creates and renames the folder. All processes enter.
        wait: in a distributed job, a barrier of all processes.
    """
    path = Path(path)
    fresh, old = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    try:
        if main:
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        wait()
        _PENDING.add(fresh.absolute())
        yield fresh
        wait()
        if main:
            for each in (*fresh.rglob("*"), fresh):
                _sync(each)
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                path.rename(old)
            fresh.rename(path)
            _sync(path.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        _PENDING.discard(fresh.absolute())
        if main:
            shutil.rmtree(fresh, ignore_errors=True)


def _is_pending(path: Path) -> bool:
    path = path.absolute()
    return any(each in _PENDING for each in (path, *path.parents))


def _sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
