"""Evaluation of the puppet suite: resumable, optionally in several processes; report and table."""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import platform
import time
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypedDict, Unpack

import torch

import bya_core
from bya_core.grid import TokenGrid
from bya_core.progress import Progress, ProgressCallback, ProgressTracker
from bya_core.weights.bundle import ModelBundle
from training.benchmark.gallery import Cell, VideoStore
from training.benchmark.puppet_suite import MEASURE, SHARES, VIDEO_NAMES, aggregate, scene_row
from training.benchmark.scenes import SceneSettings, suite_scene
from training.benchmark.tables import markdown_table, number
from training.benchmark.targets import (
    EvaluationTarget,
    GroundTruthTarget,
    ModelTarget,
    ReconstructionTarget,
    ShuffledTarget,
)

REFERENCE_TARGETS = {"truth": GroundTruthTarget, "shuffled": ShuffledTarget}
THRESHOLDS = {
    "half noise and below": 0.85,
    "noisiest, first frame": 0.6,
    "change on static": 0.02,
    "binding": 0.95,
    "binding swapped": 0.95,
    "identity": 0.9,
}
"""Required values on 256 mixed scenes; for the change of masks a maximum."""


@dataclass(frozen=True)
class Measurements:
    """What is measured of every scene, see `scene_row`."""

    router: bool = True
    generate: bool = True
    codec: bool = False

    @property
    def keys(self) -> set[str]:
        """Keys of a complete row."""
        videos = {"made", "drawn truth"} | ({"behind the codec"} if self.codec else set())
        return ({"router"} if self.router else set()) | (videos if self.generate else set())


@dataclass(frozen=True)
class SceneEvaluator:
    """Evaluates scenes of one target by index."""

    target: EvaluationTarget
    settings: SceneSettings
    measurements: Measurements
    references: dict[str, EvaluationTarget]
    videos: VideoStore | None = None

    @classmethod
    def create(
        cls,
        bundle: ModelBundle | None,
        settings: SceneSettings,
        measurements: Measurements,
        steps: int | None = None,
        reference: str = "truth",
        videos: VideoStore | None = None,
    ) -> SceneEvaluator:
        """Create an evaluator for a model, or for a key of `REFERENCE_TARGETS` if `bundle` is None."""
        target: EvaluationTarget
        if bundle is not None:
            target = ModelTarget(bundle, settings, SHARES, steps)
        else:
            grid = TokenGrid.from_pixels(settings.num_frames, settings.height, settings.width, space_factor=4)
            target = REFERENCE_TARGETS[reference](settings, SHARES, grid)
        references: dict[str, EvaluationTarget] = {"drawn truth": GroundTruthTarget(settings, SHARES, target.grid)}
        if measurements.codec and bundle is not None:
            references["behind the codec"] = ReconstructionTarget(bundle, settings, SHARES)
        return cls(target, settings, measurements, references, videos)

    def row(self, index: int) -> dict[str, Any]:
        return scene_row(
            self.target,
            suite_scene(self.settings, index),
            router=self.measurements.router,
            generate=self.measurements.generate,
            references=self.references,
            videos=self.videos,
        )


RowSource = Callable[[Sequence[int]], Iterator[dict[str, Any]]]
"""Evaluates scenes by index, in any order."""


class ReportOptions(TypedDict, total=False):
    """Options of `scene_report`.

    Args:
        previous: earlier report; its scenes are reused if model and settings are equal.
        save: called with the partial report after each scene.
        callback: progress per scene.
        row_source: evaluates scenes in other processes, see `in_processes`.
    """

    previous: dict[str, Any] | None
    save: Callable[[dict[str, Any]], object] | None
    callback: ProgressCallback | None
    row_source: RowSource | None


