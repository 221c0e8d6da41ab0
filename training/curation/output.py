"""Output of a run: shards and index, independent of the engine, processing order and interruptions.

Clips are assigned to shards in the order of the source files and of time. A shard is written as soon as all of its
clips are known. `.curation/shards.json` lists the clips of each finished shard.

The index (Parquet) has one row per clip, shot or file at the point where it was accepted or rejected: key, name,
content, level, start, end (seconds), kept, stage (that produced or rejected it), reason, failed, shard, the most common
measurements, and `measured` with all of them as JSON.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write
from training.curation.pipeline import CurationSettings, build_stages, cached_leaves, puppet_only_models
from training.curation.record import FPS, Record, digest
from training.curation.samples import write_shard
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
            if record.rejected is None and self.settings.complete:
                self._clips.append(record)
                if len(self._clips) == self.settings.shards.clips_per_shard:
                    self._write_shard(submit)
        self._collect(wait=False)

    def finish(self, sources: Iterable[Record], submit: Submit) -> int:
        """Write the last shard and the index; return the number of clips.

        A run that is not complete (see `CurationSettings.complete`) leaves the shards of earlier runs as they are.
        """
        if self._clips:
            self._write_shard(submit)
        self._collect(wait=True)
        if self.settings.complete:
            names = [{entry["name"] for entry in entries} for entries in (self._previous, self._finished.values())]
            for name in names[0] - names[1]:
                (self.layout.folder / name).unlink(missing_ok=True)  # written with other settings
            self._write_manifest(list(self._finished.values()))
        self._names = {}
        shards = {clip: entry["name"] for entry in self._finished.values() for clip in entry["clips"]}
        clips = 0

        def rows() -> Iterator[dict[str, Any]]:
            nonlocal clips
            for record in (record for source in sources for record in self._leaves(source)):
                kept = record.rejected is None
                clips += kept and record.level == "clip"
                yield index_row(record, shards.get(record.lineage) if kept else None)

        write_index(self.layout.index, rows())
        return clips

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


_NUMBERS = (
    "width", "height", "fps", "seconds", "num_people", "distance_ratio", "sync_mean", "mask_overlap", "caption_words",
)  # fmt: skip
_TEXTS = ("codec", "detector", "caption")
_ROW_GROUP = 4096


def index_row(record: Record, shard: str | None) -> dict[str, Any]:
    """Build the row of a record."""
    data = record.data
    return {
        "key": record.key,
        "name": record.name,
        "content": record.content,
        "level": record.level,
        "start": record.start / FPS,
        "end": record.end / FPS,
        "kept": record.rejected is None,
        "stage": record.stage,
        "reason": record.rejected,
        "failed": record.failed,
        "shard": shard,
        **{name: None if data.get(name) is None else float(data[name]) for name in _NUMBERS},
        **{name: data.get(name) for name in _TEXTS},
        "measured": json.dumps(dict(data), ensure_ascii=False, sort_keys=True),
    }


def write_index(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows in groups of a few thousand."""
    pa, parquet = _import_pyarrow()
    columns = {
        **dict.fromkeys(("key", "name", "content", "level"), pa.string()),
        **dict.fromkeys(("start", "end"), pa.float64()),
        "kept": pa.bool_(),
        **dict.fromkeys(("stage", "reason"), pa.string()),
        "failed": pa.bool_(),
        "shard": pa.string(),
        **dict.fromkeys(_NUMBERS, pa.float64()),
        **dict.fromkeys((*_TEXTS, "measured"), pa.string()),
    }
    schema, iterator = pa.schema(list(columns.items())), iter(rows)
    with atomic_write(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        while group := list(islice(iterator, _ROW_GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))


def read_index(path: Path) -> list[dict[str, Any]]:
    """Read all rows, with `measured` parsed."""
    _, parquet = _import_pyarrow()
    rows = parquet.read_table(path).to_pylist()
    return [{**row, "measured": json.loads(row["measured"])} for row in rows]


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        hint = "run pip install -e .[data]"
        raise InputError("pyarrow is not installed", "pyarrow 17 or newer", hint) from error
    return pyarrow, parquet
