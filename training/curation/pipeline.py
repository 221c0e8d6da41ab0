"""All stages in their order, and a record's way through them."""

from __future__ import annotations

from collections.abc import Iterator

from training.curation.describe import Captions, Features
from training.curation.faces import Faces
from training.curation.masks import Masks
from training.curation.models import MODELS, ModelChoice, Part
from training.curation.probe import Probe
from training.curation.record import Record
from training.curation.segments import Distance, Segments
from training.curation.settings import CurationSettings
from training.curation.shots import Shots
from training.curation.sources import fingerprinted
from training.curation.speech import Extract, Matrix, SyncFilter
from training.curation.stage import Resources, Stage, result_key, run_stage
from training.curation.store import Store

_KINDS = (Probe, Shots, Faces, Segments, Distance, Extract, SyncFilter, Masks, Matrix, Features, Captions)
STAGE_NAMES = tuple(kind.name for kind in _KINDS)


def build_stages(settings: CurationSettings) -> list[Stage]:
    """The stages of sec. 4.1 and 4.2 in the paper's order. Nothing is loaded yet.

    Raises:
        InputError: resources for a stage that does not exist.
    """
    from bya_core.errors import InputError

    unknown = set(settings.resources) - set(STAGE_NAMES)
    if unknown:
        came = f"resources for {', '.join(sorted(unknown))}"
        raise InputError(came, ", ".join(STAGE_NAMES), "correct the recipe")
    return [kind(getattr(settings, kind.name), settings.resources.get(kind.name, Resources())) for kind in _KINDS]


def prepare(stages: list[Stage]) -> None:
    """Build every model once, so that what is missing is told before a long run, not in its middle.

    Raises:
        InputError: which model, and what it needs.
    """
    for stage in stages:
        if hasattr(stage, "prepare"):
            stage.prepare()


def choices(settings: CurationSettings) -> list[tuple[Part, ModelChoice]]:
    """Which model does what."""
    return [
        ("detector", settings.faces.detector),
        ("identity", settings.faces.identity),
        ("extractor", settings.extract.extractor),
        ("sync", settings.sync.scorer),
        ("segmenter", settings.masks.segmenter),
        ("speech", settings.features.speech),
        ("captioner", settings.captions.captioner),
    ]


def stand_ins(settings: CurationSettings) -> list[str]:
    """Parts done by a stand-in for drawn puppets, such as "sync: puppet"."""
    return [f"{part}: {choice.name}" for part, choice in choices(settings) if MODELS[part][choice.name].stand_in]


def first_step(record: Record, store: Store) -> Record:
    """A listed file with its fingerprint, ready for the first stage."""
    return record if record.trail or record.rejected else fingerprinted(record, store)


def work(stages: list[Stage], record: Record, number: int, store: Store) -> tuple[list[Record], int]:
    """Take a record through stage `number` and on, as long as one record becomes one.

    Returns:
        What it became, and the number of the stage that comes next for them; len(stages) = none. Rejected ones go no
        further in any case.
    """
    record = first_step(record, store) if number == 0 else record
    made = [record]
    while number < len(stages) and len(made) == 1 and made[0].rejected is None:
        made = run_stage(stages[number], made[0], store)
        number += 1
    return made, number


def known_ends(stages: list[Stage], record: Record, store: Store, first: int = 0) -> Iterator[tuple[Record, int]]:
    """What the store knows of a record before stage `first`, depth first: finished and rejected ones with len(stages),
    and with the number of the stage that they wait for those that are not done."""
    waiting = [(first_step(record, store), first)]
    while waiting:
        record, number = waiting.pop()
        if record.rejected is not None or number == len(stages):
            yield record, len(stages)
            continue
        known = store.get(stages[number].name, result_key(stages[number], record), record)
        if known is None:
            yield record, number
        else:
            waiting += [(child, number + 1) for child in reversed(known[0])]
