"""Checks of output paths: every file and folder that is written goes through `resolve_output` or `check_folder`.

An output never replaces an input (see `bya_core.io.inputs`) and is never part of the installed package.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from bya_core.errors import InputError
from bya_core.io.files import usable_path
from bya_core.io.inputs import has_inputs, identity, noted_input
from bya_core.io.workspace import Workspace

OWN_FOLDERS = ("bya_core", "nodes", "training", "web", "workflows", "locales")
"""Folders of this project that no command may write to."""


def resolve_output(path: str | os.PathLike[str], what: str = "the output") -> Path:
    """The file that writing to `path` creates or replaces; links are followed.

    Args:
        path: Output file.
        what: The output in error messages, such as "the video".

    Raises:
        InputError: The path is an input of this command, part of the installed package, a folder, a device or a pipe,
            or not a valid path.
    """
    target = _real(path, what)
    problem = f"{what} was to be written to {path}"
    try:
        status = target.lstat()
    except FileNotFoundError:
        status = None
    except OSError as error:
        raise InputError(f"{problem}, but that fails ({error.strerror})", "another path", "correct it") from error
    if status is not None:
        if stat.S_ISLNK(status.st_mode):
            raise InputError(f"{problem}, a link to itself", "a file", "choose another name")
        if stat.S_ISDIR(status.st_mode):
            raise InputError(problem, "a file, not a folder", "name a file in it")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(problem, "a regular file, not a device, pipe or socket", "choose another name")
        if (source := noted_input(status)) is not None:
            problem = f"{problem}, which is an input{'' if source == Path(path) else f' ({source})'}"
            raise InputError(problem, "a file that is not read", "choose another name")
    check_outside_package(path)
    return target


def check_output(path: str | os.PathLike[str], suffixes: tuple[str, ...], what: str) -> Path:
    """Return the path after checking that a file can be written to it. Call it before a long operation.

    A missing folder is created later, with the file; its own parent has to exist.

    Args:
        path: Output file.
        suffixes: Allowed suffixes, such as (".mp4",).
        what: The output in error messages, such as "the video".

    Raises:
        InputError: Unsupported suffix, a folder that is read-only or cannot be created, or see `resolve_output`.
    """
    path = usable_path(path, what)
    if path.suffix.lower() not in suffixes:
        expected = "a name that ends in " + " or ".join(suffixes)
        raise InputError(f"{what} was to be written to {path}", expected, "change the ending")
    target = resolve_output(path, what)
    _probe(target.parent, path, what, target.name)
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(f"{what} was to be written to {path}", "a file that may be replaced", "choose another name")
    return path


def check_folder(path: str | os.PathLike[str], what: str) -> Path:
    """Return the path after checking that files can be written to this folder. It is not created yet.

    Raises:
        InputError: It is a file, part of the installed package, read-only, or cannot be created.
    """
    target = _real(path, what)
    if target.exists() and not target.is_dir():
        raise InputError(f"{what} was to be written to {path}", "a folder, not a file", "choose another name")
    check_outside_package(path)
    _probe(target, path, what)
    return Path(path)


def check_replaceable(folder: Path) -> None:
    """Raise InputError if a folder that is replaced as a whole contains an input of this command."""
    for each in folder.rglob("*") if has_inputs() and folder.is_dir() else ():
        if each.is_file() and (source := noted_input(each.stat())) is not None:
            problem = f"the folder {folder} would be replaced, but it contains an input ({source})"
            raise InputError(problem, "a folder that is not read", "choose another output")


def check_distinct(paths: Iterable[Path]) -> None:
    """Raise InputError if two outputs are the same file, also through links or on a case-insensitive disk."""
    seen: dict[object, Path] = {}
    for path in paths:
        target = _real(path, "the output")
        keys: list[object] = [unicodedata.normalize("NFC", str(target)).casefold()]
        if target.exists():
            keys.append(identity(target.stat()))
        for key in keys:
            if key in seen:
                problem = f"{seen[key]} and {path} are the same file"
                problem = f"{path} was given twice" if seen[key] == path else problem
                raise InputError(problem, "a separate file for each output", "rename one of them")
        seen |= dict.fromkeys(keys, path)


def missing_folders(folder: Path, single: bool = False) -> list[Path]:
    """Folders to create for a folder, outermost first.

    Below the working directory all missing folders are created, elsewhere (or if `single`) only the last one: more of
    them missing indicates a mistyped path.

    Raises:
        InputError: More folders are missing, or the folder would be created in the root of the file system.
    """
    folder = Path(os.path.realpath(folder))
    missing = [each for each in (folder, *folder.parents) if not each.exists()][::-1]
    if not missing:
        return []
    existing, here = missing[0].parent, Path.cwd()
    relative = here in folder.parents and here.parent != here and not single
    if (len(missing) > 1 and not relative) or existing.parent == existing:
        raise InputError(f"the folder {missing[-1]} does not exist", "an existing folder", f"create {missing[0]} first")
    if missing[0].name.startswith("~"):
        raise InputError(f"the folder {missing[0].name} does not exist", "an existing folder", "write it in full")
    return missing


def make_folder(path: str | os.PathLike[str], what: str = "the output") -> list[Path]:
    """Create a folder for outputs if it is missing; returns the folders that were created, outermost first.

    Raises:
        InputError: See `check_folder` and `missing_folders`.
    """
    target = _real(path, what)
    if target.exists() and not target.is_dir():
        raise InputError(f"{what} was to be written to {path}", "a folder, not a file", "choose another name")
    check_outside_package(path)
    created = missing_folders(target)
    for each in created:
        try:
            each.mkdir(exist_ok=True)
        except OSError as error:
            problem = f"the folder {each} cannot be created ({error.strerror})"
            raise InputError(problem, "a folder that can be written to", "choose another one") from error
    return created


@cache
def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def _real(path: str | os.PathLike[str], what: str) -> Path:
    return Path(os.path.realpath(usable_path(path, what)))


def _probe(folder: Path, path: str | os.PathLike[str], what: str, name: str = "") -> None:
    """Create and remove a file: permission bits are unreliable on network drives and for root."""
    problem = f"{what} was to be written to {path}"
    try:
        missing = missing_folders(folder, single=bool(name))
    except InputError as error:
        raise InputError(f"{problem}, but {error.problem}", error.expected, error.hint) from None
    existing = missing[0].parent if missing else folder
    try:
        with Workspace(existing) as workspace:
            (workspace / (name or "probe")).touch()
    except OSError as error:
        problem = f"{problem}, but that fails ({error.strerror})"
        raise InputError(problem, "a folder that can be written to", "choose another one") from error


def check_outside_package(path: str | os.PathLike[str]) -> Path:
    """Return the path of an output after checking that it is not inside the installed code or its weights.

    Raises:
        InputError: It is, also through a link or another spelling of the path.
    """
    root = _root()
    target = _real(path, "the output")
    for name in OWN_FOLDERS:
        if target.is_relative_to(root / name):
            problem = f"the output {path} is inside the folder {name} of the program"
            raise InputError(problem, "a folder of your own", "choose another path, such as runs/NAME")
    return Path(path)
