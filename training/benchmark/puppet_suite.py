"""Metrics of the puppet suite: router masks, audio-visual binding and identity.

All metrics are computed from pixels, masks and audio; the ground truth is used for the router masks on held-out clips
only.

- router: IoU of the predicted masks (of every layer, without given masks) with the ground truth, on held-out clips with
  noise at several points of the sampling schedule, with and without first frame. A token belongs to a character that
  covers at least half of it. The headline is the mean over the points at half noise and below.
- generated: on generated clips, IoU of the masks used with the regions segmented from the pixels. Binding: a mouth,
  measured inside its character's region, correlates most with the loudness of its assigned speech, over the frames in
  which the character is not occluded; the same with swapped speeches and equal noise. Identity: the colors inside a
  character's mask are closest to its own portrait among K.
- change: mean |M_t - M_t-1| of the router's soft masks for static characters (clips with the motion "still"), at half
  noise and below, compared with that of the ground truth, which sways by half a pixel.

Identity is measured inside the masks and not inside the segmented regions, because the segmentation searches for the
colors of the portrait and its result would always resemble it.

Everything is measured per scene (`scene_row`) and aggregated from these rows alone (`aggregate`), so that an evaluation
can be resumed and distributed over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from bya_core.evaluation import binding as bindings
from bya_core.evaluation import mask_metrics as masking
from bya_core.grid import TokenGrid
from bya_core.io.color import color_descriptor, histogram_similarity
from bya_core.toy.mouth import in_view, mouth_opening
from bya_core.toy.segmentation import foreground, segment_characters
from training.benchmark.gallery import VideoStore
from training.benchmark.scenes import SuiteScene
from training.benchmark.targets import EvaluationTarget, GeneratedVideo, NoisePoint
from training.puppets.looks import MOUTH_RGB

SHARES = (0.9, 0.7, 0.5, 0.3, 0.1)
MEASURE = 2  # version of the metrics; since 2, a mouth is measured only while it is visible
VIDEO_NAMES = ("assigned speeches", "swapped speeches")

Rows = Sequence[dict[str, Any]]
"""Results of `scene_row`."""


@dataclass(frozen=True)
class ClipMetrics:
    """Metrics of one generated clip.

    Args:
        mask_iou: IoU of the masks with the segmented regions.
        swap_rate: fraction of tokens assigned to another character.
        flicker: fraction of the area of the binary masks that changes per latent frame.
        binding: correlation of mouths and speeches.
        stillness: mouth motion of listeners relative to speakers.
        identity: per character, whether its portrait is retrieved.
        likeness: per character, similarity to its portrait.
        change: per character, mean |M_t - M_t-1| of the soft mask.
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
        """JSON-serializable values."""
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


def evaluate_clip(
    video: GeneratedVideo, scene: SuiteScene, matrix: np.ndarray, grid: TokenGrid, overlapping: bool = False
) -> ClipMetrics:
    """Compute the metrics of a clip generated with an audio-character matrix [M, N].

    Args:
        overlapping: whether a token may belong to several characters (boxes); otherwise the largest value wins.
    """
    clip = scene.clip
    owned = video.masks >= 0.5 if overlapping else masking.to_labels(video.masks)
    regions = segment_characters(video.frames, clip.portraits, shared_rgb=MOUTH_RGB)
    visible = grid.pixels_to_tokens(torch.from_numpy(regions)).numpy() >= 0.5
    opening = mouth_opening(video.frames, regions, MOUTH_RGB)
    target = bindings.targets_of(matrix)
    likeness = _reference_similarity(video.frames, owned, scene.references, grid)
    return ClipMetrics(
        mask_iou=float(np.nan_to_num(masking.mean_iou(owned, visible))),
        swap_rate=masking.swap_rate(owned, visible),
        flicker=masking.flicker(owned),
        binding=bindings.bind(opening, scene.loudness, target, visible=in_view(regions)),
        stillness=bindings.stillness(opening, scene.loudness, target),
        identity=[bool(row[0] > row[1:].max()) for row in likeness],  # False for an empty mask
        likeness=[float(row[0]) for row in likeness],
        change=masking.change(video.masks),
    )


def _reference_similarity(
    frames: np.ndarray, owned: np.ndarray, references: np.ndarray, grid: TokenGrid
) -> list[np.ndarray]:
    """Color similarity of each masked region [N, T, h, w] to its references [N, K, ...]: N arrays [K]."""
    size = (frames.shape[1], frames.shape[2])
    regions = grid.tokens_to_pixels(torch.from_numpy(owned).float(), size, mode="nearest").numpy() >= 0.5
    similarities = []
    for region, portraits in zip(regions, references, strict=True):
        known = np.stack([color_descriptor(portrait, foreground(portrait)) for portrait in portraits])
        similarities.append(histogram_similarity(color_descriptor(frames, region), known))
    return similarities


def scene_row(
    target: EvaluationTarget,
    scene: SuiteScene,
    *,
    router: bool = True,
    generate: bool = True,
    references: Mapping[str, EvaluationTarget] | None = None,
    videos: VideoStore | None = None,
) -> dict[str, Any]:
    """Measure one scene; the result is JSON-serializable.

    Args:
        router: evaluate the router masks on the scene's own clip.
        generate: generate the scene with given and swapped speeches and evaluate the videos.
        references: further targets whose videos are evaluated, by the key of their results.
        videos: saves the videos.
    """
    clip = scene.clip
    row: dict[str, Any] = {
        "seed": clip.seed,
        "characters": len(clip.portraits),
        "first_frame": scene.first_frame,
        "motion": clip.motion,
    }
    if router:
        row["router"] = router_row(target, scene)
    if generate:
        for name, source in {"made": target, **(references or {})}.items():
            row[name] = video_row(source, scene, target.grid, videos, name)
    return row