def puppet_report(evaluator: SceneEvaluator, **options: Unpack[ReportOptions]) -> dict[str, Any]:
    """Evaluate the missing scenes and aggregate all of them; options as of `scene_report`.

    Raises:
        InputError: the size does not fit the model.
    """
    start = time.perf_counter()
    settings, target = evaluator.settings, evaluator.target
    fixed = {"points": SHARES, "list": settings.version, "measure": MEASURE}
    described = {**asdict(settings), **fixed, **target.describe()}
    previous, complete = options.get("previous"), evaluator.measurements.keys
    before = previous["seconds"] if previous and known_rows(previous, described, settings, complete) else 0.0

    def summary(ordered: list[dict[str, Any]]) -> dict[str, Any]:
        seconds = round(before + time.perf_counter() - start, 1)
        return {"suite": "puppets", "model": target.name, **aggregate(ordered, target.points), "seconds": seconds}

    return scene_report(evaluator, described, summary, complete, **options)


def known_rows(
    previous: dict[str, Any] | None,
    described: dict[str, Any],
    settings: SceneSettings,
    complete: Set[str] = frozenset(),
) -> dict[int, dict[str, Any]]:
    """Rows of an earlier report with the settings `described` that have all keys in `complete`, by index."""
    if previous is None or comparable(previous["settings"]) != comparable(described):
        return {}
    known = {row["seed"] - settings.seed_base: row for row in previous.get("scenes", ())}
    return {index: row for index, row in known.items() if index < settings.scenes and complete <= row.keys()}


def scene_report(
    evaluator: RowEvaluator,
    described: dict[str, Any],
    summary: Callable[[list[dict[str, Any]]], dict[str, Any]],
    complete: Set[str] = frozenset(),
    *,
    previous: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], object] | None = None,
    callback: ProgressCallback | None = None,
    row_source: RowSource | None = None,
) -> dict[str, Any]:
    """Evaluate the scenes that an earlier report does not have, and report all.

    Args:
        evaluator: evaluates a scene by its index.
        described: settings of the report.
        summary: entries of the report that depend on the suite, from the rows in order.
        complete: keys that every row has.
        previous, save, callback, row_source: see `ReportOptions`.
    """
    settings, tracker = evaluator.settings, ProgressTracker(callback)
    rows = known_rows(previous, described, settings, complete)

    def report() -> dict[str, Any]:
        ordered = [rows[index] for index in sorted(rows)]
        seeds = [row["seed"] for row in ordered]
        common = {"settings": described, "seeds": seeds, "versions": versions(), "scenes": ordered}
        return {**summary(ordered), **common}

    missing = [index for index in range(settings.scenes) if index not in rows]
    tracker.report(Progress("Evaluating scenes", len(rows), settings.scenes))
    for row in row_source(missing) if row_source is not None else map(evaluator.row, missing):
        rows[row["seed"] - settings.seed_base] = row
        tracker.report(Progress("Evaluating scenes", len(rows), settings.scenes))
        if save is not None:
            save(report())
    return report()


