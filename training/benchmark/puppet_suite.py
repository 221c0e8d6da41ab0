"""The puppet suite: are people where the router says, do mouths follow their voices, are they themselves?

Every figure is computed from pixels, masks and sound; the drawn truth is used for the router's masks on
held-out clips only. What is measured:

- router: IoU of the router's own masks (in every layer, nothing forced) with the truth, on held-out clips
  noised to points of the sampling schedule, with and without first frame. A token belongs to a character that
  covers at least half of it. The headline is the mean over the points at half noise and below.
- generated: on generated clips, IoU of the masks that acted with the regions segmented from the pixels;
  binding = each mouth, measured inside its character's region, correlates most with the loudness of the voice
  it was given; the same with the voices swapped, from the same noise; identity = the colours where the masks
  place a character are nearest to its own portrait among K.

Identity looks where the masks say and not where the segmentation says: the segmentation looks for the colours
of the portrait, so whatever it finds would resemble it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from bya_core.grid import TokenGrid
from bya_core.metrics import binding as bindings
from bya_core.metrics import masks as masking
from bya_core.metrics.identity import colour_descriptor, histogram_similarity
from bya_core.metrics.mouth import mouth_opening
from bya_core.metrics.segment import foreground, segment_characters
from training.benchmark.scenes import SceneSettings, SuiteScene, suite_scene
from training.benchmark.subjects import Made, Subject
from training.puppets.looks import MOUTH_RGB

SHARES = (0.9, 0.7, 0.5, 0.3, 0.1)
HALF = 0.5

Tick = Callable[[str], object]
"""Called before each piece of work with what it is."""


@dataclass(frozen=True)
class Judged:
    """One generated clip: masks against pixels, binding, stillness of listeners, identity per character."""

    mask_iou: float
    swap_rate: float
    flicker: float
    binding: bindings.BindingResult
    stillness: float
    identity: list[bool]

    def row(self) -> dict[str, Any]:
        """Figures of this clip for the record."""
        return {
            "mask_iou": _round(self.mask_iou),
            "swap_rate": _round(self.swap_rate),
            "correlation": np.round(self.binding.correlation, 3).tolist(),
            "follows": self.binding.chosen.tolist(),
            "should_follow": self.binding.target.tolist(),
            "judged": self.binding.judged.tolist(),
            "stillness": _round(self.stillness),
            "identity": self.identity,
        }


def judge(
    made: Made, scene: SuiteScene, matrix: np.ndarray, grid: TokenGrid, overlapping: bool = False
) -> Judged:
    """Judge a generated clip from its pixels, its masks and the voices.

    `overlapping`: masks that claim the same token both have it (boxes); otherwise the stronger claim wins.
    """
    clip = scene.clip
    owned = made.masks >= 0.5 if overlapping else masking.to_labels(made.masks)
    regions = segment_characters(made.frames, clip.portraits, shared_rgb=MOUTH_RGB)
    seen = grid.pixels_to_tokens(torch.from_numpy(regions)).numpy() >= 0.5
    opening = mouth_opening(made.frames, regions, MOUTH_RGB)
    target = bindings.targets_of(matrix)
    return Judged(
        mask_iou=float(np.nan_to_num(masking.mean_iou(owned, seen))),
        swap_rate=masking.swap_rate(owned, seen),
        flicker=masking.flicker(owned),
        binding=bindings.bind(opening, scene.loudness, target),
        stillness=bindings.stillness(opening, scene.loudness, target),
        identity=_identities(made.frames, owned, scene.references, grid),
    )


def _identities(frames: np.ndarray, owned: np.ndarray, references: np.ndarray, grid: TokenGrid) -> list[bool]:
    """Whether the colours inside each mask [N, T, h, w] are nearest to the first of its references."""
    size = (frames.shape[1], frames.shape[2])
    places = grid.tokens_to_pixels(torch.from_numpy(owned).float(), size, mode="nearest").numpy() >= 0.5
    right = []
    for place, people in zip(places, references, strict=True):
        known = np.stack([colour_descriptor(person, foreground(person)) for person in people])
        likeness = histogram_similarity(colour_descriptor(frames, place), known)
        right.append(bool(likeness[0] > likeness[1:].max()))  # a mask that claims nothing is like nobody
    return right


def measure_router(
    subject: Subject, scenes: Iterable[SuiteScene], tick: Tick | None = None
) -> dict[str, Any]:
    """IoU of the router's own masks on noised held-out clips; see the top of this file."""
    table: dict[bool, list[list[float]]] = {True: [], False: []}
    layers: list[np.ndarray] = []
    for scene in scenes:
        truth = subject.grid.pixels_to_tokens(torch.from_numpy(scene.clip.masks)).numpy() >= 0.5
        for first_frame, rows in table.items():
            if tick is not None:
                tick(f"router masks of scene {scene.clip.seed}")
            per_layer = np.array(
                [
                    [masking.mean_iou(masking.to_labels(layer), truth) for layer in found]
                    for found in (subject.find(scene, point, first_frame) for point in subject.points)
                ]
            )
            rows.append(list(per_layer.mean(axis=1)))
            layers.append(per_layer.mean(axis=0))
    mean = {key: np.nanmean(rows, axis=0) for key, rows in table.items()}
    points = [
        {
            **asdict(point),
            "with_first_frame": _round(mean[True][k]),
            "without_first_frame": _round(mean[False][k]),
        }
        for k, point in enumerate(subject.points)
    ]
    late = [k for k, point in enumerate(subject.points) if point.share <= HALF]
    headline = {key: float(values[late].mean()) for key, values in mean.items()}
    return {
        "headline_iou": _round((headline[True] + headline[False]) / 2),
        "headline_with_first_frame": _round(headline[True]),
        "headline_without_first_frame": _round(headline[False]),
        "mean_over_all_points": _round((mean[True].mean() + mean[False].mean()) / 2),
        "points": points,
        "per_layer": [_round(value) for value in np.nanmean(layers, axis=0)],
    }


