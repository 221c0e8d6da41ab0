"""Hidden folders for unfinished files, deleted by their process or, if it was killed, by the next run."""

from __future__ import annotations

import atexit
import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from bya_core.io.interrupts import deferred_interrupts
from bya_core.io.locks import LOCK, is_same_file, lock_file

PREVIOUS = "previous"
"""Subfolder with folders that are being replaced; they are restored if the replacement did not happen."""
FOREIGN_AGE = 24 * 3600.0  # seconds until the leftovers of another host are removed

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_NAME = re.compile(r"\.bya-([0-9a-f]{6})-[0-9a-f]{8}\.part")
_open: dict[Path, Workspace] = {}
_swept: set[Path] = set()


class Workspace:
    """Context manager for a new hidden folder in `parent`. On the same file system, renaming a file is atomic.

    A lock in the folder shows that its process is alive. The folder is deleted at the end, on exceptions, and when the
    interpreter exits.

    Args:
        parent: An existing folder. Leftovers of killed processes in it are deleted first.

    Raises:
        OSError: The folder cannot be created.
    """

    def __init__(self, parent: Path) -> None:
        remove_leftovers(parent)
        self._process = os.getpid()
        with deferred_interrupts():
            while True:
                self.path = parent / f".bya-{_HOST}-{uuid.uuid4().hex[:8]}.part"
                self.path.mkdir()
                _open[self.path] = self
                try:
                    self._lock = lock_file(self.path / LOCK, wait=True)
                except FileNotFoundError:  # taken for a leftover by another process
                    del _open[self.path]
                    continue
                except OSError:  # no locks on this file system: nobody can delete it by mistake
                    self._lock = None
                if self._lock is None or is_same_file(self._lock, self.path / LOCK):
                    break
                self._lock.close()
                del _open[self.path]

    def close(self) -> None:
        """Delete the folder."""
        with deferred_interrupts():
            if _open.pop(self.path, None) is None or self._process != os.getpid():
                return
            _remove(self.path)
            if self._lock is not None:
                self._lock.close()
            shutil.rmtree(self.path, ignore_errors=True)  # Windows cannot delete an open file

    def __enter__(self) -> Path:
        return self.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder of the system, like `tempfile.TemporaryDirectory`, but also removed after a kill."""
    with Workspace(Path(tempfile.gettempdir())) as workspace:
        folder = workspace / "files"
        folder.mkdir()
        yield folder


def in_workspace(path: Path) -> bool:
    """Whether a path is in an open workspace of this process: files there are written directly."""
    path = Path(os.path.abspath(path))
    return any(each in _open for each in path.parents)


def remove_leftovers(parent: Path) -> None:
    """Delete the workspaces of killed processes in a folder; once per folder and process."""
    parent = Path(os.path.realpath(parent))
    if parent in _swept:
        return
    _swept.add(parent)
    with suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            name = _NAME.fullmatch(entry.name)
            if name is None or not entry.is_dir(follow_symlinks=False):
                continue
            # locks may not be shared with other hosts
            if name[1] == _HOST or time.time() - entry.stat().st_mtime > FOREIGN_AGE:
                _remove_leftover(Path(entry.path))


def _remove_leftover(path: Path) -> None:
    """Delete a workspace unless its process is alive or locks are not supported."""
    with suppress(OSError):
        lock = lock_file(path / LOCK)
        if lock is not None:
            with lock:
                _remove(path)
            shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    """Delete a workspace; folders whose replacement did not happen are restored."""
    with suppress(OSError):
        for previous in (path / PREVIOUS).iterdir():
            if not (path.parent / previous.name).exists():
                previous.rename(path.parent / previous.name)
    shutil.rmtree(path, ignore_errors=True)


@atexit.register
def _remove_all() -> None:
    for workspace in list(_open.values()):
        workspace.close()
