"""Cluster engine: the same stages as Ray Data actors with the resources configured per stage.

All machines must see the footage and the output folder under the same paths. Consecutive stages with equal resources
share an actor, up to the point where records are split. Records that Ray did not finish (lost machines, crashed
workers) are processed on this machine afterwards; the store knows which ones are missing.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from training.curation.output import CurationOutput
from training.curation.pipeline import STAGE_NAMES, CurationSettings, build_stages, process
from training.curation.record import Record
from training.curation.samples import write_shard
from training.curation.stage import Resources, Stage
from training.curation.stats import RunStats, outcomes_of
from training.curation.store import Store

log = logging.getLogger(__name__)

_SPLITTING_STAGES = ("shots", "segments")


class StageActor:
    """Ray actor that applies stages first..last-1.

    Args:
        settings: settings of the run.
        root: folder of the result store.
        first, last: range of stages.
    """

    def __init__(self, settings: CurationSettings, root: str, first: int, last: int) -> None:
        import torch

        torch.set_num_threads(1)
        self.stages = build_stages(settings)[:last]
        self.store, self.first = Store(Path(root)), first

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {"source": [], "record": [], "events": []}
        for source, record, events in zip(batch["source"], batch["record"], batch["events"], strict=True):
            leaves, steps = [record], json.loads(events)
            if record.rejected is None:
                leaves = []
                for records, first, last in process(self.stages, record, self.first, self.store):
                    steps.append((first, last, outcomes_of(records)))
                    leaves += [r for r in records if last == len(self.stages) or r.rejected is not None]
            rows["source"] += [source] * len(leaves)
            rows["record"] += leaves
            rows["events"] += [json.dumps(steps), *["[]"] * (len(leaves) - 1)]
        return rows


def run_ray(sources: Sequence[Record], output: CurationOutput, stats: RunStats, **init: Any) -> int:
    """Process all sources with Ray, write shards and index; return the number of clips.

    Args:
        stats: updated during the run.
        init: arguments of `ray.init`, if Ray is not initialized.

    Raises:
        InputError: ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        hint = "run pip install -e .[cluster]"
        raise InputError("ray is not installed", "ray 2.44 or newer", hint) from error
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        root = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
        ray.init(runtime_env={"env_vars": {"PYTHONPATH": paths}}, log_to_driver=False, **init)
    ray.data.DataContext.get_current().max_errored_blocks = -1  # lost blocks are processed locally below
    rows = [{"source": n, "record": source, "events": "[]"} for n, source in enumerate(sources)]
    data: Any = ray.data.from_items(rows, override_num_blocks=max(1, len(rows)))
    for first, last in actor_groups(output.stages):
        resources = output.stages[first].resources
        data = data.map_batches(
            StageActor,
            fn_constructor_args=(output.settings, str(output.store.root.absolute()), first, last),
            batch_size=1,
            num_cpus=resources.cpus,
            num_gpus=resources.gpus or None,
            concurrency=resources.workers or (1, _max_workers(ray.cluster_resources(), resources)),
        )
        if output.stages[last - 1].name in _SPLITTING_STAGES:
            data = data.repartition(target_num_rows_per_block=1)  # distribute the parts of one file
    for row in data.iter_rows():
        for first, last, outcomes in json.loads(row["events"]):
            stats.count(first, last, outcomes)
        stats.set_fraction(row["source"], 0.5)  # only Ray knows the actual fraction
        record: Record = row["record"]
        if record.failed:
            output.add_failures([record], STAGE_NAMES.index(record.stage))
    _finish_locally(sources, output)
    remote = ray.remote(write_shard)

    def submit(_: Any, *args: Any) -> Any:
        return remote.remote(*args).future()

    for number, source in enumerate(sources):
        stats.set_fraction(number, 1.0)
        output.add_source(source, submit)
    return output.finish(sources, submit)


def actor_groups(stages: Sequence[Stage]) -> list[tuple[int, int]]:
    """Ranges of stages that share an actor."""
    edges = [0]
    for index in range(1, len(stages)):
        previous = stages[index - 1]
        if stages[index].resources != previous.resources or previous.name in _SPLITTING_STAGES:
            edges.append(index)
    return list(zip(edges, [*edges[1:], len(stages)], strict=True))


def _max_workers(available: dict[str, float], resources: Resources) -> int:
    """Number of workers that fit on the cluster."""
    limits = [available.get("CPU", 1) / resources.cpus] if resources.cpus else [64.0]
    if resources.gpus:
        limits.append(available.get("GPU", 0) / resources.gpus)
    return max(1, int(min(limits)))


def _finish_locally(sources: Sequence[Record], output: CurationOutput) -> None:
    """Process what Ray has lost."""
    for source in sources:
        for record, index in output.unfinished(source):
            log.warning("%s: Ray did not finish stage %s; running it locally", source.name, STAGE_NAMES[index])
            for records, _, last in process(output.stages, record, index, output.store):
                output.add_failures(records, last - 1)
