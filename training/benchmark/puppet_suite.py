"""The puppet suite: are people where the router says, do mouths follow their voices, are they themselves?

Every figure is computed from pixels, masks and sound; the drawn truth is used for the router's masks on
held-out clips only. What is measured:

- router: IoU of the router's own masks (in every layer, nothing forced) with the truth, on held-out clips
  noised to points of the sampling schedule, with and without first frame. A token belongs to a character that
  covers at least half of it. The headline is the mean over the points at half noise and below.
- generated: on generated clips, IoU of the masks that acted with the regions segmented from the pixels;
  binding = each mouth, measured inside its character's region, correlates most with the loudness of the voice
  it was given, over the frames in which that character is not hidden behind another one; the same with the voices
  swapped, from the same noise; identity = the colours where the masks
  place a character are nearest to its own portrait among K.

- steadiness: mean |M_t - M_t-1| of the router's soft masks on people who keep still (clips drawn with the motion
  "still"), at half noise and below, beside the same of the drawn truth, which sways by half a pixel.

Identity looks where the masks say and not where the segmentation says: the segmentation looks for the colours
of the portrait, so whatever it finds would resemble it.

Everything is measured scene by scene (`scene_row`) and pooled from those rows alone (`pooled_report`), so that a
measurement can be stopped, gone on with, and shared between processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bya_core.evaluation import binding as bindings
from bya_core.evaluation import mask_metrics as masking
from bya_core.grid import TokenGrid
from bya_core.io.color import color_descriptor, histogram_similarity
from bya_core.toy.mouth import in_view, mouth_opening
from bya_core.toy.segmentation import foreground, segment_characters
from training.benchmark.page import Keeper
from training.benchmark.scenes import SceneSettings, SuiteScene, suite_scene
from training.benchmark.subjects import Made, NoisePoint, Subject
from training.puppets.looks import MOUTH_RGB

SHARES = (0.9, 0.7, 0.5, 0.3, 0.1)
HALF = 0.5
MEASURE = 2  # raised when the same videos get other figures; since 2 a mouth counts only while it can be seen
KEPT = ("voices as asked", "voices swapped")

Tick = Callable[[str], object]
"""Called before each piece of work with what it is."""
Rows = Sequence[dict[str, Any]]
"""What `scene_row` says of several scenes."""


@dataclass(frozen=True)
class Judged:
    """One generated clip: masks against pixels, binding, stillness of listeners, identity and likeness per character.

    `flicker` is a share of the area of the masks cut at one half, `change` the mean |M_t - M_t-1| of each soft one.
    """

    mask_iou: float
    swap_rate: float
    flicker: float
    binding: bindings.BindingResult
    stillness: float
    identity: list[bool]
    likeness: list[float]
    change: np.ndarray

    def row(self) -> dict[str, Any]:
        """Figures of this clip for the record."""
        return {
            "mask_iou": _round(self.mask_iou),
            "swap_rate": _round(self.swap_rate),
            "flicker": _round(self.flicker),
            "change": np.round(self.change, 5).tolist(),
            "correlation": np.round(self.binding.correlation, 3).tolist(),
            "follows": self.binding.chosen.tolist(),
            "should_follow": self.binding.target.tolist(),
            "judged": self.binding.judged.tolist(),
            "stillness": _round(self.stillness),
            "identity": self.identity,
            "likeness": np.round(self.likeness, 4).tolist(),
        }


def judge(made: Made, scene: SuiteScene, matrix: np.ndarray, grid: TokenGrid, overlapping: bool = False) -> Judged:
    """Judge a generated clip from its pixels, its masks and the voices.

    `overlapping`: masks that claim the same token both have it (boxes); otherwise the stronger claim wins.
    """
    clip = scene.clip
    owned = made.masks >= 0.5 if overlapping else masking.to_labels(made.masks)
    regions = segment_characters(made.frames, clip.portraits, shared_rgb=MOUTH_RGB)
    seen = grid.pixels_to_tokens(torch.from_numpy(regions)).numpy() >= 0.5
    opening = mouth_opening(made.frames, regions, MOUTH_RGB)
    target = bindings.targets_of(matrix)
    likeness = _likeness(made.frames, owned, scene.references, grid)
    return Judged(
        mask_iou=float(np.nan_to_num(masking.mean_iou(owned, seen))),
        swap_rate=masking.swap_rate(owned, seen),
        flicker=masking.flicker(owned),
        binding=bindings.bind(opening, scene.loudness, target, visible=in_view(regions)),
        stillness=bindings.stillness(opening, scene.loudness, target),
        # a mask that claims nothing is like nobody
        identity=[bool(row[0] > row[1:].max()) for row in likeness],
        likeness=[float(row[0]) for row in likeness],
        change=masking.change(made.masks),
    )


def _likeness(frames: np.ndarray, owned: np.ndarray, references: np.ndarray, grid: TokenGrid) -> list[np.ndarray]:
    """How like each of its references [N, K, ...] the colours inside each mask [N, T, h, w] are: N times [K]."""
    size = (frames.shape[1], frames.shape[2])
    places = grid.tokens_to_pixels(torch.from_numpy(owned).float(), size, mode="nearest").numpy() >= 0.5
    found = []
    for place, people in zip(places, references, strict=True):
        known = np.stack([color_descriptor(person, foreground(person)) for person in people])
        found.append(histogram_similarity(color_descriptor(frames, place), known))
    return found


def scene_row(
    subject: Subject,
    scene: SuiteScene,
    *,
    router: bool = True,
    generate: bool = True,
    drawn: Mapping[str, Subject] | None = None,
    tick: Tick | None = None,
    keeper: Keeper | None = None,
) -> dict[str, Any]:
    """Everything that is measured of one scene, ready for JSON.

    Args:
        router: measure the router's masks on the scene's own clip.
        generate: make and judge the scene, with the voices given and swapped (alike where there is one voice).
        drawn: further subjects whose videos are judged in the same way, by the name of their figures.
        tick: called before each piece of work.
        keeper: keeps the videos.
    """
    clip = scene.clip
    row: dict[str, Any] = {
        "seed": clip.seed,
        "characters": len(clip.portraits),
        "first_frame": scene.first_frame,
        "motion": clip.motion,
    }
    if router:
        if tick is not None:
            tick(f"router masks of scene {clip.seed}")
        row["router"] = router_row(subject, scene)
    if generate:
        for name, maker in {"made": subject, **(drawn or {})}.items():
            if tick is not None:
                tick(f"{name}: scene {clip.seed}, voices as given and swapped")
            row[name] = made_row(maker, scene, subject.grid, keeper, name)
    return row


def router_row(subject: Subject, scene: SuiteScene) -> dict[str, Any]:
    """IoU with the truth [points, layers] and `change` [points] of the router's own masks; see the top of this file."""
    soft = subject.grid.pixels_to_tokens(torch.from_numpy(scene.clip.masks)).numpy()
    row: dict[str, Any] = {"change of truth": round(float(masking.change(soft).mean()), 5)}
    for name, first_frame in (("with", True), ("without", False)):
        found = [subject.find(scene, point, first_frame) for point in subject.points]
        row[f"iou {name}"] = [
            [round(float(masking.mean_iou(masking.to_labels(layer), soft >= 0.5)), 5) for layer in layers]
            for layers in found
        ]
        row[f"change {name}"] = [round(float(masking.change(layers).mean()), 5) for layers in found]
    return row