def measure_generated(
    subject: Subject, scenes: Sequence[SuiteScene], tick: Tick | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures on generated clips, pooled and apart by first frame given or not; and a row per scene."""
    given: list[Judged] = []
    swapped: list[Judged] = []
    for scene in scenes:
        for matrix, results, word in (
            (scene.clip.matrix, given, "generating"),
            (scene.swapped, swapped, "generating with swapped voices"),
        ):
            if tick is not None:
                tick(f"{word} scene {scene.clip.seed}")
            results.append(judge(subject.make(scene, matrix), scene, matrix, subject.grid))
    figures = _pooled(given, swapped)
    for name, flag in (("with_first_frame", True), ("without_first_frame", False)):
        part = [k for k, scene in enumerate(scenes) if scene.first_frame is flag]
        figures[name] = _pooled([given[k] for k in part], [swapped[k] for k in part]) if part else None
    rows = [
        {
            "seed": scene.clip.seed,
            "first_frame": scene.first_frame,
            "motion": scene.clip.motion,
            "given": given[k].row(),
            "swapped": swapped[k].row(),
        }
        for k, scene in enumerate(scenes)
    ]
    return figures, rows


def _pooled(given: Sequence[Judged], swapped: Sequence[Judged]) -> dict[str, Any]:
    straight = bindings.score(judged.binding for judged in given)
    crossed = bindings.score(judged.binding for judged in swapped)
    identities = [right for judged in given for right in judged.identity]
    still = [judged.stillness for judged in given if np.isfinite(judged.stillness)]
    return {
        "mask_iou": _round(np.mean([judged.mask_iou for judged in given])),
        "mask_swap_rate": _round(np.mean([judged.swap_rate for judged in given])),
        "mask_flicker": _round(np.mean([judged.flicker for judged in given])),
        "binding": {name: _round(value) for name, value in asdict(straight).items()},
        "binding_swapped": {name: _round(value) for name, value in asdict(crossed).items()},
        "listener_stillness": _round(np.mean(still)) if still else None,
        "identity": _round(np.mean(identities)),
        "identities_judged": len(identities),
    }


def all_scenes(settings: SceneSettings) -> list[SuiteScene]:
    """The scenes of the suite, in order."""
    return [suite_scene(settings, index) for index in range(settings.scenes)]


def _round(value: Any) -> float | int | None:
    """Four digits; counts as they are; None for what could not be measured."""
    if isinstance(value, int):
        return value
    return round(float(value), 4) if np.isfinite(value) else None
