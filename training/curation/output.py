"""Output of a run: shards and index, independent of the engine, processing order and interruptions.

Clips are assigned to shards in the order of the source files and of time. A shard is written as soon as all of its
clips are known. `.curation/shards.json` lists the clips of each finished shard.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write
from training.curation.index import index_row, write_index
from training.curation.pipeline import build_stages, cached_leaves, puppet_only_models
from training.curation.record import Record, digest
from training.curation.samples import write_shard
from training.curation.settings import CurationSettings
from training.curation.store import Store

log = logging.getLogger(__name__)

_Task = tuple[Path, int, list[Record], CurationSettings, list[str]]

Submit = Callable[..., Any]
"""Runs a function with arguments, here or in another process; returns the result, or a future."""


@dataclass(frozen=True)
class OutputLayout:
    """Paths in the output folder."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / ".curation"

    @property
    def manifest(self) -> Path:
        return self.store / "shards.json"

    @property
    def index(self) -> Path:
        return self.folder / "index.parquet"


class CurationOutput:
    """Writes the shards and the index of a run.

    Args:
        folder: output folder.
        settings: settings of the run.
    """

    def __init__(self, folder: Path, settings: CurationSettings) -> None:
        self.layout, self.settings = OutputLayout(folder), settings
        self.store = Store(self.layout.store)
        self.stages = build_stages(settings)
        self.puppet_models = puppet_only_models(settings)
        self._format = digest(asdict(settings.shards), list(settings.segments.size), self.puppet_models)
        self._previous = self._read_manifest()
        self._failed: dict[tuple[str, int], Record] = {}  # by lineage and index of the next stage
        self._names: dict[str, str] = {}  # first file by content hash
        self._clips: list[Record] = []
        self._next_shard = 0
        self._writing: list[tuple[_Task, list[str], Any]] = []
        self._finished: dict[int, dict[str, Any]] = {}

    def add_failures(self, records: Iterable[Record], index: int) -> None:
        """Register records that failed in stage `index`; `records` may contain others."""
        self._failed.update({(record.lineage, index): record for record in records if record.failed})

    def unfinished(self, source: Record) -> list[tuple[Record, int]]:
        """Records of a source that have not failed and are not finished, with the index of their next stage."""
        return [
            (record, index)
            for record, index in cached_leaves(self.stages, source, self.store)
            if index < len(self.stages) and (record.lineage, index) not in self._failed
        ]

    def add_source(self, source: Record, submit: Submit) -> None:
        """Add the clips of a completed source. Sources must be added in order."""
        for record in self._leaves(source):
            if record.rejected is None:
                self._clips.append(record)
                if len(self._clips) == self.settings.shards.clips_per_shard:
                    self._write_shard(submit)
        self._collect(wait=False)

    def finish(self, sources: Iterable[Record], submit: Submit) -> int:
        """Write the last shard and the index; return the number of clips."""
        if self._clips:
            self._write_shard(submit)
        self._collect(wait=True)
        for name in {entry["name"] for entry in self._previous} - {entry["name"] for entry in self._finished.values()}:
            (self.layout.folder / name).unlink(missing_ok=True)  # written with other settings
        self._write_manifest(list(self._finished.values()))
        self._names = {}
        shards = {clip: entry["name"] for entry in self._finished.values() for clip in entry["clips"]}
        leaves = (record for source in sources for record in self._leaves(source))
        write_index(
            self.layout.index, (index_row(r, shards.get(r.lineage) if r.rejected is None else None) for r in leaves)
        )
        return len(shards)

    def _leaves(self, source: Record) -> Iterator[Record]:
        """Final records of a source in temporal order; a source with known content is one rejected record."""
        for record, index in cached_leaves(self.stages, source, self.store):
            if record.content:
                first = self._names.setdefault(record.content, record.name)
                if first != record.name:
                    duplicate = Record(record.source, record.name, lineage=record.lineage, content=record.content)
                    yield replace(duplicate, stage="probe", rejected=f"same content as {first}")
                    return
            if index < len(self.stages):
                yield self._failed.get((record.lineage, index)) or record.reject("not finished")
            else:
                yield record

    def _write_shard(self, submit: Submit) -> None:
        records, self._clips = self._clips, []
        index, self._next_shard = self._next_shard, self._next_shard + 1
        clips = [record.lineage for record in records]
        known = self._previous[index] if index < len(self._previous) else None
        if known is not None and known["clips"] == clips and known["format"] == self._format:
            path = self.layout.folder / known["name"]
            if path.is_file() and path.stat().st_size == known["bytes"]:
                self._finished[index] = known
                return
        task = (self.layout.folder, index, records, self.settings, self.puppet_models)
        self._writing.append((task, clips, submit(write_shard, *task)))

    def _collect(self, wait: bool) -> None:
        """Record completed shards in the manifest."""
        pending = []
        for task, clips, job in self._writing:
            if not wait and hasattr(job, "done") and not job.done():
                pending.append((task, clips, job))
                continue
            path = _shard_path(job, task)
            size = path.stat().st_size
            self._finished[task[1]] = {"name": path.name, "bytes": size, "clips": clips, "format": self._format}
            log.info("%s: %d clips", path.name, len(clips))
        changed, self._writing = len(pending) != len(self._writing), pending
        if changed:
            finished = [self._finished[n] for n in range(len(self._finished)) if n in self._finished]
            self._write_manifest(finished + self._previous[len(finished) :])

    def _read_manifest(self) -> list[dict[str, Any]]:
        try:
            return json.loads(self.layout.manifest.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            problem = f"{self.layout.manifest} cannot be read ({error})"
            raise InputError(problem, "the list of finished shards", "delete it to write all shards again") from error

    def _write_manifest(self, entries: list[dict[str, Any]]) -> None:
        self.layout.store.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.layout.manifest) as temporary:
            temporary.write_text(json.dumps(entries), encoding="utf-8")


def _shard_path(job: Any, task: _Task) -> Path:
    """Wait for a shard; write it in this process if its worker was lost."""
    try:
        return job.result() if hasattr(job, "result") else job
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - engines raise various errors for lost workers
        log.warning("the worker writing shard %d failed (%s); writing it in this process", task[1], error)
        return write_shard(*task)
