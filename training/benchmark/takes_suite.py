"""Takes suite: how much of the gap between one take and the drawn truth the best of N takes closes.

Scenes without a first frame, in which all characters speak. All N takes are finished, so that one run has the result
for every number K of takes that are finished: of the K best by masks, the best by what the product measures in the
video. The figures are those of the puppet suite, which knows the ground truth:

- one take: mean over all takes of a scene, what a single seed gives on average;
- best of N: the chosen take;
- closed: (best - one) / (truth - one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Unpack

import numpy as np

from bya_core.pipelines.takes import Selection, Take, generate_takes, takes_cost
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle
from training.benchmark.gallery import VideoStore
from training.benchmark.puppet_report import ReportOptions, scene_report
from training.benchmark.puppet_suite import MEASURE, binding_score, evaluate_clip
from training.benchmark.scenes import SceneSettings, SuiteScene, draw, with_references
from training.benchmark.tables import markdown_table, number
from training.benchmark.targets import GeneratedVideo, GroundTruthTarget, ModelTarget

REQUIRED = 0.5
"""Share of the gap in binding that is to be closed with four takes."""

Row = dict[str, Any]


@dataclass(frozen=True)
class TakesEvaluator:
    """Evaluates `takes` takes of a scene by its index."""

    bundle: ModelBundle
    settings: SceneSettings
    takes: int
    steps: int | None = None
    videos: VideoStore | None = None

    @cached_property
    def target(self) -> ModelTarget:
        return ModelTarget(self.bundle, self.settings, (), self.steps)

    @cached_property
    def truth(self) -> GroundTruthTarget:
        return GroundTruthTarget(self.settings, (), self.target.grid)

    def scene(self, index: int) -> tuple[Scene, SuiteScene]:
        """Build the scene to generate and its ground truth. Scenes do not share seeds of takes."""
        seed = self.settings.seed_base + index
        clip = draw(self.settings, seed, "overlap", num_characters=self.settings.num_characters(index))
        truth = with_references(self.settings, clip, first_frame=False)
        scene = self.target.scene(truth, clip.matrix, first_frame=False)
        return replace(scene, sampling=replace(scene.sampling, seed=seed * self.takes)), truth

    def row(self, index: int) -> Row:
        """Figures of the drawn truth and of every take, the best take first."""
        scene, truth = self.scene(index)
        made = generate_takes(scene, self.bundle, Selection(self.takes, self.takes))
        matrix, grid = truth.clip.matrix, self.target.grid
        rows = []
        for take, video in zip(made.rows, made.videos, strict=True):
            clip = GeneratedVideo(video.frames.numpy(), video.masks.numpy())
            rows.append({**take.row(), "made": evaluate_clip(clip, truth, matrix, grid).row()})
            if self.videos is not None:
                self.videos.save(truth.clip, f"place {len(rows)}", clip.frames)
        (drawn,) = self.truth.generate(truth, [matrix])
        return {
            "seed": truth.clip.seed,
            "characters": len(truth.clip.portraits),
            "chosen": {str(keep): chosen(made.rows, keep) for keep in range(1, self.takes + 1)},
            "takes": rows,
            "truth": evaluate_clip(drawn, truth, matrix, grid).row(),
        }


def chosen(takes: Sequence[Take], keep: int) -> int:
    """Seed of the best of the `keep` best takes by masks."""
    by_seed = sorted(takes, key=lambda take: take.seed)
    kept = sorted(by_seed, key=lambda take: take.layout.rank, reverse=True)[:keep]
    return max(kept, key=lambda take: take.rank).seed


def takes_report(evaluator: TakesEvaluator, **options: Unpack[ReportOptions]) -> dict[str, Any]:
    """Evaluate the missing scenes and aggregate all of them; options as of `scene_report`."""
    settings = evaluator.settings
    described = {**asdict(settings), **evaluator.target.describe(), "takes": evaluator.takes, "measure": MEASURE}
    scene, _ = evaluator.scene(0)
    costs = {}
    for keep in range(1, evaluator.takes + 1):
        calls, single = takes_cost(scene, Selection(evaluator.takes, keep))
        costs[str(keep)] = round(calls / single, 2)
    return scene_report(evaluator, described, lambda rows: {"suite": "takes", **aggregate(rows, costs)}, **options)


def aggregate(rows: Sequence[Row], costs: dict[str, float]) -> dict[str, Any]:
    """Figures of one take, of the best of N for each K, and of the truth.

    Args:
        rows: results of `TakesEvaluator.row`.
        costs: largest number of transformer calls for each K, relative to one video.
    """
    one = figures([take["made"] for row in rows for take in row["takes"]])
    truth = figures([row["truth"] for row in rows])
    best = {}
    for keep, cost in costs.items():
        takes = [next(take for take in row["takes"] if take["seed"] == row["chosen"][keep]) for row in rows]
        found = figures([take["made"] for take in takes])
        best[keep] = {**found, "closed": closed(one["binding"], found["binding"], truth["binding"]), "cost": cost}
    return {"one take": one, "best": best, "truth": truth, "required": REQUIRED}


def figures(rows: Sequence[Row]) -> Row:
    """Binding, correlation with the own voice, identity and IoU of the masks over rows of `ClipMetrics.row`."""
    score = binding_score(rows)
    return {
        "binding": round(float(score.accuracy), 4),
        "own": round(float(score.own), 4),
        "identity": round(float(np.mean([correct for row in rows for correct in row["identity"]])), 4),
        "mask_iou": round(float(np.mean([row["mask_iou"] for row in rows])), 4),
    }


def closed(one: float, best: float, truth: float) -> float | None:
    """Share of the gap between one take and the truth that is closed; None without a gap."""
    return round((best - one) / (truth - one), 3) if truth > one else None


def takes_table(report: dict[str, Any]) -> str:
    """Format the figures as text with a Markdown table."""
    takes = report["settings"]["takes"]
    columns = {"one take": {**report["one take"], "cost": 1.0}}
    columns |= {f"best of {takes}, {keep} finished": column for keep, column in report["best"].items()}
    columns |= {"drawn truth": report["truth"]}
    keys = ("binding", "closed", "own", "identity", "mask_iou")
    rows = []
    for name, column in columns.items():
        rows.append([name, *(number(column.get(key), 3) for key in keys), number(column.get("cost"), 1)])
    head = ["", "binding", "gap closed", "own voice, correlation", "identity", "mask IoU", "cost, at most"]
    lines = [f"{len(report['scenes'])} scenes without a first frame", "", markdown_table(head, rows), ""]
    lines.append(f"required with 4 takes: {report['required']} of the gap in binding closed")
    return "\n".join(lines)
