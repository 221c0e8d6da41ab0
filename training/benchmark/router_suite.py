"""Router suite: source, shape and motion of the masks.

Repeats the paper's ablations (sec. 5.4.1, bounding boxes against fine masks; sec. 5.4.2, static 2D masks against 3D
masks) for every router on static, moving and crossing characters. Every scene has a first frame (required by the pre
router) and all characters speak; in every other scene the speeches are swapped. All variants start from the same noise
and are evaluated from pixels, as in the puppet suite.

Variants with the same router share its run, so that only the masks differ; the reported time includes the whole run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from bya_core.config import BackgroundAudio, RefineConfig, Region, RouterConfig
from bya_core.errors import InputError
from bya_core.masks import time_union, to_boxes
from bya_core.pipelines.prepare import prepare
from bya_core.pipelines.sample import denoise_latents
from bya_core.progress import Progress, ProgressCallback, ProgressTracker
from bya_core.routing.refine import refine
from bya_core.routing.result import Routing
from bya_core.routing.route import predict_masks
from bya_core.sampling.conditions import Prepared
from training.benchmark.baselines import Baseline, generate_baseline
from training.benchmark.gallery import VideoStore
from training.benchmark.puppet_report import comparable
from training.benchmark.puppet_suite import binding_score, evaluate_clip
from training.benchmark.scenes import MOTIONS, SuiteScene, router_scene
from training.benchmark.tables import markdown_table, number
from training.benchmark.targets import GeneratedVideo, GroundTruthTarget, ModelTarget, decode_clips


@dataclass(frozen=True)
class RouterVariant:
    """One variant of routing.

    Args:
        router: source of the masks; "truth" = evaluate the ground truth (upper bound).
        boxes: replace each mask by its bounding box.
        static: 2D masks, the union over time; otherwise 3D masks.
        forced: fix the masks for the rest of the run; False = the intra router continues to predict them.
        refine: options of refinement, applied first.
        region: region of the pre router around a face.
        background_audio: audio that background tokens attend to.
        baseline: use a baseline instead, see `baselines`; all other options are ignored.
    """

    router: Literal["intra", "post", "pre", "truth"]
    boxes: bool = False
    static: bool = False
    forced: bool = True
    refine: RefineConfig | None = None
    region: Region = "head"
    background_audio: BackgroundAudio = "model"
    baseline: Baseline | None = None

    @property
    def routing(self) -> RouterConfig:
        """Router options; variants with equal options share a run."""
        mode = "intra" if self.router == "truth" else self.router
        return RouterConfig(mode=mode, region=self.region, background_audio=self.background_audio)

    def apply(self, routing: Routing) -> Routing:
        """Transform the masks of the router."""
        if not self.forced:
            return routing
        if self.refine is not None:
            routing = refine(routing, self.refine)
        masks = routing.masks
        if self.static:
            masks = time_union(masks)
        if self.boxes:
            masks = to_boxes(masks)
        return routing.with_masks(masks)


VARIANTS: dict[str, RouterVariant] = {
    "intra": RouterVariant("intra", forced=False),
    "intra, fine 3D": RouterVariant("intra"),
    "intra, fine 3D, refined": RouterVariant("intra", refine=RefineConfig()),
    "intra, fine 2D": RouterVariant("intra", static=True),
    "intra, box 3D": RouterVariant("intra", boxes=True),
    "intra, box 2D": RouterVariant("intra", boxes=True, static=True),
    "post, fine 3D": RouterVariant("post"),
    "post, fine 2D": RouterVariant("post", static=True),
    "post, box 3D": RouterVariant("post", boxes=True),
    "post, box 2D": RouterVariant("post", boxes=True, static=True),
    "pre, head 2D": RouterVariant("pre", static=True),
    "pre, box 2D": RouterVariant("pre", static=True, region="box"),
    "drawn truth": RouterVariant("truth"),
}
"""Variants of the suite "routers". Masks of the pre router are static."""

BACKGROUND_VARIANTS: dict[str, RouterVariant] = {
    "intra, background hears everybody": RouterVariant("intra", forced=False, background_audio="all"),
    "intra, background hears nobody": RouterVariant("intra", forced=False, background_audio="none"),
}

BASELINES: dict[str, RouterVariant] = {
    "concat": RouterVariant("intra", baseline="concat"),
    "mixed": RouterVariant("intra", baseline="mixed"),
    "boxes": RouterVariant("pre", static=True, region="box"),
    "halves": RouterVariant("intra", baseline="halves"),
    "ingredients-style": RouterVariant("intra", baseline="tokens"),
    "pre": VARIANTS["pre, head 2D"],
    "post": VARIANTS["post, fine 3D"],
    "intra": VARIANTS["intra"],
    "drawn truth": VARIANTS["drawn truth"],
}
"""Variants of the suite "baselines"."""

ALL_VARIANTS = VARIANTS | BACKGROUND_VARIANTS


@dataclass
class _Cost:
    """Number of transformer calls and CPU seconds."""

    calls: int = 0
    seconds: float = 0.0

    @contextmanager
    def measure(self, transformer: torch.nn.Module) -> Iterator[None]:
        def count(*_: Any) -> None:
            self.calls += 1

        hook, start = transformer.register_forward_pre_hook(count), time.process_time()
        try:
            yield
        finally:
            hook.remove()
            self.seconds += time.process_time() - start


_RouterRun = tuple[Prepared, Routing, _Cost]


def _variant_rows(
    target: ModelTarget, scene: SuiteScene, variants: dict[str, RouterVariant], videos: VideoStore | None
) -> Iterator[dict[str, Any]]:
    matrix, bundle = scene.clip.matrix, target.bundle
    runs: dict[RouterConfig, _RouterRun] = {}  # one per router
    for name, variant in variants.items():
        row = {"seed": scene.clip.seed, "motion": scene.clip.motion, "way": name}
        cost = _Cost()
        if variant.router == "truth":
            video = _ground_truth(target, scene)
        elif variant.baseline is not None:
            with cost.measure(bundle.transformer):
                video = generate_baseline(variant.baseline, target, scene, matrix)
        else:
            try:
                if variant.routing not in runs:
                    runs[variant.routing] = _run_router(target, scene, variant.routing)
            except InputError as error:  # the pre router did not find every character
                yield row | {"failed": str(error)}
                continue
            prepared, routing, router_cost = runs[variant.routing]
            cost = replace(router_cost)
            with cost.measure(bundle.transformer):
                latents, masks = denoise_latents(prepared, variant.apply(routing), bundle, ProgressTracker())
                video = GeneratedVideo(decode_clips(bundle, [latents])[0], masks.numpy())
        if videos is not None:
            videos.save(scene.clip, name, video.frames)
        metrics = evaluate_clip(video, scene, matrix, target.grid, overlapping=True)
        own = [metrics.binding.correlation[n, k] for n, k in enumerate(metrics.binding.target) if k >= 0]
        yield {
            **row,
            **metrics.row(),
            "flicker": round(metrics.flicker, 4),
            "own": round(float(np.mean(own)), 4),
            "calls": cost.calls,
            "seconds": round(cost.seconds, 2),
        }


def _run_router(target: ModelTarget, scene: SuiteScene, config: RouterConfig) -> _RouterRun:
    cost = _Cost()
    with cost.measure(target.bundle.transformer):
        prepared = prepare(target.scene(scene, scene.clip.matrix, scene.first_frame, config), target.bundle)
        routing = predict_masks(prepared, target.bundle)
    return prepared, routing, cost


def _ground_truth(target: ModelTarget, scene: SuiteScene) -> GeneratedVideo:
    """The ground truth with its masks; mouths are redrawn for swapped speeches."""
    own = np.eye(len(scene.clip.portraits), dtype=np.float32)
    unswapped = replace(scene, clip=replace(scene.clip, matrix=own))
    return GroundTruthTarget(target.settings, (), target.grid).generate(unswapped, [scene.clip.matrix])[0]


def router_report(
    target: ModelTarget,
    variants: dict[str, RouterVariant],
    previous: dict[str, Any] | None = None,
    save: Callable[[dict[str, Any]], object] | None = None,
    callback: ProgressCallback | None = None,
    table: dict[str, RouterVariant] = ALL_VARIANTS,
    videos: VideoStore | None = None,
) -> dict[str, Any]:
    """Evaluate variants; the result is JSON-serializable.

    Args:
        target: model.
        variants: variants to evaluate.
        previous: earlier report of the same model and settings; its rows are reused and included.
        save: called with the partial report after each scene.
        callback: progress per clip.
        table: all variants, in order.
        videos: saves the videos.
    """
    settings, tracker = {**asdict(target.settings), **target.describe()}, ProgressTracker(callback)
    reusable = previous is not None and comparable(previous["settings"]) == comparable(settings)
    rows = {(row["seed"], row["way"]): row for row in (previous.get("rows", ()) if previous and reusable else ())}
    order = list(table)

    def report() -> dict[str, Any]:
        ordered = sorted(rows.values(), key=lambda row: (order.index(row["way"]), row["seed"]))
        return {
            "suite": "baselines" if table is BASELINES else "routers",
            "model": target.name,
            "summary": summary(ordered),
            "settings": settings,
            "ways": {name: asdict(table[name]) for name in order if any(row["way"] == name for row in ordered)},
            "rows": ordered,
        }

    total = target.settings.scenes * len(variants)
    for index in range(target.settings.scenes):
        seed = target.settings.seed_base + index
        missing = {name: variant for name, variant in variants.items() if (seed, name) not in rows}
        if not missing:
            continue
        first = (index + 1) * len(variants) - len(missing)
        scene_rows = _variant_rows(target, router_scene(target.settings, index), missing, videos)
        for step, row in enumerate(scene_rows, first + 1):
            rows[seed, row["way"]] = row
            tracker.report(Progress(f"{row['way']}, scene {seed}", step, total))
        if save is not None:
            save(report())
    return report()


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Figures per variant, over all scenes and by motion."""
    parts: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        for part in ("all", row["motion"]):
            parts.setdefault(row["way"], {}).setdefault(part, []).append(row)
    return {
        name: {part: aggregate_rows(selected) for part, selected in by_part.items()} for name, by_part in parts.items()
    }