def comparable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the number of scenes, as read from JSON and with the defaults of options added later."""
    return json.loads(json.dumps({"describe_motion": False} | settings | {"scenes": None}))


class RowEvaluator(Protocol):
    """Evaluates scenes by index."""

    @property
    def settings(self) -> SceneSettings: ...

    def row(self, index: int) -> dict[str, Any]: ...


_evaluator: RowEvaluator | None = None


def _init_worker(create: Callable[[], RowEvaluator], threads: int) -> None:
    global _evaluator
    torch.set_num_threads(threads)
    _evaluator = create()


def _worker_row(index: int) -> dict[str, Any]:
    assert _evaluator is not None
    return _evaluator.row(index)


def in_processes(create: Callable[[], RowEvaluator], processes: int, threads: int = 1) -> RowSource:
    """Evaluate scenes in several processes, which is faster than threads for small models.

    Args:
        create: creates the evaluator in each process; must be picklable.
        processes: number of processes.
        threads: CPU threads per process.
    """

    def rows(indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        if not indices:
            return
        context = multiprocessing.get_context("spawn")
        count = min(processes, len(indices))
        with ProcessPoolExecutor(count, context, _init_worker, (create, threads)) as pool:
            for future in as_completed([pool.submit(_worker_row, index) for index in indices]):
                yield future.result()

    return rows


def versions() -> dict[str, str]:
    """Versions of all packages that affect the results."""
    found = {"bya_core": bya_core.__version__, "python": platform.python_version()}
    for package in ("torch", "diffusers", "transformers", "numpy", "scipy"):
        found[package] = importlib.metadata.version(package)
    return found


def table(report: dict[str, Any]) -> str:
    """Format the main figures as text with Markdown tables."""
    router, generated = report["router"], report["generated"]
    parts = [f"{report['model']} on {len(report['seeds'])} held-out puppet scenes ({report['settings']['list']})"]
    if router is not None:
        parts.append(_router_table(router))
    if generated is None:
        return "\n\n".join(parts)
    by_first_frame = generated["with_first_frame"], generated["without_first_frame"]
    columns = (generated, *by_first_frame, report["ceiling"], report["codec_ceiling"])
    rows = {
        "mask IoU with pixels": ("mask_iou",),
        "binding": ("binding", "accuracy"),
        "binding swapped": ("binding_swapped", "accuracy"),
        "own speech, correlation": ("binding", "own"),
        "other speech, correlation": ("binding", "other"),
        "listener stillness": ("listener_stillness",),
        "identity": ("identity",),
    }
    parts.append(
        markdown_table(
            ["generated clips", "all", "first frame", "without", "truth", "codec", "required"],
            [
                [name, *(number(_lookup(column, path), 3) for column in columns), number(THRESHOLDS.get(name))]
                for name, path in rows.items()
            ],
        )
    )
    chance = number(generated["binding"]["chance"], 3)
    parts.append(f"chance: binding {chance}, identity {1 / report['settings']['references']:.3f}")
    if generated["by"]:
        groups = []
        for name, part in generated["by"].items():
            iou = None if router is None else router["headline_iou_by"][name]
            figures = iou, part["binding"]["accuracy"], part["binding_swapped"]["accuracy"], part["identity"]
            groups.append([name, str(part["scenes"]), *(number(value, 3) for value in figures)])
        parts.append(markdown_table(["group", "scenes", "router IoU", "binding", "swapped", "identity"], groups))
    return "\n\n".join(parts)


def _router_table(router: dict[str, Any]) -> str:
    rows: list[tuple[str, float | None, float | None, str]] = []
    for point in router["points"]:
        rows.append((str(point["share"]), point["with_first_frame"], point["without_first_frame"], "-"))
    half, noisiest = "half noise and below", "noisiest, first frame"
    truth = number(router["change_on_static_of_truth"], 3)
    change = f"at most {THRESHOLDS['change on static']} (truth {truth}, {router['static_scenes']} scenes)"
    rows += [
        (half, router["headline_with_first_frame"], router["headline_without_first_frame"], "-"),
        ("mean of both", router["headline_iou"], None, f"{THRESHOLDS[half]}"),
        (noisiest, router["noisiest_with_first_frame"], None, f"{THRESHOLDS[noisiest]}"),
        ("change on static people", router["change_on_static"], None, change),
    ]
    head = ["router IoU at noise", "with first frame", "without", "required"]
    return markdown_table(head, [[name, number(a, 3), number(b, 3), required] for name, a, b, required in rows])


def gallery_cells(report: dict[str, Any]) -> dict[str, dict[int, Cell]]:
    """Gallery captions of the saved videos: name -> seed -> cell."""
    cells: dict[str, dict[int, Cell]] = {}
    for name in ("made", "drawn truth"):
        for suffix, key in zip(VIDEO_NAMES, ("given", "swapped"), strict=True):
            rows = [row for row in report["scenes"] if name in row]
            cells[f"{name}, {suffix}"] = {row["seed"]: gallery_cell(row[name][key]) for row in rows}
    return cells


def gallery_cell(row: dict[str, Any]) -> Cell:
    """Gallery caption of one video: whether all mouths are bound correctly, and its figures."""
    evaluated = [n for n, flag in enumerate(row["judged"]) if flag]
    correct = all(row["follows"][n] == row["should_follow"][n] for n in evaluated)
    own = [row["correlation"][n][k] for n, k in enumerate(row["should_follow"]) if k >= 0]
    words = f"mask IoU {number(row['mask_iou'], 3)}, own speech {', '.join(f'{value:.2f}' for value in own)}"
    return {"good": correct if evaluated else None, "words": [words]}


def _lookup(column: dict[str, Any] | None, path: tuple[str, ...]) -> float | None:
    value: Any = column
    for key in path:
        value = None if value is None else value[key]
    return value
