"""How far a run is: clips a second, what each stage kept and rejected, time left."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Sequence

from training.curation.record import Record

log = logging.getLogger(__name__)


class Progress:
    """Counts what happens and tells it every few seconds.

    Args:
        sources: files of the run.
        names: of the stages, in order.
        every: seconds between two lines.
    """

    def __init__(self, sources: Sequence[Record], names: Sequence[str], every: float = 10.0) -> None:
        self.names, self.every = list(names), every
        self.sizes = [_size(source) for source in sources]
        self.shares = [0.0] * len(sources)
        self.kept: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.clips = self.finished = self.broken = 0
        self.started = self.told = time.monotonic()

    def worked(self, first: int, last: int, made: Sequence[Record]) -> None:
        """One record went through stages first..last-1 and became `made`."""
        for number in range(first, last - 1):
            self.kept[self.names[number]] += 1
        name = self.names[max(first, last - 1)]
        for record in made:
            self.broken += record.broken
            if record.rejected is None:
                self.kept[name] += 1
                self.clips += last == len(self.names)
            else:
                self.rejected[name] += 1

    def share(self, source: int, done: float) -> None:
        """This much (0..1) of a file is done."""
        self.finished += done >= 1.0 > self.shares[source]
        self.shares[source] = done
        if time.monotonic() - self.told >= self.every:
            self.tell()

    @property
    def done(self) -> float:
        """Share of all bytes, 0..1."""
        return sum(a * b for a, b in zip(self.sizes, self.shares, strict=True)) / max(1.0, sum(self.sizes))

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started

    def tell(self) -> None:
        """One line."""
        self.told = time.monotonic()
        log.info("%s", self.line())

    def line(self) -> str:
        """files, clips, clips/s, kept/rejected per stage, time left."""
        stages = "  ".join(
            f"{name} {self.kept[name]}/{self.rejected[name]}"
            for name in self.names
            if self.kept[name] or self.rejected[name]
        )
        left = self.seconds * (1 - self.done) / self.done if self.done > 0 else float("nan")
        told = "time left unknown" if left != left else f"{_time(left)} left"
        rate = self.clips / max(self.seconds, 1e-6)
        return (
            f"{self.finished}/{len(self.sizes)} files  {self.clips} clips  {rate:.2f} clips/s  {told}"
            f"  (kept/rejected) {stages}"
        )


def _size(source: Record) -> float:
    try:
        return float(max(1, os.stat(source.source).st_size))
    except OSError:
        return 1.0


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
