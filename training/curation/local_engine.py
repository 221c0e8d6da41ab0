"""Single-machine engine: a pebble process pool that tolerates crashed, hanging and killed workers.

A job is one record: a file, then each of its shots, then each of its clips. A crashed worker affects only its job,
which is retried; a job that exceeds the timeout is rejected.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from training.curation.footage import close_footage
from training.curation.output import CurationOutput, Submit
from training.curation.pipeline import CurationSettings, advance, build_stages, cached_leaves, process
from training.curation.record import Record
from training.curation.stage import Stage
from training.curation.stats import RunStats, outcomes_of
from training.curation.store import Store

log = logging.getLogger(__name__)

_MAX_ATTEMPTS = 3
_JOBS_PER_WORKER = 3  # submitted to the pool in advance
_stages: list[Stage] = []
_store: Store


def _init_worker(settings: CurationSettings, root: Path) -> None:
    global _stages, _store
    import torch

    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    _stages, _store = build_stages(settings), Store(root)


def _run_job(record: Record, index: int) -> tuple[list[Record], int]:
    return advance(_stages, record, index, _store)


def run_local(sources: Sequence[Record], output: CurationOutput, stats: RunStats, workers: int) -> int:
    """Process all sources, write shards and index; return the number of clips.

    Args:
        stats: updated during the run.
        workers: number of processes; 0 = run in this process, without timeouts.

    Raises:
        InputError: results cannot be saved, or a package is missing.
    """
    if workers == 0:
        return _run_in_process(sources, output, stats)
    try:
        from pebble import ProcessPool
    except ImportError as error:
        hint = "run pip install -e .[data], or use --workers 0"
        raise InputError("pebble is not installed", "pebble 5 or newer", hint) from error

    def submit(function: Callable[..., Any], *args: Any) -> Future:
        return pool.schedule(function, args=args)

    pool = ProcessPool(
        max_workers=workers,
        initializer=_init_worker,
        initargs=(output.settings, output.store.root),
        context=get_context("spawn"),
    )
    try:
        _PoolRun(sources, output, stats, pool, submit, workers).run()
        clips = output.finish(sources, submit)
        pool.close()
        return clips
    except BaseException:
        pool.stop()
        raise
    finally:
        pool.join()


def _run_in_process(sources: Sequence[Record], output: CurationOutput, stats: RunStats) -> int:
    """Run without workers, on one thread as workers do, so that floating point results are identical."""
    import torch

    def call(function: Any, *args: Any) -> Any:
        return function(*args)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number, source in enumerate(sources):
            for records, first, last in process(output.stages, source, 0, output.store):
                stats.count(first, last, outcomes_of(records))
                output.add_failures(records, last - 1)
            stats.set_fraction(number, 1.0)
            output.add_source(source, call)
        return output.finish(sources, call)
    finally:
        torch.set_num_threads(threads)
        close_footage()


@dataclass(order=True)
class _Job:
    """A queued record: sources in order, and within one the record closest to completion first."""

    source: int
    depth: int
    frame: int
    record: Record = field(compare=False)
    index: int = field(compare=False)
    attempts: int = field(compare=False, default=0)


class _PoolRun:
    """Scheduling of all jobs of a run."""

    def __init__(
        self,
        sources: Sequence[Record],
        output: CurationOutput,
        stats: RunStats,
        pool: Any,
        submit: Submit,
        workers: int,
    ) -> None:
        self.sources, self.output, self.stats, self.pool, self.submit = sources, output, stats, pool, submit
        self.max_running = workers * _JOBS_PER_WORKER
        self.queue = [_Job(n, 0, 0, source, 0) for n, source in enumerate(sources)]
        self.running: dict[Future, _Job] = {}
        self.open_jobs = [1] * len(sources)
        self.closed_jobs = [0] * len(sources)
        self.next_source = 0  # whose clips are written next
        heapq.heapify(self.queue)

    def run(self) -> None:
        timeout = self.output.settings.timeout
        while self.queue or self.running:
            while self.queue and len(self.running) < self.max_running:
                job = heapq.heappop(self.queue)
                future = self.pool.schedule(_run_job, args=(job.record, job.index), timeout=timeout)
                self.running[future] = job
            finished, _ = wait(self.running, timeout=self.stats.interval, return_when=FIRST_COMPLETED)
            if not finished:
                self.stats.log()
            for future in finished:
                self._complete(self.running.pop(future), future)

    def _complete(self, job: _Job, future: Future) -> None:
        from pebble import ProcessExpired

        output = self.output
        stage = output.stages[job.index].name
        try:
            records, last = future.result()
        except ProcessExpired as error:
            if job.attempts + 1 < _MAX_ATTEMPTS:
                log.warning("a worker crashed (exit code %s) on %s; retrying", error.exitcode, job.record.name)
                heapq.heappush(self.queue, replace(job, attempts=job.attempts + 1))
                return
            reason = f"workers crashed {_MAX_ATTEMPTS} times (exit code {error.exitcode}) from stage {stage} on"
            records, last = self._fail(job, reason)
        except (TimeoutError, CancelledError):
            records, last = self._fail(job, f"timeout after {output.settings.timeout:g} s from stage {stage} on")
        self.stats.count(job.index, last, outcomes_of(records))
        output.add_failures(records, last - 1)
        children = [record for record in records if record.rejected is None and last < len(output.stages)]
        for record in children:
            heapq.heappush(self.queue, _Job(job.source, -last, record.start, record, last))
        self.open_jobs[job.source] += len(children) - 1
        self.closed_jobs[job.source] += 1
        closed = self.closed_jobs[job.source]
        self.stats.set_fraction(job.source, closed / (closed + self.open_jobs[job.source]))
        while self.next_source < len(self.sources) and self.open_jobs[self.next_source] == 0:
            output.add_source(self.sources[self.next_source], self.submit)
            self.next_source += 1

    def _fail(self, job: _Job, reason: str) -> tuple[list[Record], int]:
        """Reject the record at the stage it did not complete; return it with the index after that stage."""
        log.warning("%s: %s", job.record.name, reason)
        stages, store = self.output.stages, self.output.store
        for record, index in cached_leaves(stages, job.record, store, job.index):
            if index < len(stages):
                return [replace(record.reject(reason), stage=stages[index].name, failed=True)], index + 1
        return advance(stages, job.record, job.index, store)  # completed after all
