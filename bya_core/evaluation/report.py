"""Binding report of a finished video: whether each mouth follows its own voice, as text, picture and numbers.

Mouth movement is measured by the color of the inside of the mouth for drawn puppets, and by SyncNet for people in
photos. Without the weights of SyncNet, frame differences in the lower half of each face are used, a weak measure that
does not distinguish speech from other movement.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bya_core.encoders.domains import PixelMeter
from bya_core.encoders.vad import true_spans
from bya_core.errors import InputError
from bya_core.evaluation.binding import mouth_motion, targets_of
from bya_core.evaluation.identity import IdentityTable
from bya_core.evaluation.mask_metrics import flicker
from bya_core.evaluation.plots import Lane, draw_report
from bya_core.evaluation.sync_metrics import CrossTalk
from bya_core.evaluation.verdict import COLOR, MOTION, STILL, MouthScores, speech_loudness
from bya_core.masks import mask_statistics
from bya_core.scene.types import Speech


@dataclass(frozen=True)
class BindingReport:
    """Result of `binding_report`.

    Args:
        text: findings, one sentence per line.
        picture: scores of mouths and voices, and both over time.
        metrics: all numbers, ready for JSON; "passed" is True, False, or None = inconclusive.
    """

    text: str
    picture: Image.Image
    metrics: dict[str, Any]


@dataclass(frozen=True)
class FaceMetrics:
    """Measurements of people in photos by neural networks, see `face_report.measure_faces`.

    Args:
        sync: lip sync of each face with each voice; None = not measured.
        identity: similarity to the reference images, by name of the network.
        boxes: of the faces [N, F, 4], NaN where there is none; None = not detected.
        notices: what could not be measured, why, and how to get it; one sentence each.
    """

    sync: CrossTalk | None = None
    identity: dict[str, IdentityTable] = field(default_factory=dict)
    boxes: np.ndarray | None = None
    notices: tuple[str, ...] = ()


def binding_report(
    frames: Tensor,
    masks: Tensor,
    speeches: Sequence[Speech | None],
    fps: float,
    names: Sequence[str],
    *,
    matrix: Tensor | None = None,
    meter: PixelMeter | None = None,
    portraits: Sequence[Tensor] | None = None,
    faces: FaceMetrics | None = None,
) -> BindingReport:
    """Measure a finished video.

    Args:
        frames: uint8 [F, H, W, 3].
        masks: character masks [N, F, h, w] in 0..1.
        speeches: M speeches; None = listener.
        fps: frames per second.
        names: of the N characters; speech m is named after character m.
        matrix: audio-character matrix [M, N]; None = speech m drives character m.
        meter: pixel meter of the characters, see `ModelBundle.meter`; None for people in photos.
        portraits: N reference images [3, h, w] in 0..1 on white, for the similarity of drawn characters.
        faces: measurements by neural networks, for people in photos.

    Raises:
        InputError: masks of another number of characters or frames.
    """
    count, length = len(names), frames.shape[0]
    if tuple(masks.shape[:2]) != (count, length):
        problem = f"masks of {masks.shape[0]} characters and {masks.shape[1]} frames"
        raise InputError(problem, f"{count} and {length}", "use the masks of this video")
    matrix = torch.eye(len(speeches), count) if matrix is None else matrix
    faces, pixels = faces or FaceMetrics(), frames.numpy()
    loudness = np.stack([speech_loudness(speech, length, fps) for speech in speeches])
    regions = F.interpolate(masks.float(), size=frames.shape[1:3], mode="bilinear", align_corners=False).numpy() > 0.5
    mouths = mouth_motion(pixels, regions) if meter is None else meter.mouth_opening(pixels, regions)
    targets = targets_of((loudness.max(axis=1) > 0)[:, None] * matrix.numpy())
    scores = MouthScores(mouths, loudness, targets, regions, fps, faces.sync, MOTION if meter is None else COLOR)
    identity = dict(faces.identity)
    if meter is not None and portraits is not None:
        identity["colors"] = IdentityTable(meter.likeness(pixels, regions, portraits))
    owners = [*names, *(f"voice {m + 1}" for m in range(count, len(speeches)))]
    lanes = [_lane(n, scores, owners, masks, next(iter(identity.values()), None)) for n in range(count)]
    metrics = _metrics(lanes, scores, masks, identity, owners)
    text = [*_sentences(lanes, scores, owners, metrics, identity), *faces.notices]
    text.append(scores.scale.description.format(frames=length))
    return BindingReport("\n".join(text), draw_report(lanes, scores.scores, owners, fps, scores.scale), metrics)


def _lane(n: int, scores: MouthScores, owners: Sequence[str], masks: Tensor, identity: IdentityTable | None) -> Lane:
    """Character `n` over time."""
    verdict, text = scores.verdict(n, owners)
    own, mouths = int(scores.targets[n]), scores.mouths
    loudness = scores.speech[own] if own >= 0 else np.zeros(scores.length)
    level = scores.speaking_level
    failed = scores.listening[n] & (mouths[n] > STILL * max(level, 1e-9)) & (level > 0)
    times = np.arange(scores.length) / scores.fps
    for span in scores.failing:
        if span.character == n:
            failed |= (times >= span.start) & (times < span.end)
    if verdict in ("wrong", "shifted"):
        failed |= scores.audible[own]
    similarity = None
    if identity is not None:
        others = np.delete(identity.likeness[n], n, axis=1)
        rival = others.max(axis=1) if others.shape[1] else np.full(scores.length, -1.0)
        similarity = identity.per_frame[n], rival
        failed |= np.nan_to_num(similarity[0], nan=2.0) < np.nan_to_num(rival, nan=-1.0)
    return Lane(
        name=owners[n],
        target=own,
        mouth=mouths[n] / max(float(mouths.max(initial=0.0)), 1e-9),
        loudness=loudness / max(float(loudness.max()), 1e-9),
        verdict=verdict,
        text=text,
        listening=scores.listening[n],
        coverage=(masks[n] > 0.5).float().mean(dim=(1, 2)).numpy(),
        identity=similarity,
        failed=failed,
    )


def _metrics(
    lanes: Sequence[Lane],
    scores: MouthScores,
    masks: Tensor,
    identity: dict[str, IdentityTable],
    owners: Sequence[str],
) -> dict[str, Any]:
    passed, fps, sync = [lane.passed for lane in lanes], scores.fps, scores.sync
    metrics: dict[str, Any] = {
        "passed": False if False in passed else None if None in passed else True,
        "measure": scores.scale.name,
        "characters": list(owners[: len(lanes)]),
        "score": np.round(scores.scores, 3).tolist(),
        "should_follow": scores.targets.tolist(),
        "verdicts": [lane.verdict for lane in lanes],
        "offset": [int(scores.offset[n, own]) if own >= 0 else None for n, own in enumerate(scores.targets)],
        "movement": np.round(scores.mouths.std(axis=1), 5).tolist(),
        "listening": [_rounded(true_spans(lane.listening, fps), 3) for lane in lanes],
        "failed": [_rounded(true_spans(lane.failed, fps), 3) for lane in lanes],
        "follows_another": [
            {"character": owners[s.character], "voice": owners[s.rival], "from": s.start, "to": s.end}
            for s in scores.failing
        ],
        "coverage": [statistics.coverage for statistics in mask_statistics(masks)],
        "flicker": round(flicker(masks.numpy()), 4),
        "identity": {
            name: {
                "mean": _rounded(table.mean),
                "worst": _rounded(table.worst),
                "confusion": _rounded(table.confusion),
                "correct": table.correct.tolist(),
            }
            for name, table in identity.items()
        },
    }
    if sync is not None:
        tables = {"confidence": sync.confidence, "distance": sync.distance, "margin": sync.margin}
        metrics["sync"] = {name: _rounded(table) for name, table in tables.items()} | {"offset": sync.offset.tolist()}
    return metrics


def _rounded(values: Any, digits: int = 4) -> Any:
    """Nested lists of rounded numbers; None for values that are not finite."""
    if np.ndim(values):
        return [_rounded(value, digits) for value in values]
    return round(float(values), digits) if np.isfinite(values) else None


def _sentences(
    lanes: Sequence[Lane],
    scores: MouthScores,
    owners: Sequence[str],
    metrics: dict[str, Any],
    identity: dict[str, IdentityTable],
) -> Iterator[str]:
    yield from (lane.text for lane in lanes)
    for span in scores.failing:
        if lanes[span.character].passed is not False:
            yield (
                f"From {span.start:.2f} to {span.end:.2f} s {owners[span.character]} follows the voice of "
                f"{owners[span.rival]} more than the assigned one."
            )
    coverage = ", ".join(f"{lane.name} {share:.0%}" for lane, share in zip(lanes, metrics["coverage"], strict=True))
    yield f"Masks: {coverage} of the frame; {metrics['flicker']:.1%} of their area changes from frame to frame."
    for network, table in identity.items():
        cells = [
            f"{lane.name} {mean:.2f} (worst frame {worst:.2f}{'' if correct else ', CLOSER TO ANOTHER'})"
            for lane, mean, worst, correct in zip(lanes, table.mean, table.worst, table.correct, strict=True)
        ]
        yield f"Similarity to the own reference by {network}: {', '.join(cells)}."
