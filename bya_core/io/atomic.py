"""Writing files all or nothing: a run that fails or is stopped leaves no half-written output behind."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType

from bya_core.errors import InputError


def check_output(path: str | os.PathLike[str], suffixes: tuple[str, ...], what: str) -> Path:
    """The path, once it is sure that a file can be written there; call before long work starts.

    Args:
        path: the file to be written.
        suffixes: endings that are possible, such as (".mp4",).
        what: names the output in messages, such as "the video".

    Raises:
        InputError: wrong ending, folder missing or not writable, or the path is a folder.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        expected = "a name that ends in " + " or ".join(suffixes)
        raise InputError(f"{what} was to be written to {path}", expected, "change the ending")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{what} was to be written to {path}", f"an existing folder {folder}", "create it first")
    if path.is_dir():
        raise InputError(f"{what} was to be written to {path}", "a file, not a folder", "name a file in it")
    try:  # the only honest test: permissions say little on network drives, or to root
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        came = f"{what} was to be written to {path}, but that fails ({error.strerror})"
        raise InputError(came, "a folder that can be written to", "choose another one") from error
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"{what} was to be written to {path}", "a file that may be replaced", "choose another name")
    return path


class AtomicFiles:
    """Several outputs that appear together at the end of a `with` block, or not at all.

    `at(path)` gives a temporary name in the same folder to write to. Leaving the block without an error
    renames each to its real name; leaving it with one (cancelling counts) deletes them.
    """

    def __init__(self) -> None:
        self._pending: dict[Path, Path] = {}

    def at(self, path: str | os.PathLike[str]) -> Path:
        """Temporary path that will become `path`; it keeps the ending, as writers choose formats by it."""
        path = Path(path)
        if path not in self._pending:
            self._pending[path] = path.with_name(f".{path.stem}.part{os.getpid()}{path.suffix}")
        return self._pending[path]

    def __enter__(self) -> AtomicFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for path, temporary in self._pending.items():
                    os.replace(temporary, path)
        finally:
            for temporary in self._pending.values():
                temporary.unlink(missing_ok=True)
