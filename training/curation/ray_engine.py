"""The engine for a cluster: the same stages as actors of Ray Data, with the resources that the recipe gives each.

All machines must see the footage and the output folder under the same paths. Neighbouring stages with the same
resources are one actor, up to where a record becomes many. What Ray could not finish (a machine that was lost, a
process that died) is done on this machine afterwards: the store knows what is left.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from training.curation.output import Output
from training.curation.pipeline import build_stages, first_step, work
from training.curation.progress import Progress
from training.curation.record import Record
from training.curation.samples import write_shard
from training.curation.settings import CurationSettings
from training.curation.stage import Resources
from training.curation.store import Store

log = logging.getLogger(__name__)

_SPREADS = ("shots", "segments")  # stages that make many records of one


class Worker:
    """An actor that takes records through stages first..last-1.

    Args:
        root: of the store.
    """

    def __init__(self, settings: CurationSettings, root: str, first: int, last: int) -> None:
        import torch

        torch.set_num_threads(1)
        self.stages = build_stages(settings)[:last]
        self.store, self.first = Store(Path(root)), first

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {"source": [], "record": [], "events": []}
        for source, record, events in zip(batch["source"], batch["record"], batch["events"], strict=True):
            if record.rejected is not None:
                children, told = [record], json.loads(events)
            else:
                children, told = self._through(record, json.loads(events))
            for number, child in enumerate(children):
                made["source"].append(source)
                made["record"].append(child)
                made["events"].append(json.dumps(told if number == 0 else []))
        return made

    def _through(self, record: Record, events: list[Any]) -> tuple[list[Record], list[Any]]:
        ends, waiting = [], [(record, self.first)]
        while waiting:
            one, number = waiting.pop()
            made, last = work(self.stages, one, number, self.store)
            events.append((number, last, [(child.rejected is None, child.broken) for child in made]))
            if last == len(self.stages):
                ends += made
            else:
                ends += [child for child in made if child.rejected is not None]
                waiting += [(child, last) for child in reversed(made) if child.rejected is None]
        return ends, events


def run_ray(sources: Sequence[Record], output: Output, progress: Progress, **init: Any) -> int:
    """Work on all files with Ray, write shards and index; returns the number of clips.

    Args:
        init: for `ray.init`, where Ray is not started yet.

    Raises:
        InputError: no ray.
    """
    try:
        import ray
    except ImportError as error:
        raise InputError("no ray", "ray 2.44 or newer", 'pip install "bind-your-avatar[cluster]"') from error
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        ray.init(runtime_env={"env_vars": {"PYTHONPATH": paths}}, log_to_driver=False, **init)
    ray.data.DataContext.get_current().max_errored_blocks = -1  # a block that is lost is done again below
    rows = [{"source": n, "record": source, "events": "[]"} for n, source in enumerate(sources)]
    data = ray.data.from_items(rows, override_num_blocks=max(1, len(rows)))
    for first, last in groups(output):
        resources = output.stages[first].resources
        data = data.map_batches(
            Worker,
            fn_constructor_args=(output.settings, str(output.store.root.absolute()), first, last),
            batch_size=1,
            num_cpus=resources.cpus,
            num_gpus=resources.gpus or None,
            concurrency=resources.workers or (1, _fitting(ray.cluster_resources(), resources)),
        )
        if output.stages[last - 1].name in _SPREADS:
            data = data.repartition(target_num_rows_per_block=1)  # so that many workers share one film
    for row in data.iter_rows():
        for number, last, made in json.loads(row["events"]):
            told = [Record("", "", rejected=None if kept else "", broken=broken) for kept, broken in made]
            progress.worked(number, last, told)
        record: Record = row["record"]
        progress.share(row["source"], 0.5)  # how much of it is left only Ray knows
        if record.broken:
            _note_broken(output, sources[row["source"]], record)
    _finish_locally(sources, output)
    remote = ray.remote(write_shard)
    for number, source in enumerate(sources):
        progress.share(number, 1.0)
        output.take(source, lambda function, *args: _Remote(ray, remote.remote(*args)))
    return output.finish(sources, lambda function, *args: _Remote(ray, remote.remote(*args)))


def groups(output: Output) -> list[tuple[int, int]]:
    """Stages first..last-1 that one actor does."""
    stages = output.stages
    edges = [0]
    for number in range(1, len(stages)):
        if stages[number].resources != stages[number - 1].resources or stages[number - 1].name in _SPREADS:
            edges.append(number)
    return list(zip(edges, [*edges[1:], len(stages)], strict=True))


def _fitting(there: dict[str, float], wanted: Resources) -> int:
    """How many workers the cluster has room for, at most."""
    fits = [there.get("CPU", 1) / wanted.cpus] if wanted.cpus else [64.0]
    if wanted.gpus:
        fits.append(there.get("GPU", 0) / wanted.gpus)
    return max(1, int(min(fits)))


class _Remote:
    """A result of Ray as `Output` wants it."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray, self.reference = ray, reference

    def done(self) -> bool:
        """Whether it is there."""
        return bool(self.ray.wait([self.reference], timeout=0)[0])

    def result(self) -> Path:
        """It, once it is there."""
        return self.ray.get(self.reference)


def _note_broken(output: Output, source: Record, record: Record) -> None:
    names = [stage.name for stage in output.stages]
    output.broken[(record.trail, names.index(record.stage))] = record


def _finish_locally(sources: Sequence[Record], output: Output) -> None:
    """Whatever Ray has lost."""
    from training.curation.pipeline import known_ends

    for source in sources:
        waiting = [
            (record, number)
            for record, number in known_ends(output.stages, source, output.store)
            if number < len(output.stages) and (record.trail, number) not in output.broken
        ]
        while waiting:
            record, number = waiting.pop()
            log.warning("%s: Ray did not finish stage %s; done here", source.name, output.stages[number].name)
            made, last = work(output.stages, first_step(record, output.store), number, output.store)
            for child in made:
                if child.broken:
                    output.broken[(child.trail, last - 1)] = child
                elif child.rejected is None and last < len(output.stages):
                    waiting.append((child, last))
