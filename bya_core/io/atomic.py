"""Atomic output: a run that fails, is interrupted or is killed leaves no partial files.

Files are written to a hidden folder next to their final place (see `bya_core.io.workspace`) and renamed when all of
them are complete and on disk.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError

from bya_core.errors import InputError, WriteError
from bya_core.io.inputs import note_written
from bya_core.io.interrupts import deferred_interrupts
from bya_core.io.outputs import check_replaceable, make_folder, resolve_output
from bya_core.io.workspace import PREVIOUS, Workspace, in_workspace

MAX_SUFFIX = 32  # characters of a suffix that temporary names keep
_NO_SPACE = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
_NO_SPACE[errno.EFBIG] = "the limit of the file size is reached"


class AtomicFiles:
    """Context manager for several output files that appear together, or not at all.

    `at(path)` returns a temporary path. On a normal exit all files are renamed to their final names; on an exception,
    including cancellation, they are deleted. Links are followed: the file that they point to is replaced.

    Raises:
        WriteError: On exit, if the disk is full or the files cannot be written.
    """

    def __init__(self) -> None:
        self._pending: dict[Path, Path] = {}
        self._workspaces: dict[Path, Workspace] = {}
        self._created: list[Path] = []

    def at(self, path: str | os.PathLike[str]) -> Path:
        """Temporary path for `path`, with the same suffix because writers choose the format by it.

        A path in the folder of another `AtomicFiles` or `atomic_folder` is returned as it is.

        Raises:
            InputError: `path` cannot be written, see `bya_core.io.outputs.resolve_output`.
        """
        if in_workspace(Path(path)):
            return Path(path)
        target = resolve_output(path)
        if target not in self._pending:
            suffix = target.suffix if len(target.suffix) <= MAX_SUFFIX else ""
            self._pending[target] = self._workspace(target.parent) / f"{len(self._pending)}{suffix}"
        return self._pending[target]

    def add(self, finished: Path, path: Path) -> None:
        """Rename a finished file of the same file system to `path` as well."""
        target = resolve_output(path)
        self._workspace(target.parent)
        self._pending[target] = finished

    def _workspace(self, folder: Path) -> Path:
        if folder not in self._workspaces:
            self._created += make_folder(folder)
            self._workspaces[folder] = _open_workspace(folder)
        return self._workspaces[folder].path

    def __enter__(self) -> AtomicFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._commit()
            elif self._workspaces and (failure := self.failure(error)):
                raise failure from error
        except OSError as failed:
            raise self.failure(failed) or failed from failed
        finally:
            self.discard()

    def discard(self) -> None:
        """Delete the temporary files."""
        with deferred_interrupts():
            for workspace in self._workspaces.values():
                workspace.close()
            for folder in reversed(self._created):
                with suppress(OSError):  # not empty
                    folder.rmdir()

    def _commit(self) -> None:
        for temporary in self._pending.values():
            _sync(temporary)
        for target in self._pending:
            resolve_output(target)  # it may have become an input or a folder meanwhile
        with deferred_interrupts():
            for target, temporary in self._pending.items():
                os.replace(temporary, target)
                note_written(target)
        for folder in self._workspaces:
            with suppress(OSError):
                _sync(folder)

    def failure(self, error: BaseException) -> WriteError | None:
        """The error for a full disk or another failure of writing; None for other errors."""
        names = " and ".join(target.name for target in self._pending) or "files"
        return _write_error(error, names, list(self._workspaces.values()))


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` on a normal exit and is deleted on an exception.

    Raises:
        InputError: As `AtomicFiles`.
    """
    with AtomicFiles() as files:
        yield files.at(path)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically. Lone surrogates, as in undecodable file names, are written as escapes."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", errors="backslashreplace"))


def write_json(path: str | os.PathLike[str], data: Any, indent: int = 2, default: Callable[..., Any] = str) -> None:
    """Write a JSON file atomically; `default` converts values of other types."""
    write_text(path, json.dumps(data, indent=indent, ensure_ascii=False, default=default) + "\n")


