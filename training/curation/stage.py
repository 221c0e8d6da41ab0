"""Base class of curation stages and the cached execution of one stage on one record."""

from __future__ import annotations

import logging
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any, ClassVar

from bya_core.errors import InputError
from bya_core.validation import Field, validated
from training.curation.models import Task, load_curation_model
from training.curation.record import Record, digest
from training.curation.store import Store, StoreError

log = logging.getLogger(__name__)


@validated
class Resources:
    """Resources of one worker of a stage on a Ray cluster.

    Args:
        cpus: CPU cores.
        gpus: fraction of a GPU.
        workers: number of parallel workers; None = as many as the cluster can hold.
    """

    cpus: Annotated[float, Field(ge=0)] = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    workers: Annotated[int, Field(ge=1)] | None = None


class Stage(ABC):
    """One step of the curation pipeline.

    Attributes:
        name: unique name; also the folder of its results.
        version: incremented whenever equal settings produce different results.
        models: tasks of the models it uses, and the names of the settings that select them.

    Args:
        settings: dataclass of options; part of the key of cached results.
        resources: resources of one worker.
    """

    name: ClassVar[str]
    version: int = 1
    models: Mapping[Task, str] = {}

    def __init__(self, settings: Any, resources: Resources | None = None) -> None:
        self.settings, self.resources = settings, resources or Resources()

    def model(self, task: Task) -> Any:
        """Load the selected model; cached per process. Raises InputError if it is unavailable."""
        return load_curation_model(task, getattr(self.settings, self.models[task]))

    def find_problems(self) -> list[InputError]:
        """Load all models and return what is missing, without raising."""
        problems = []
        for task, option in self.models.items():
            try:
                self.model(task)
            except InputError as error:
                name = getattr(self.settings, option).name
                prefix = f"{self.name}.{option} {name}"
                problems.append(InputError(f"{prefix}: {error.problem}", error.expected, error.hint))
        return problems

    def describe_models(self) -> str:
        """The models in use, such as "detector BlazeFace, identity color"; loads them."""
        parts = []
        for task, option in self.models.items():
            model, name = self.model(task), getattr(self.settings, option).name
            actual = getattr(model, "name", name)
            parts.append(f"{option} {name if actual == name else f'{name} ({actual})'}")
        return ", ".join(parts)

    @abstractmethod
    def __call__(self, record: Record) -> list[Record]:
        """Return the record with more measurements, its parts, or the rejected record.

        Raises:
            UnusableFootage: the file cannot be used; turned into a rejection.
        """


class MissingRequirements(InputError):
    """Everything that a run needs and does not find, one line each.

    Args:
        problems: at least one problem.
    """

    def __init__(self, problems: Sequence[InputError]) -> None:
        self.problems = list(problems)
        hint = "install what is missing, choose other models, or stop earlier with until (docs/how-to/curate.md)"
        super().__init__("; ".join(each.problem for each in problems), "all requirements of the run", hint)

    def __str__(self) -> str:
        count = len(self.problems)
        lines = [f"  - {each.problem}; expected {each.expected}; {each.hint}" for each in self.problems]
        return "\n".join([f"{count} requirement{'s' * (count > 1)} of this run not met:", *lines, self.hint + "."])


class UnusableFootage(Exception):
    """A file, or a part of it, cannot be used. The message is the reason of the rejection."""


def result_key(stage: Stage, record: Record) -> str:
    """Return the cache key of the result of `stage` on `record`."""
    return digest(stage.name, stage.version, asdict(stage.settings), record.lineage)


def run_stage(stage: Stage, record: Record, store: Store) -> list[Record]:
    """Apply a stage to a record, or load its cached result.

    Any error rejects this record only. Results of unexpected errors are not cached, so they are retried by the next
    run.

    Raises:
        StoreError: results cannot be saved.
    """
    key = result_key(stage, record)
    cached = store.get(stage.name, key, record)
    if cached is not None:
        return cached[0]
    started = time.perf_counter()
    try:
        results = stage(record)
    except UnusableFootage as error:
        results = [record.reject(str(error))]
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 - one bad file must not stop the run
        log.warning("%s failed on %s: %s", stage.name, record.name, error, exc_info=True)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__} in {stage.name} ({frame.name}, line {frame.lineno}): {error}"
        return [replace(record.reject(reason), stage=stage.name, failed=True)]
    results = [
        replace(child, stage=stage.name, lineage=digest(key, index), content=child.content or record.content)
        for index, child in enumerate(results)
    ]
    return store.put(stage.name, key, results, time.perf_counter() - started)
