"""File locks that the operating system releases when their process ends, however it ends."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from bya_core.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_BYTE = 1 << 30  # the byte that Windows locks, behind the content of the file

_held: dict[Path, int] = {}


def lock_file(path: Path, wait: bool = False) -> IO[bytes] | None:
    """Lock a file, which is created if it is missing, until the handle is closed or the process ends.

    Args:
        path: The file.
        wait: Wait while another process holds the lock.

    Returns:
        The open file; None if another process holds the lock.

    Raises:
        OSError: The file cannot be opened, or its file system has no locks.
    """
    handle = path.open("a+b")
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        else:
            import msvcrt

            handle.seek(_BYTE)
            msvcrt.locking(handle.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except (BlockingIOError, PermissionError):
        handle.close()
        return None
    except BaseException:
        handle.close()
        raise
    return handle


@contextmanager
def folder_lock(folder: Path, what: str, hint: str) -> Iterator[None]:
    """Hold the lock of an existing folder, so that two runs do not write to it at the same time.

    A process may enter several times. The lock is a file in the folder that is deleted at the end.

    Args:
        folder: The folder.
        what: Its content in the message, such as "the windows".
        hint: What to do if another run holds it.

    Raises:
        InputError: Another process holds the lock; the message names it.
    """
    folder = Path(os.path.realpath(folder))
    if folder in _held:
        _held[folder] += 1
        try:
            yield
        finally:
            _held[folder] -= 1
        return
    path = folder / LOCK
    handle = _acquire(path, f"{what} in {folder}", hint)
    if handle is None:  # no locks on this file system
        yield
        return
    _held[folder] = 1
    try:
        owner = {"process": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        handle.truncate(0)
        with suppress(OSError):  # a full disk: the lock holds, its owner is not named
            os.write(handle.fileno(), json.dumps(owner).encode())
        yield
    finally:
        del _held[folder]
        with suppress(OSError):
            path.unlink()
        handle.close()


def _acquire(path: Path, what: str, hint: str) -> IO[bytes] | None:
    """The locked file, or None if the file system has no locks. Raises InputError if another process holds it."""
    while True:
        try:
            handle = lock_file(path)
        except OSError:
            return None
        if handle is None:
            raise InputError(f"{what} are in use by {_owner(path)}", "one run at a time", hint)
        if is_same_file(handle, path):
            return handle
        handle.close()  # deleted by its last owner in between


def is_same_file(handle: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the file of this path."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except OSError:
        return False


def _owner(path: Path) -> str:
    try:
        owner: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return f"process {owner['process']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