def made_row(
    subject: Subject, scene: SuiteScene, grid: TokenGrid, keeper: Keeper | None = None, name: str = "made"
) -> dict[str, Any]:
    """The scene made with its voices "given" and "swapped", both judged."""
    given, swapped = scene.clip.matrix, scene.swapped
    matrices = [given] if np.array_equal(given, swapped) else [given, swapped]
    clips = subject.make_all(scene, matrices)
    judged = [judge(made, scene, matrix, grid).row() for made, matrix in zip(clips, matrices, strict=True)]
    if keeper is not None:
        for made, word in zip(clips, KEPT, strict=False):
            keeper.keep(scene.clip, f"{name}, {word}", made.frames)
    return {"given": judged[0], "swapped": judged[-1]}


def pooled_report(rows: Rows, points: Sequence[NoisePoint]) -> dict[str, Any]:
    """Figures over all scenes, and apart by first frame, number of characters and motion.

    Args:
        rows: from `scene_row`, all of the same kind.
        points: of the subject that was measured.
    """
    report: dict[str, Any] = {"router": pooled_router(rows, points) if "router" in rows[0] else None}
    for name, key in (("generated", "made"), ("ceiling", "drawn truth"), ("codec_ceiling", "behind the codec")):
        report[name] = _apart(rows, lambda part, key=key: pooled_made(part, key)) if key in rows[0] else None
    if report["router"] is not None:
        groups = _groups(rows)
        report["router"]["headline_iou_by"] = {
            name: pooled_router(part, points)["headline_iou"] for name, part in groups.items()
        }
    return report