def aggregate_rows(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over scenes; binding over all evaluated mouths. Failed scenes are counted only."""
    failed = sum("failed" in row for row in rows)
    rows = [row for row in rows if "failed" not in row]
    if not rows:
        return {"scenes": 0, "failed": failed}

    def mean(key: str) -> float:
        return float(np.mean([row[key] for row in rows]))

    figures = {
        **{key: mean(key) for key in ("mask_iou", "swap_rate", "flicker")},
        **{f"binding {key}": value for key, value in asdict(binding_score(rows)).items()},
        "own": mean("own"),
        "identity": float(np.mean([correct for row in rows for correct in row["identity"]])),
        "likeness": float(np.mean([value for row in rows for value in row.get("likeness", [np.nan])])),
        **{key: mean(key) for key in ("calls", "seconds")},
    }
    return {"scenes": len(rows), "failed": failed} | {
        key: round(float(value), 4) if np.isfinite(value) else None for key, value in figures.items()
    }


def router_table(report: dict[str, Any]) -> str:
    """Format the figures as a Markdown table."""
    head = ["variant", "mask IoU", *MOTIONS, "binding", *MOTIONS, "own / other", "swaps", "identity", "likeness"]
    rows = []
    for name, parts in report["summary"].items():
        overall = parts["all"]
        if not overall["scenes"]:
            continue
        cells = [
            number(parts.get(p, {}).get(key)) for key in ("mask_iou", "binding accuracy") for p in ("all", *MOTIONS)
        ]
        cells.append(f"{number(overall['own'])} / {number(overall['binding other'])}")
        cells += [number(overall.get(key)) for key in ("swap_rate", "identity", "likeness")]
        rows.append([name, *cells, number(overall["calls"], 0), number(overall["seconds"], 1)])
    return markdown_table([*head, "calls", "seconds"], rows)
