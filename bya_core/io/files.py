"""Paths and text files given by a user: scene files, timelines, recipes."""

from __future__ import annotations

import codecs
import os
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from bya_core.io.inputs import note_input
from bya_core.validation import parse_json

MAX_BYTES = 16 * 2**20  # of a text file
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def usable_path(path: str | os.PathLike[str], what: str) -> Path:
    """Return a path that the operating system accepts, whether it exists or not.

    Args:
        path: Path of a file or folder.
        what: Names it in messages, such as "the scene".

    Raises:
        InputError: An empty or too long path, one with characters that no file name has, or one that cannot be
            accessed.
    """
    text = os.fspath(path)
    try:
        os.stat(text)
    except (FileNotFoundError, NotADirectoryError):
        if not text:
            raise InputError(f"the path of {what} is empty", "a path", "name a file") from None
    except OSError as error:  # too long, a cycle of links, no permission
        problem = f"{what} {text} cannot be accessed ({error.strerror})"
        raise InputError(problem, "a path that can be accessed", "correct it") from None
    except ValueError:  # NUL or lone surrogates
        problem = f"{what} {text!r} contains a character that no file name has"
        raise InputError(problem, "a path without it", "remove it") from None
    return Path(path)


def file_label(what: str, path: str | os.PathLike[str]) -> str:
    """A file in a message: "the audio a.wav", "the speech of Ada (a.wav)"."""
    return f"{what} ({path})" if " of " in what else f"{what} {path}"


def expand_user(path: str | os.PathLike[str], what: str) -> Path:
    """Return a usable path with `~` replaced by the home directory, see `usable_path`.

    Raises:
        InputError: As in `usable_path`, or there is no such user or home directory.
    """
    try:
        return usable_path(Path(path).expanduser(), what)
    except RuntimeError:
        problem = f"{what} {os.fspath(path)} is in a home directory that does not exist"
        raise InputError(problem, "a path without ~", "write the whole path") from None


def existing_file(path: str | os.PathLike[str], what: str) -> Path:
    """Return the path of an existing file, recorded as an input (see `bya_core.io.inputs`).

    Args:
        path: Path of the file.
        what: Names the file in messages, such as "the scene".

    Raises:
        InputError: A path that does not exist or is not a file.
    """
    path = usable_path(path, what)
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "does not exist"
        hint = "check the path; paths in a scene file are relative to it"
        raise InputError(f"{what} {path} {state}", "a file that can be read", hint)
    note_input(path)
    return path


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """Read a text file in UTF-8, with or without byte order mark.

    Args:
        path: Path of the file.
        what: Names the file in messages.

    Raises:
        InputError: A file that is missing, unreadable, larger than 16 MB, or in another encoding.
    """
    path = existing_file(path, what)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read ({error.strerror})", "a readable file", "check it") from None
    if len(content) > MAX_BYTES:
        problem = f"{what} {path} has more than {MAX_BYTES // 2**20} MB"
        raise InputError(problem, "a smaller text file", "check whether it is the right file")
    if content.startswith(UTF_16):
        raise InputError(f"{what} {path} is UTF-16 text", "UTF-8 text", "save it as UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"{what} {path} is not UTF-8 text (byte {error.start})"
        raise InputError(problem, "a text file", "save it as UTF-8") from None
    if "\0" in text:
        raise InputError(f"{what} {path} is a binary file", "a text file", "check whether it is the right file")
    return text


def read_json_object(path: str | os.PathLike[str], what: str) -> dict[str, Any]:
    """Read a JSON file that holds one object, see `read_json`."""
    data = read_json(path, what)
    if not isinstance(data, dict):
        raise InputError(f"{what} {path} holds no object", "a JSON object", "check whether it is the right file")
    return data


def read_json(path: str | os.PathLike[str], what: str) -> Any:
    """Read a JSON file, see `read_text` and `bya_core.validation.parse_json`."""
    text = read_text(path, what)
    name = Path(path).name
    if not text.strip():
        raise InputError(f"{what} {name} is empty", "a JSON file", "check whether it is the right file")
    return parse_json(text, name)
