"""Statistics of a running curation: throughput, accepted and rejected records per stage, remaining time."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from training.curation.record import Record

log = logging.getLogger(__name__)


class RunStats:
    """Counts records and logs a status line at regular intervals.

    Args:
        sources: files of the run.
        stages: names of the stages, in order.
        interval: seconds between two status lines.
    """

    def __init__(self, sources: Sequence[Record], stages: Sequence[str], interval: float = 10.0) -> None:
        self.stages, self.interval = list(stages), interval
        self.sizes = [_file_size(source) for source in sources]
        self.fractions = [0.0] * len(sources)
        self.kept: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.clips = self.finished = self.failed = 0
        self.unit = "clips" if "segments" in self.stages else "shots" if "shots" in self.stages else "files"
        self.started = self.logged = time.monotonic()

    def count(self, first: int, last: int, outcomes: Sequence[tuple[bool, bool]]) -> None:
        """Count a record that passed stages first..last-1.

        Args:
            outcomes: (kept, failed) of every resulting record, see `outcomes_of`.
        """
        for index in range(first, last - 1):
            self.kept[self.stages[index]] += 1
        name = self.stages[max(first, last - 1)]
        for kept, failed in outcomes:
            self.failed += failed
            (self.kept if kept else self.rejected)[name] += 1
            self.clips += kept and last == len(self.stages)

    def set_fraction(self, source: int, fraction: float) -> None:
        """Set the completed fraction (0..1) of a source."""
        self.finished += fraction >= 1.0 > self.fractions[source]
        self.fractions[source] = fraction
        if time.monotonic() - self.logged >= self.interval:
            self.log()

    def log(self) -> None:
        """Log the status line."""
        self.logged = time.monotonic()
        log.info("%s", self.line())

    def line(self) -> str:
        """Files, clips, clips/s, remaining time, and kept/rejected records per stage."""
        done = sum(a * b for a, b in zip(self.sizes, self.fractions, strict=True)) / max(1.0, sum(self.sizes))
        elapsed = time.monotonic() - self.started
        remaining = f"{_format_time(elapsed * (1 - done) / done)} remaining" if done > 0 else "remaining time unknown"
        stages = "  ".join(
            f"{name} {self.kept[name]}/{self.rejected[name]}"
            for name in self.stages
            if self.kept[name] or self.rejected[name]
        )
        rate = self.clips / max(elapsed, 1e-6)
        counts = f"{self.finished}/{len(self.sizes)} files  {self.clips} {self.unit}  {rate:.2f} {self.unit}/s"
        return f"{counts}  {remaining}  (kept/rejected) {stages}"

    def summary(self, models: Mapping[str, str], all_stages: Sequence[str], store: Path) -> list[str]:
        """One line per stage: records kept and rejected, seconds and the models used, or that it did not run.

        Args:
            models: description of the models of each stage that ran; empty for stages without models.
            all_stages: names of all stages, in order.
            store: folder of the cached results, see `stage_costs`.
        """
        costs = {name: each[3] for name, each in stage_costs(store, self.stages).items()}
        lines = []
        for name in all_stages:
            if name not in self.stages:
                lines.append(f"{name}: not run (until: {self.stages[-1]})")
            else:
                used = f" ({models[name]})" if models.get(name) else ""
                counts = f"{self.kept[name]} kept, {self.rejected[name]} rejected"
                lines.append(f"{name}{used}: {counts}, {costs[name]:.1f} s")
        return lines


def stage_costs(store: Path, stages: Iterable[str]) -> dict[str, tuple[int, int, int, float]]:
    """Return (input records, kept, rejected, total seconds of all workers) of each stage from the result store.

    Cached results of earlier runs and settings are included.
    """
    costs = {}
    for name in stages:
        entries = [json.loads(path.read_text(encoding="utf-8")) for path in (store / name).glob("*/*.json")]
        rejected = sum(record["rejected"] is not None for entry in entries for record in entry["records"])
        kept = sum(len(entry["records"]) for entry in entries) - rejected
        costs[name] = (len(entries), kept, rejected, sum(entry["seconds"] for entry in entries))
    return costs


def outcomes_of(records: Sequence[Record]) -> list[tuple[bool, bool]]:
    """(kept, failed) of every record."""
    return [(record.rejected is None, record.failed) for record in records]


def _file_size(source: Record) -> float:
    try:
        return float(max(1, os.stat(source.source).st_size))
    except OSError:
        return 1.0


def _format_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