@contextmanager
def atomic_contents(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder whose files replace those of the same names in `folder` on a normal exit.

    Other files in `folder` stay. On an exception nothing is changed.

    Raises:
        InputError: As `AtomicFiles`.
    """
    folder = Path(os.path.realpath(folder))
    if in_workspace(folder):
        folder.mkdir(exist_ok=True)
        yield folder
        return
    with AtomicFiles() as files:
        contents = files._workspace(folder) / "contents"
        contents.mkdir()
        yield contents
        for each in sorted(contents.rglob("*")):
            if each.is_file():
                files.add(each, folder / each.relative_to(contents))


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new folder that replaces `path` on a normal exit and is deleted on an exception.

    Args:
        path: Final path of the folder; an existing folder is replaced.

    Raises:
        InputError: The disk is full, the folder cannot be written, or it contains an input.
    """
    target = Path(os.path.realpath(path))
    created: list[Path] = []
    workspace: Workspace | None = None
    try:
        if in_workspace(target):
            target.mkdir()
            yield target
            return
        check_replaceable(target)
        created = make_folder(target.parent)
        workspace = _open_workspace(target.parent)
        fresh = workspace.path / "new"
        fresh.mkdir()
        yield fresh
        for each in (*fresh.rglob("*"), fresh):
            _sync(each)
        with deferred_interrupts():
            if target.exists():
                (workspace.path / PREVIOUS).mkdir()
                target.rename(workspace.path / PREVIOUS / target.name)
            fresh.rename(target)
        with suppress(OSError):
            _sync(target.parent)
    except (OSError, SafetensorError, RuntimeError) as error:
        if failure := _write_error(error, target.name, [workspace] if workspace else []):
            raise failure from error
        raise
    finally:
        with deferred_interrupts():
            if workspace is not None:
                workspace.close()
            for each in reversed(created):
                with suppress(OSError):  # not empty
                    each.rmdir()


def format_size(size: float) -> str:
    """A number of bytes with a decimal unit, such as "3.2 MB"."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} bytes"


def check_disk_space(folder: Path, size: int, what: str, hint: str) -> None:
    """Raise InputError if fewer than `size` bytes are free where a folder is, or will be created.

    Args:
        folder: The folder.
        size: Bytes that are needed.
        what: What needs them, such as "the windows of the video".
        hint: What to do.
    """
    free = free_space(folder)
    if size > free:
        raise InputError(f"{format_size(free)} free in {folder}", f"{format_size(size)} for {what}", hint)


def free_space(path: Path) -> int:
    """Free bytes on the disk of a path, which may not exist yet."""
    existing = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    return shutil.disk_usage(existing).free


def _open_workspace(folder: Path) -> Workspace:
    try:
        return Workspace(folder)
    except OSError as error:
        problem = f"files in {folder} cannot be written ({error.strerror})"
        raise InputError(problem, "a folder that can be written to", "choose another one") from error


def _write_error(error: BaseException, names: str, workspaces: list[Workspace]) -> WriteError | None:
    """The error for a failure of writing, with the sizes that were written and are free; None for other errors."""
    if not workspaces:
        return None
    number = _error_number(error)
    own = isinstance(error, OSError) and any(
        str(name).startswith(str(each.path)) for each in workspaces for name in (error.filename, error.filename2)
    )
    if number not in _NO_SPACE and not own:
        return None
    folder = workspaces[0].path.parent
    reason = _NO_SPACE.get(number or 0) or os.strerror(number or errno.EIO)
    files = [each for workspace in workspaces for each in workspace.path.rglob("*") if each.is_file()]
    written = sum(each.stat().st_size for each in files)
    with suppress(OSError):
        reason += f"; {format_size(written)} written, {format_size(free_space(folder))} free"
    problem = f"{names} cannot be written to {folder} ({reason})"
    hint = "free some space, or choose another folder"
    return WriteError(problem, f"more than {format_size(written)} of space for it", hint)


def _error_number(error: BaseException) -> int | None:
    """The errno of a failure of writing, also of libraries that raise their own errors."""
    if isinstance(error, OSError):
        return error.errno
    text = str(error)
    if isinstance(error, SafetensorError):
        return next((number for number in _NO_SPACE if f"os error {number})" in text), None)
    if isinstance(error, RuntimeError) and ("PytorchStreamWriter failed" in text or "unexpected pos" in text):
        return errno.ENOSPC  # torch.save does not say why
    return None


_UMASK = os.umask(0)
os.umask(_UMASK)


def _sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        if os.name != "nt" and path.is_file():  # some writers create files that only their owner can read
            os.fchmod(handle, os.fstat(handle).st_mode & 0o777 | (0o666 & ~_UMASK))
        os.fsync(handle)
    finally:
        os.close(handle)
