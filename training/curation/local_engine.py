"""The engine for one machine: a pool of processes (pebble) that may die, hang or be killed without harm to the run.

A job is one record: a file, then each of its shots, then each of its clips. A process that dies takes only its job with
it, which is tried again; a job that takes too long is given up.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from training.curation.output import Output
from training.curation.pipeline import build_stages, known_ends, work
from training.curation.progress import Progress
from training.curation.record import Record
from training.curation.settings import CurationSettings
from training.curation.stage import Stage
from training.curation.store import Store

log = logging.getLogger(__name__)

_TRIES = 3
_AHEAD = 3  # jobs given to the pool for each of its processes
_stages: list[Stage] = []
_store: Store


def _start(settings: CurationSettings, root: Path) -> None:
    """In each process of the pool."""
    global _stages, _store
    import torch

    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    _stages, _store = build_stages(settings), Store(root)


def _job(record: Record, number: int) -> tuple[list[Record], int]:
    return work(_stages, record, number, _store)


@dataclass(order=True)
class _Job:
    """A record that waits: files in their order, and within one what is nearest to its end first."""

    source: int
    depth: int
    frame: int
    record: Record = field(compare=False)
    number: int = field(compare=False)
    tries: int = field(compare=False, default=0)


def run_local(sources: Sequence[Record], output: Output, progress: Progress, workers: int) -> int:
    """Work on all files, write shards and index.

    Args:
        workers: processes; 0 = in this one, where no process can be given up.

    Returns:
        The number of clips.

    Raises:
        StoreError, InputError: nothing can be kept, or a model is missing.
    """
    if workers == 0:
        return _run_inside(sources, output, progress)
    try:
        from pebble import ProcessPool
    except ImportError as error:
        do = 'pip install "bind-your-avatar[data]", or --workers 0'
        raise InputError("no pebble", "pebble 5 or newer", do) from error
    pool = ProcessPool(
        max_workers=workers,
        initializer=_start,
        initargs=(output.settings, output.store.root),
        context=get_context("spawn"),
    )
    try:
        _Run(sources, output, progress, pool, workers).go()
        clips = output.finish(sources, lambda function, *args: pool.schedule(function, args=args))
        pool.close()
        return clips
    except BaseException:
        pool.stop()
        raise
    finally:
        pool.join()


def _run_inside(sources: Sequence[Record], output: Output, progress: Progress) -> int:
    """`run_local` without other processes; on one thread as they are, so that sums round the same."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number, source in enumerate(sources):
            for first, last, made in _inside(output.stages, source, output.store):
                progress.worked(first, last, made)
                output.broken.update(_given_up(first, last, made, output))
            progress.share(number, 1.0)
            output.take(source, _now)
        return output.finish(sources, _now)
    finally:
        torch.set_num_threads(threads)


def _now(function: Any, *args: Any) -> Any:
    return function(*args)


def _inside(stages: list[Stage], source: Record, store: Store) -> Iterator[tuple[int, int, list[Record]]]:
    waiting = [(source, 0)]
    while waiting:
        record, first = waiting.pop()
        made, last = work(stages, record, first, store)
        yield first, last, made
        if last < len(stages):
            waiting += [(child, last) for child in reversed(made) if child.rejected is None]


def _given_up(first: int, last: int, made: list[Record], output: Output) -> dict[tuple[str, int], Record]:
    """Errors of the program, under what the walk over the store stops at."""
    return {(record.trail, last - 1): record for record in made if record.broken}


class _Run:
    """All jobs of a run."""

    def __init__(self, sources: Sequence[Record], output: Output, progress: Progress, pool: Any, workers: int) -> None:
        self.sources, self.output, self.progress, self.pool = sources, output, progress, pool
        self.limit = workers * _AHEAD
        self.queue = [_Job(n, 0, 0, source, 0) for n, source in enumerate(sources)]
        self.running: dict[Future, _Job] = {}
        self.left = [1] * len(sources)  # jobs of each file that are not done
        self.ended = [0] * len(sources)
        self.next = 0  # file whose clips are written next
        heapq.heapify(self.queue)

    def go(self) -> None:
        """Until everything is done."""
        while self.queue or self.running:
            while self.queue and len(self.running) < self.limit:
                job = heapq.heappop(self.queue)
                future = self.pool.schedule(_job, args=(job.record, job.number), timeout=self.output.settings.patience)
                self.running[future] = job
            finished, _ = wait(self.running, timeout=self.progress.every, return_when=FIRST_COMPLETED)
            if not finished:
                self.progress.tell()
            for future in finished:
                self._done(self.running.pop(future), future)

    def _done(self, job: _Job, future: Future) -> None:
        from pebble import ProcessExpired

        stage = self.output.stages[job.number].name
        try:
            made, last = future.result()
        except ProcessExpired as error:
            if job.tries + 1 < _TRIES:
                log.warning("a process died (exit code %s) on %s; tried again", error.exitcode, job.record.name)
                heapq.heappush(self.queue, replace(job, tries=job.tries + 1))
                return
            reason = f"processes that worked on it died {_TRIES} times (exit code {error.exitcode}), from {stage} on"
            made, last = self._lost(job, reason)
        except (TimeoutError, CancelledError):
            reason = f"given up after {self.output.settings.patience:g} s, from {stage} on"
            made, last = self._lost(job, reason)
        self.progress.worked(job.number, last, made)
        self.output.broken.update(_given_up(job.number, last, made, self.output))
        children = [record for record in made if record.rejected is None and last < len(self.output.stages)]
        for record in children:
            heapq.heappush(self.queue, _Job(job.source, -last, record.start, record, last))
        self.left[job.source] += len(children) - 1
        self.ended[job.source] += 1
        self.progress.share(job.source, self.ended[job.source] / (self.ended[job.source] + self.left[job.source]))
        while self.next < len(self.sources) and self.left[self.next] == 0:
            self.output.take(self.sources[self.next], lambda function, *args: self.pool.schedule(function, args=args))
            self.next += 1

    def _lost(self, job: _Job, reason: str) -> tuple[list[Record], int]:
        """The record where it got stuck, dropped for this reason, and the number of the stage after that."""
        log.warning("%s: %s", job.record.name, reason)
        for record, number in known_ends(self.output.stages, job.record, self.output.store, job.number):
            if number < len(self.output.stages):
                stage = self.output.stages[number].name
                return [replace(record.reject(reason), stage=stage, broken=True)], number + 1
        return work(self.output.stages, job.record, job.number, self.output.store)  # it was done after all
