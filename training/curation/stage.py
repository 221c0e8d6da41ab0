"""What a stage is, and the one way in which a stage is run: from the store where it was run before."""

from __future__ import annotations

import logging
import time
import traceback
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

from bya_core.errors import InputError
from training.curation.record import Record, digest
from training.curation.store import Store, StoreError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage occupies.

    Args:
        cpus: processor cores.
        gpus: share of a GPU.
        workers: how many work at once on a cluster; None = as many as fit.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.cpus < 0 or self.gpus < 0 or (self.workers is not None and self.workers < 1):
            raise InputError(f"resources {self}", "cpus and gpus of at least 0, workers of at least 1", "change them")


@runtime_checkable
class Stage(Protocol):
    """One step of the curation.

    Attributes:
        name: unique; also the folder of its results.
        version: raised whenever the same settings give other results.
        settings: a dataclass; other settings are other results.
        resources: what a worker needs.
    """

    name: str
    version: int
    settings: Any
    resources: Resources

    def __call__(self, record: Record) -> list[Record]:
        """What becomes of a record: itself with more known, its pieces, or itself rejected (`Record.reject`).

        Raises:
            Unusable: the file cannot be used; becomes a rejection.
        """
        ...


class Unusable(Exception):
    """A file or piece of footage that cannot be used; the message is the reason."""


def result_key(stage: Stage, record: Record) -> str:
    """Under which the result of `stage` on `record` is kept."""
    return digest(stage.name, stage.version, asdict(stage.settings), record.trail)


def run_stage(stage: Stage, record: Record, store: Store) -> list[Record]:
    """Records that `stage` makes of `record`: looked up, or made and kept.

    Whatever goes wrong with one record rejects that record; only a store that fails stops the run. Errors of the
    program are not kept: they are tried again next time.

    Raises:
        StoreError: results cannot be kept.
    """
    key = result_key(stage, record)
    known = store.get(stage.name, key, record)
    if known is not None:
        return known[0]
    started = time.perf_counter()
    try:
        made = stage(record)
    except Unusable as error:
        made = [record.reject(str(error))]
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 - no file may stop the run
        log.warning("%s failed on %s: %s", stage.name, record.name, error, exc_info=True)
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__} in {stage.name} ({where.name}, line {where.lineno}): {error}"
        return [replace(record.reject(reason), stage=stage.name, broken=True)]
    made = [
        replace(child, stage=stage.name, trail=digest(key, number), content=child.content or record.content)
        for number, child in enumerate(made)
    ]
    return store.put(stage.name, key, made, time.perf_counter() - started)
