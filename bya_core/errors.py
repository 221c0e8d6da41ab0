"""Exceptions shared by all packages."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

MAX_WORD, MAX_PART, MAX_EXPECTED = 200, 400, 1000  # characters shown of a word, and of the parts of a message
DIRECTION = set("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
ALLOCATION = re.compile(r"(?:tried|unable) to allocate\s+([\d.]+)\s*([KMGT]i?B|bytes)?", re.IGNORECASE)


class InputError(ValueError):
    """Invalid user input, reported as one sentence.

    The command line prints it and exits with code 2; nodes show it as it is. Control characters are escaped, and long
    values are cut.

    Args:
        problem: What is wrong.
        expected: What is valid.
        hint: How to fix it.
    """

    def __init__(self, problem: str, expected: str, hint: str) -> None:
        self.problem, self.expected, self.hint = one_line(problem), one_line(expected, MAX_EXPECTED), one_line(hint)
        super().__init__(f"{self.problem}; expected {self.expected}; {self.hint}.")

    def __reduce__(self) -> Any:
        return type(self), (self.problem, self.expected, self.hint)


class OutOfMemory(InputError):
    """The memory of the machine or of the GPU is exhausted."""


class WriteError(InputError):
    """An output cannot be written, for example because the disk is full; the input is valid."""


class Cancelled(RuntimeError):
    """Raised when the caller cancels a run. No partial output is left."""


class Paused(Cancelled):
    """Raised when a run is cancelled and can be resumed. The message names the folder of the finished parts."""


def one_line(text: str, length: int = MAX_PART) -> str:
    """Make a text fit for one line of a message.

    Args:
        text: Any text.
        length: Maximum number of characters.

    Returns:
        The text without line breaks; control characters, lone surrogates and marks of writing direction are escaped;
        words of more than 200 characters and the whole text are cut.
    """
    if len(text) > 10 * MAX_EXPECTED:
        text = f"{text[: 5 * MAX_EXPECTED]}...{text[-5 * MAX_EXPECTED :]}"
    escaped = "".join(map(_escaped, text))
    words = [_cut(word, MAX_WORD) for word in escaped.split(" ")]
    return _cut(" ".join(words), length)


def _escaped(character: str) -> str:
    if character in DIRECTION or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp"):
        return character.encode("unicode_escape").decode("ascii")
    return character


def _cut(text: str, length: int) -> str:
    """The start and the end of a text."""
    tail = length // 3
    return text if len(text) <= length else f"{text[: length - tail - 3]}...{text[len(text) - tail :]}"


def out_of_memory(error: BaseException, reduce: str) -> OutOfMemory | None:
    """Describe an exhausted memory of the machine or of the GPU as one sentence.

    Args:
        error: Any exception.
        reduce: What needs less memory, such as "lower the size of the video".

    Returns:
        The error to raise instead; None if `error` has another cause.
    """
    text = str(error)
    lowered = text.casefold()
    known = (
        "out of memory", "defaultcpuallocator", "not enough memory", "alloc_failed", "cannot allocate memory",
        "storage size calculation overflowed", "failed to map segment",
    )  # fmt: skip
    if not isinstance(error, MemoryError) and not (
        isinstance(error, (RuntimeError, OSError, ImportError)) and any(each in lowered for each in known)
    ):
        return None
    gpu = any(each in lowered for each in ("cuda", "hip out", "mps backend", "cublas", "gpu"))
    found = ALLOCATION.search(text)
    asked = f" when {_amount(*found.groups())} more were requested" if found else ""
    problem = f"the memory of the {'GPU' if gpu else 'machine'} is exhausted{asked}"
    return OutOfMemory(problem, "more free memory", reduce)


def _amount(number: str, unit: str | None) -> str:
    units = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
    binary = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
    letter = (unit or "")[:1].lower()
    scale = (binary if "i" in (unit or "").lower() else units).get(letter, 1)
    size = float(number.rstrip(".") or 0) * scale
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