def _groups(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """Scenes by number of characters and by motion; nothing where all are alike."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, form in (("characters", "n = {}"), ("motion", "{}")):
        values = sorted({row[key] for row in rows})
        if len(values) > 1:
            groups |= {form.format(value): [row for row in rows if row[key] == value] for value in values}
    return groups


def _apart(rows: Rows, pool: Callable[[Rows], dict[str, Any]]) -> dict[str, Any]:
    figures = pool(rows)
    for name, flag in (("with_first_frame", True), ("without_first_frame", False)):
        part = [row for row in rows if row["first_frame"] is flag]
        figures[name] = pool(part) if part else None
    figures["by"] = {name: pool(part) for name, part in _groups(rows).items()}
    return figures


def pooled_router(rows: Rows, points: Sequence[NoisePoint]) -> dict[str, Any]:
    """Means over scenes of what `router_row` says."""
    per_layer = {key: np.array([row["router"][f"iou {key}"] for row in rows]) for key in ("with", "without")}
    mean = {key: np.nanmean(values.mean(axis=2), axis=0) for key, values in per_layer.items()}
    late = [k for k, point in enumerate(points) if point.share <= HALF]
    headline = {key: float(values[late].mean()) if late else float("nan") for key, values in mean.items()}
    still = [row["router"] for row in rows if row["motion"] == "still"]
    change = [np.take(row[f"change {key}"], late) for row in still for key in ("with", "without")]
    return {
        "headline_iou": _round((headline["with"] + headline["without"]) / 2),
        "headline_with_first_frame": _round(headline["with"]),
        "headline_without_first_frame": _round(headline["without"]),
        "noisiest_with_first_frame": _round(mean["with"][int(np.argmax([point.share for point in points]))]),
        "mean_over_all_points": _round((mean["with"].mean() + mean["without"].mean()) / 2),
        "points": [
            {**asdict(point), **{f"{key}_first_frame": _round(mean[key][k]) for key in ("with", "without")}}
            for k, point in enumerate(points)
        ],
        "per_layer": [_round(value) for value in np.nanmean([*per_layer.values()], axis=(0, 1, 2))],
        "change_on_static": _round(np.mean(change)) if change else None,
        "change_on_static_of_truth": _round(np.mean([row["change of truth"] for row in still])) if still else None,
        "static_scenes": len(still),
    }


def pooled_made(rows: Rows, key: str) -> dict[str, Any]:
    """Means over scenes (stillness: median) of what `made_row` says; `key` = whose videos."""
    given, swapped = ([row[key][name] for row in rows] for name in ("given", "swapped"))
    identities = [right for row in given for right in row["identity"]]
    stillness = [row["stillness"] for row in given if row["stillness"] is not None]
    return {
        "mask_iou": _round(np.mean([row["mask_iou"] for row in given])),
        "mask_swap_rate": _round(np.mean([row["swap_rate"] for row in given])),
        "mask_flicker": _round(np.mean([row["flicker"] for row in given])),
        "mask_change": _round(np.mean([value for row in given for value in row["change"]])),
        "binding": _binding(given),
        "binding_swapped": _binding(swapped),
        # a ratio, so the median: one scene whose speaker keeps still too would spoil a mean
        "listener_stillness": _round(np.median(stillness)) if stillness else None,
        "identity": _round(np.mean(identities)),
        "likeness": _round(np.mean([value for row in given for value in row["likeness"]])),
        "identities_judged": len(identities),
        "scenes": len(rows),
    }


def _binding(rows: Rows) -> dict[str, Any]:
    score = bindings.score(
        bindings.BindingResult(*(np.array(row[key]) for key in ("correlation", "should_follow", "judged")))
        for row in rows
    )
    return {name: _round(value) for name, value in asdict(score).items()}


def all_scenes(settings: SceneSettings) -> list[SuiteScene]:
    """The scenes of the suite, in order."""
    return [suite_scene(settings, index) for index in range(settings.scenes)]


def _round(value: Any) -> float | int | None:
    """Four digits; counts as they are; None for what could not be measured."""
    if isinstance(value, int):
        return value
    return round(float(value), 4) if np.isfinite(value) else None
