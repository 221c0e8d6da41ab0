"""Telling a person how the work goes, and being told to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bya_core.errors import Cancelled
from bya_core.sampling import StepInfo


@dataclass(frozen=True)
class Progress:
    """Where the work stands.

    Args:
        doing: what is being done, in words.
        step, total: how far that has come.
        info: while denoising, the preview latents and current masks.
    """

    doing: str
    step: int
    total: int
    info: StepInfo | None = None


Watcher = Callable[[Progress], object]
"""Called as the work goes on; returning False or raising `Cancelled` stops it."""


class Work:
    """Takes the time of each part of a job and tells the watcher."""

    def __init__(self, watch: Watcher | None = None) -> None:
        self.watch, self.seconds = watch, dict[str, float]()

    def tell(self, progress: Progress) -> None:
        """Raises Cancelled where the watcher asks to stop."""
        if self.watch is not None and self.watch(progress) is False:
            raise Cancelled(f"stopped while {progress.doing}")

    @contextmanager
    def part(self, doing: str, total: int = 1) -> Iterator[Callable[[StepInfo], None]]:
        """A part of the job; what it yields is a callback for `denoise`. Parts of the same name add up."""
        self.tell(Progress(doing, 0, total))
        start = time.perf_counter()
        yield lambda info: self.tell(Progress(doing, info.step, info.total, info))
        self.seconds[doing] = round(self.seconds.get(doing, 0.0) + time.perf_counter() - start, 3)
        if total == 1:
            self.tell(Progress(doing, 1, 1))
