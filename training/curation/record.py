"""What walks through the stages: one piece of footage, everything measured on it so far, and why it was dropped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

FPS = 25
"""Frames a second on the time line of all records, whatever the source has: frame k shows second k / FPS."""

Level = Literal["source", "shot", "clip"]


def digest(*parts: Any) -> str:
    """32 hex digits that stand for these values (as JSON has them)."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Record:
    """One source, shot or clip.

    Args:
        source: path of the file.
        name: of the file as it was listed, for people.
        level: what it is.
        trail: stands for the file's content and for every stage it went through, with version and settings.
        content: hash of the file's content; empty before it was read.
        start, end: frames on the common time line, end excluded.
        data: everything measured, as JSON can hold it.
        arrays: larger results by name: arrays, or files of the store that hold them.
        stage: the stage that made or rejected it.
        rejected: why it goes no further; None = it does.
        broken: it was dropped by an error of the program or of a process, not by a measurement; tried again next time.
    """

    source: str
    name: str
    level: Level = "source"
    trail: str = ""
    content: str = ""
    start: int = 0
    end: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray | Path] = field(default_factory=dict)
    stage: str = ""
    rejected: str | None = None
    broken: bool = False

    @property
    def key(self) -> str:
        """A name that is unique in a data set: content and frames."""
        span = "" if self.level == "source" else f"-{self.start:07d}-{self.end:07d}"
        return f"{(self.content or self.trail)[:16]}{span}"

    @property
    def frames(self) -> int:
        """How many."""
        return self.end - self.start

    def reject(self, reason: str, **data: Any) -> Record:
        """The same, dropped for this reason."""
        return replace(self, rejected=reason, data={**self.data, **data})

    def with_data(self, **data: Any) -> Record:
        """The same with more measured."""
        return replace(self, data={**self.data, **data})

    def with_arrays(self, **arrays: np.ndarray) -> Record:
        """The same with more arrays."""
        return replace(self, arrays={**self.arrays, **arrays})

    def part(self, level: Level, start: int, end: int, **data: Any) -> Record:
        """A piece of it, with all that is known."""
        return replace(self, level=level, start=start, end=end, data={**self.data, **data})

    def array(self, name: str) -> np.ndarray:
        """The array of that name, read from the store where it lies there."""
        value = self.arrays[name]
        if isinstance(value, np.ndarray):
            return value
        with np.load(value, allow_pickle=False) as file:
            return file["array"]
