"""The stages in order, and the traversal of records through them."""

from __future__ import annotations

from collections.abc import Iterator

from bya_core.errors import InputError
from training.curation.captions import Captions, Features
from training.curation.faces import Faces
from training.curation.masks import Masks
from training.curation.models import MODELS
from training.curation.probe import Probe
from training.curation.record import Record
from training.curation.segments import Distance, Segments
from training.curation.settings import CurationSettings
from training.curation.shots import Shots
from training.curation.sources import hash_source
from training.curation.speech import Extract, Matrix, SyncFilter
from training.curation.stage import Stage, result_key, run_stage
from training.curation.store import Store

_STAGES: tuple[type[Stage], ...] = (
    Probe, Shots, Faces, Segments, Distance, Extract, SyncFilter, Masks, Matrix, Features, Captions,
)  # fmt: skip
STAGE_NAMES = tuple(stage.name for stage in _STAGES)


def build_stages(settings: CurationSettings) -> list[Stage]:
    """Build the stages of paper sec. 4.1 and 4.2 without loading models.

    Raises:
        InputError: `resources` names an unknown stage.
    """
    unknown = set(settings.resources) - set(STAGE_NAMES)
    if unknown:
        problem = f"resources: unknown stage {', '.join(sorted(unknown))}"
        raise InputError(problem, ", ".join(STAGE_NAMES), "correct the curation config")
    return [stage(getattr(settings, stage.name), settings.resources.get(stage.name)) for stage in _STAGES]


def puppet_only_models(settings: CurationSettings) -> list[str]:
    """Selected models that work on synthetic puppets only, such as "sync: puppet"."""
    chosen = []
    for stage in _STAGES:
        for task, option in stage.models.items():
            name = getattr(getattr(settings, stage.name), option).name
            if name in MODELS[task] and MODELS[task][name].puppet_only:
                chosen.append(f"{task}: {name}")
    return chosen


def advance(stages: list[Stage], record: Record, index: int, store: Store) -> tuple[list[Record], int]:
    """Apply stages from `index` on until the record is split, rejected or finished.

    Returns:
        The resulting records and the index of their next stage; len(stages) = finished.
    """
    records = [_with_hash(record, store) if index == 0 else record]
    while index < len(stages) and len(records) == 1 and records[0].rejected is None:
        records = run_stage(stages[index], records[0], store)
        index += 1
    return records, index


def process(stages: list[Stage], record: Record, index: int, store: Store) -> Iterator[tuple[list[Record], int, int]]:
    """Apply stages from `index` on to a record and to all its parts, depth first.

    Yields:
        For each step of `advance`: the resulting records, and the index of its first and of the next stage.
    """
    pending = [(record, index)]
    while pending:
        record, first = pending.pop()
        records, last = advance(stages, record, first, store)
        yield records, first, last
        if last < len(stages):
            pending += [(child, last) for child in reversed(records) if child.rejected is None]


def cached_leaves(stages: list[Stage], record: Record, store: Store, index: int = 0) -> Iterator[tuple[Record, int]]:
    """Follow cached results of a record depth first, starting before stage `index`.

    Yields:
        Finished and rejected records with len(stages); records without a cached result with the index of their next
        stage.
    """
    pending = [(_with_hash(record, store), index)]
    while pending:
        record, index = pending.pop()
        if record.rejected is not None or index == len(stages):
            yield record, len(stages)
            continue
        cached = store.get(stages[index].name, result_key(stages[index], record), record)
        if cached is None:
            yield record, index
        else:
            pending += [(child, index + 1) for child in reversed(cached[0])]


def _with_hash(record: Record, store: Store) -> Record:
    return record if record.lineage or record.rejected else hash_source(record, store)
