"""What a run leaves: shards and index, the same whatever engine ran, in what order, and how often it was interrupted.

Clips go into shards in the order of the listed files and of their time. A shard is written as soon as all clips before
its last one are known. `.curation/shards.json` tells which clips lie in which finished shard.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from training.curation.index import row_of, write_index
from training.curation.pipeline import build_stages, known_ends, stand_ins
from training.curation.record import Record, digest
from training.curation.samples import write_shard
from training.curation.settings import CurationSettings
from training.curation.store import Store

log = logging.getLogger(__name__)

_Task = tuple[Path, int, list[Record], CurationSettings, list[str]]

Submit = Callable[..., Any]
"""Runs a function, now or elsewhere; the result has `.result()` where it is not there at once."""


@dataclass(frozen=True)
class Layout:
    """Where things lie in the output folder."""

    folder: Path

    @property
    def store(self) -> Path:
        """Results of stages."""
        return self.folder / ".curation"

    @property
    def journal(self) -> Path:
        """Which clips lie in which shard."""
        return self.store / "shards.json"

    @property
    def index(self) -> Path:
        """One row for everything."""
        return self.folder / "index.parquet"


class Output:
    """Takes files in their order, writes what can be written.

    Args:
        folder: of the shards.
        settings: of the run.
        broken: records that were given up, by (trail, number of the stage); filled while the run goes on.
    """

    def __init__(self, folder: Path, settings: CurationSettings, broken: dict[tuple[str, int], Record]) -> None:
        self.layout, self.settings, self.broken = Layout(folder), settings, broken
        self.store = Store(self.layout.store)
        self.stages = build_stages(settings)
        self.stand_ins = stand_ins(settings)
        self._form = digest(asdict(settings.shards), list(settings.segments.size), self.stand_ins)
        self._known = self._journal()
        self._contents: dict[str, str] = {}
        self._waiting: list[Record] = []
        self._number = 0
        self._running: list[tuple[_Task, list[str], Any]] = []
        self._done: dict[int, dict[str, Any]] = {}

    def ends(self, source: Record) -> Iterator[Record]:
        """All that became of one file, in the order of time; unfinished work is told as such."""
        for record, number in known_ends(self.stages, source, self.store):
            if number < len(self.stages):
                yield self.broken.get((record.trail, number)) or record.reject("not finished")
            else:
                yield record

    def take(self, source: Record, submit: Submit) -> None:
        """One more file is finished; they must come in their order."""
        for record in self._once(source):
            if record.rejected is None:
                self._waiting.append(record)
                if len(self._waiting) == self.settings.shards.per_shard:
                    self._flush(submit)
        self._collect(wait=False)

    def finish(self, sources: Iterable[Record], submit: Submit) -> int:
        """Write the last shard and the index; returns the number of clips."""
        if self._waiting:
            self._flush(submit)
        self._collect(wait=True)
        for name in {entry["name"] for entry in self._known} - {entry["name"] for entry in self._done.values()}:
            (self.layout.folder / name).unlink(missing_ok=True)  # of a run with other settings
        self._keep_journal(list(self._done.values()))
        clips = sum(len(entry["clips"]) for entry in self._done.values())
        write_index(self.layout.index, self._rows(sources))
        return clips

    def _once(self, source: Record) -> Iterator[Record]:
        """`ends`, but a second file of the same content is one rejection."""
        for record in self.ends(source):
            first = self._contents.setdefault(record.content, record.name) if record.content else record.name
            if first != record.name:
                twin = Record(record.source, record.name, content=record.content, trail=record.trail, stage="probe")
                yield twin.reject(f"the same content as {first}")
                return
            yield record

    def _rows(self, sources: Iterable[Record]) -> Iterator[dict[str, Any]]:
        shards = {clip: entry["name"] for entry in self._done.values() for clip in entry["clips"]}
        self._contents = {}
        for source in sources:
            for record in self._once(source):
                yield row_of(record, shards.get(record.trail) if record.rejected is None else None)

    def _flush(self, submit: Submit) -> None:
        records, self._waiting = self._waiting, []
        number, self._number = self._number, self._number + 1
        clips = [record.trail for record in records]
        known = self._known[number] if number < len(self._known) else None
        if known is not None and known["clips"] == clips and known["form"] == self._form:
            path = self.layout.folder / known["name"]
            if path.is_file() and path.stat().st_size == known["bytes"]:
                self._done[number] = known
                return
        task = (self.layout.folder, number, records, self.settings, self.stand_ins)
        self._running.append((task, clips, submit(write_shard, *task)))

    def _collect(self, wait: bool) -> None:
        """Note shards that are written."""
        left = []
        for task, clips, job in self._running:
            if not wait and hasattr(job, "done") and not job.done():
                left.append((task, clips, job))
                continue
            path, number = _path(job, task), task[1]
            size = path.stat().st_size
            self._done[number] = {"name": path.name, "bytes": size, "clips": clips, "form": self._form}
            log.info("%s: %d clips", path.name, len(clips))
        changed, self._running = len(left) != len(self._running), left
        if changed:
            told = [self._done[n] for n in range(len(self._done)) if n in self._done]
            later = [entry for n, entry in enumerate(self._known) if n >= len(told)]
            self._keep_journal(told + later)

    def _journal(self) -> list[dict[str, Any]]:
        try:
            return json.loads(self.layout.journal.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            came = f"{self.layout.journal}, which cannot be read ({error})"
            raise InputError(came, "the list of finished shards", "delete it; shards are then written again") from error

    def _keep_journal(self, entries: list[dict[str, Any]]) -> None:
        self.layout.store.mkdir(parents=True, exist_ok=True)
        temporary = self.layout.journal.with_suffix(f".{os.getpid()}.part")
        temporary.write_text(json.dumps(entries), encoding="utf-8")
        os.replace(temporary, self.layout.journal)


def _path(job: Any, task: _Task) -> Path:
    """The shard of a finished job; where its process was lost, it is written here."""
    try:
        return job.result() if hasattr(job, "result") else job
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the engine says of a lost process
        log.warning("shard %d could not be written elsewhere (%s); written here", task[1], error)
        return write_shard(*task)