def router_row(target: EvaluationTarget, scene: SuiteScene) -> dict[str, Any]:
    """IoU with the ground truth [points, layers] and change [points] of the predicted masks."""
    soft = target.grid.pixels_to_tokens(torch.from_numpy(scene.clip.masks)).numpy()
    row: dict[str, Any] = {"change of truth": round(float(masking.change(soft).mean()), 5)}
    for name, first_frame in (("with", True), ("without", False)):
        predicted = [target.predict_masks(scene, point, first_frame) for point in target.points]
        row[f"iou {name}"] = [
            [round(float(masking.mean_iou(masking.to_labels(layer), soft >= 0.5)), 5) for layer in layers]
            for layers in predicted
        ]
        row[f"change {name}"] = [round(float(masking.change(layers).mean()), 5) for layers in predicted]
    return row


def video_row(
    target: EvaluationTarget, scene: SuiteScene, grid: TokenGrid, videos: VideoStore | None = None, name: str = "made"
) -> dict[str, Any]:
    """Metrics of the scene generated with "given" and "swapped" speeches."""
    given, swapped = scene.clip.matrix, scene.swapped
    matrices = [given] if np.array_equal(given, swapped) else [given, swapped]
    clips = target.generate(scene, matrices)
    rows = [evaluate_clip(clip, scene, matrix, grid).row() for clip, matrix in zip(clips, matrices, strict=True)]
    if videos is not None:
        for clip, suffix in zip(clips, VIDEO_NAMES, strict=False):
            videos.save(scene.clip, f"{name}, {suffix}", clip.frames)
    return {"given": rows[0], "swapped": rows[-1]}


def aggregate(rows: Rows, points: Sequence[NoisePoint]) -> dict[str, Any]:
    """Aggregate rows of `scene_row`: over all scenes, and by first frame, number of characters and motion.

    Args:
        rows: results with equal keys.
        points: noise points of the target.
    """
    report: dict[str, Any] = {"router": aggregate_router(rows, points) if "router" in rows[0] else None}
    for name, key in (("generated", "made"), ("ceiling", "drawn truth"), ("codec_ceiling", "behind the codec")):
        report[name] = _with_groups(rows, partial(aggregate_videos, key=key)) if key in rows[0] else None
    if report["router"] is not None:
        report["router"]["headline_iou_by"] = {
            name: aggregate_router(part, points)["headline_iou"] for name, part in _groups(rows).items()
        }
    return report


def _groups(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """Scenes by number of characters and by motion, where these vary."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, label in (("characters", "n = {}"), ("motion", "{}")):
        values = sorted({row[key] for row in rows})
        if len(values) > 1:
            groups |= {label.format(value): [row for row in rows if row[key] == value] for value in values}
    return groups


def _with_groups(rows: Rows, aggregate_part: Callable[[Rows], dict[str, Any]]) -> dict[str, Any]:
    figures = aggregate_part(rows)
    for name, flag in (("with_first_frame", True), ("without_first_frame", False)):
        part = [row for row in rows if row["first_frame"] is flag]
        figures[name] = aggregate_part(part) if part else None
    figures["by"] = {name: aggregate_part(part) for name, part in _groups(rows).items()}
    return figures


def aggregate_router(rows: Rows, points: Sequence[NoisePoint]) -> dict[str, Any]:
    """Means of `router_row` over scenes."""
    per_layer = {key: np.array([row["router"][f"iou {key}"] for row in rows]) for key in ("with", "without")}
    mean = {key: np.nanmean(values.mean(axis=2), axis=0) for key, values in per_layer.items()}
    late = [k for k, point in enumerate(points) if point.share <= 0.5]
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


def aggregate_videos(rows: Rows, key: str) -> dict[str, Any]:
    """Means of `video_row` over scenes (stillness: median, because a ratio has outliers)."""
    given, swapped = ([row[key][name] for row in rows] for name in ("given", "swapped"))
    identities = [correct for row in given for correct in row["identity"]]
    stillness = [row["stillness"] for row in given if row["stillness"] is not None]
    return {
        "mask_iou": _round(np.mean([row["mask_iou"] for row in given])),
        "mask_swap_rate": _round(np.mean([row["swap_rate"] for row in given])),
        "mask_flicker": _round(np.mean([row["flicker"] for row in given])),
        "mask_change": _round(np.mean([value for row in given for value in row["change"]])),
        "binding": {name: _round(value) for name, value in asdict(binding_score(given)).items()},
        "binding_swapped": {name: _round(value) for name, value in asdict(binding_score(swapped)).items()},
        "listener_stillness": _round(np.median(stillness)) if stillness else None,
        "identity": _round(np.mean(identities)),
        "likeness": _round(np.mean([value for row in given for value in row["likeness"]])),
        "identities_judged": len(identities),
        "scenes": len(rows),
    }


def binding_score(rows: Rows) -> Any:
    """Binding over all evaluated mouths of rows of `ClipMetrics.row`."""
    keys = ("correlation", "should_follow", "judged")
    return bindings.score(bindings.BindingResult(*(np.array(row[key]) for key in keys)) for row in rows)


def _round(value: Any) -> float | int | None:
    """Round to four digits; None for undefined values."""
    if isinstance(value, int):
        return value
    return round(float(value), 4) if np.isfinite(value) else None
