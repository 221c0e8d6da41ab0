"""Progress reports, timing and cancellation, the same for every long operation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from bya_core.errors import Cancelled


@dataclass(frozen=True)
class Progress:
    """State of a running operation.

    Args:
        stage: name of the current stage, such as "Denoising".
        step, total: completed and total steps (or bytes) of the stage.
        info: while denoising, a `bya_core.sampling.StepInfo` with preview latents and current masks.
    """

    stage: str
    step: int
    total: int
    info: Any = None


ProgressCallback = Callable[[Progress], object]
"""Called during an operation. Returning False or raising `Cancelled` stops the operation."""


class ProgressTracker:
    """Reports the stages of an operation to a callback and measures their duration.

    Args:
        callback: receives every report; None disables reporting.
        prefix: prepended to the stage name of each report.
        seconds: mapping from stage name to duration in seconds, to add to; None starts an empty one.
    """

    def __init__(
        self, callback: ProgressCallback | None = None, prefix: str = "", seconds: dict[str, float] | None = None
    ) -> None:
        self.callback, self.prefix = callback, prefix
        self.seconds: dict[str, float] = {} if seconds is None else seconds

    def report(self, progress: Progress) -> None:
        """Forward a report to the callback. Raises `Cancelled` if the callback returns False."""
        if self.callback is None:
            return
        progress = replace(progress, stage=self.prefix + progress.stage)
        if self.callback(progress) is False:
            raise Cancelled(f"stopped during the stage {progress.stage!r}")

    @contextmanager
    def stage(self, name: str, total: int = 1) -> Iterator[ProgressCallback]:
        """Measure a stage. Durations of stages with the same name are summed.

        Args:
            name: of the stage.
            total: number of its steps.

        Yields:
            A callback for the steps of the stage; `denoise` takes it.
        """
        self.report(Progress(name, 0, total))
        start = time.perf_counter()
        yield lambda progress: self.report(replace(progress, stage=name))
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)
        if total == 1:
            self.report(Progress(name, 1, 1))
