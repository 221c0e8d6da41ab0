"""Progress reports, timing, warnings and cancellation, the same for every long operation."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from bya_core.errors import Cancelled

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """State of a running operation.

    Args:
        stage: name of the current stage, such as "Denoising".
        step, total: completed and total steps (or bytes) of the stage.
        left: estimated seconds until the video is complete, of a video in several windows; None = unknown.
        overall: fraction of that video that is complete; None = a single window.
        info: while denoising, a `bya_core.sampling.StepInfo` with preview latents and current masks.
    """

    stage: str
    step: int
    total: int
    info: Any = None
    left: float | None = None
    overall: float | None = None


ProgressCallback = Callable[[Progress], object]
"""Called during an operation. Returning False or raising `Cancelled` stops the operation."""


class ProgressTracker:
    """Reports the stages of an operation to a callback, measures their duration and collects their warnings.

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
        self.notices: list[str] = []  # warnings logged during the stages, such as fallbacks

    def report(self, progress: Progress) -> None:
        """Forward a report to the callback. Raises `Cancelled` if the callback returns False."""
        if self.callback is None:
            return
        progress = replace(progress, stage=self.prefix + progress.stage)
        if self.callback(progress) is False:
            raise Cancelled(f"stopped during the stage {progress.stage!r}")

    def within(self, part: str) -> ProgressTracker:
        """A tracker of a part of the operation: its reports name the part, its durations are added to these."""
        return ProgressTracker(self.report, f"{part}: ", self.seconds)

    @contextmanager
    def stage(self, name: str, total: int = 1) -> Iterator[ProgressCallback]:
        """Measure a stage and collect its warnings. Durations of stages with the same name are summed.

        Args:
            name: of the stage.
            total: number of its steps.

        Yields:
            A callback for the steps of the stage; `denoise` takes it.
        """
        self.report(Progress(name, 0, total))
        start = time.perf_counter()
        with _logged_warnings(self.notices):
            yield lambda progress: self.report(replace(progress, stage=name))
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)
        if total == 1:
            self.report(Progress(name, 1, 1))


@contextmanager
def _logged_warnings(messages: list[str]) -> Iterator[None]:
    """Append the warnings that this thread logs to `messages`, each once."""

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread and (message := record.getMessage()) not in messages:
                messages.append(message)

    thread, logger, collector = threading.get_ident(), logging.getLogger("bya_core"), Collector(logging.WARNING)
    logger.addHandler(collector)
    try:
        yield
    finally:
        logger.removeHandler(collector)


class WindowTracker(ProgressTracker):
    """Tracker of one window of a long video: reports also the time left until all windows are complete.

    Args:
        whole: tracker of the video.
        number: of the window, from 1.
        windows: number of windows of the video.
        clock: shared by all windows of a run.
    """

    class Clock:
        """Time per window of a run.

        Args:
            windows: number of windows that the run generates.
        """

        def __init__(self, windows: int) -> None:
            self.windows, self.finished, self.start = windows, 0, time.perf_counter()

        def left(self, share: float) -> float | None:
            """Estimated seconds left, after the finished windows and a `share` of the next; None at the start."""
            done = self.finished + share
            if done < MIN_SHARE:
                return None
            return (time.perf_counter() - self.start) * max(self.windows - done, 0.0) / done

    def __init__(self, whole: ProgressTracker, number: int, windows: int, clock: Clock) -> None:
        super().__init__(whole.callback, seconds=whole.seconds)
        self.number, self.windows, self.clock, self.share = number, windows, clock, 0.0
        log.info("%s", self._title())

    def report(self, progress: Progress) -> None:
        """Forward a report with the number of the window and the time left."""
        if progress.total > 1:  # denoising is nearly all of the work
            self.share = max(self.share, 0.95 * progress.step / progress.total)
        self.prefix = f"{self._title()}: "
        overall = (self.clock.finished + self.share) / max(self.clock.windows, 1)
        super().report(replace(progress, left=self.clock.left(self.share), overall=min(overall, 1.0)))

    def finish(self) -> None:
        """The window is complete."""
        self.clock.finished += 1

    def _title(self) -> str:
        left = self.clock.left(self.share)
        return f"Window {self.number}/{self.windows}" + ("" if left is None else f", about {format_seconds(left)} left")


MIN_SHARE = 0.05
"""Share of a window after which the time left can be estimated."""


def format_seconds(seconds: float) -> str:
    """Such as "0:07", "2:10" or "1:02:10"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
