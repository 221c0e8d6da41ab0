"""The unit of work of a curation run: a source file, shot or clip with everything measured on it so far."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

FPS = 25
"""Frame rate of the common timeline. Frame k of a record is shown at k / FPS seconds, whatever the source's rate."""

Level = Literal["source", "shot", "clip"]


def digest(*parts: Any) -> str:
    """Return a 32-digit hexadecimal hash of JSON-serializable values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Record:
    """One source file, shot or clip.

    Args:
        source: path of the file.
        name: path as listed, used in messages and in the index.
        level: kind of record.
        lineage: hash of the file content and of every stage applied so far, with version and settings.
        content: hash of the file content; empty before it was computed.
        start, end: frame range on the common timeline, end exclusive.
        data: JSON-serializable measurements.
        arrays: larger results by name: arrays, or files of the result store.
        stage: name of the stage that produced or rejected the record.
        rejected: reason of the rejection, or None.
        failed: rejected because of an error and not because of a measurement; retried by the next run.
    """

    source: str
    name: str
    level: Level = "source"
    lineage: str = ""
    content: str = ""
    start: int = 0
    end: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray | Path] = field(default_factory=dict)
    stage: str = ""
    rejected: str | None = None
    failed: bool = False

    @property
    def key(self) -> str:
        """Unique name within a dataset, built from the content hash and the frame range."""
        span = "" if self.level == "source" else f"-{self.start:07d}-{self.end:07d}"
        return f"{(self.content or self.lineage)[:16]}{span}"

    @property
    def num_frames(self) -> int:
        return self.end - self.start

    def reject(self, reason: str, **data: Any) -> Record:
        """Return a rejected copy."""
        return replace(self, rejected=reason, data={**self.data, **data})

    def with_data(self, **data: Any) -> Record:
        """Return a copy with additional measurements."""
        return replace(self, data={**self.data, **data})

    def with_arrays(self, **arrays: np.ndarray) -> Record:
        """Return a copy with additional arrays."""
        return replace(self, arrays={**self.arrays, **arrays})

    def child(self, level: Level, start: int, end: int, **data: Any) -> Record:
        """Return a record for a frame range of this one that inherits all measurements."""
        return replace(self, level=level, start=start, end=end, data={**self.data, **data})

    def array(self, name: str) -> np.ndarray:
        """Return an array by name, loading it from the store if needed."""
        value = self.arrays[name]
        if isinstance(value, np.ndarray):
            return value
        with np.load(value, allow_pickle=False) as file:
            return file["array"]
