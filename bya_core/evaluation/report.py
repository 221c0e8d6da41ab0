"""Binding report of a finished video: whether each mouth follows its own voice, as text, picture and numbers.

Drawn puppets are measured by the color of the inside of the mouth, real people by lip movement (`lip_sync`), and by
SyncNet besides if its weights are present. The report says which measurement it used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bya_core.encoders.domains import PixelMeter
from bya_core.encoders.vad import true_spans
from bya_core.errors import InputError
from bya_core.evaluation.binding import targets_of
from bya_core.evaluation.face_report import FaceMetrics, FaceTools, boxes_to_masks, measure_faces
from bya_core.evaluation.identity import IdentityTable
from bya_core.evaluation.lip_verdict import LipScores
from bya_core.evaluation.mask_metrics import flicker
from bya_core.evaluation.plots import Lane, draw_report
from bya_core.evaluation.verdict import LIPS, STILL, ColorScores, MouthScores, SyncScores, speech_loudness
from bya_core.masks import mask_statistics
from bya_core.scene.types import Speech


@dataclass(frozen=True)
class BindingReport:
    """Result of `binding_report`.

    Args:
        text: findings, one sentence per line.
        metrics: all numbers, ready for JSON; "passed" is True, False, or None = inconclusive.
        lanes: the characters over time.
        draw: draws `picture`.
    """

    text: str
    metrics: dict[str, Any]
    lanes: tuple[Lane, ...]
    draw: Callable[[], Image.Image]

    @cached_property
    def picture(self) -> Image.Image:
        """Scores of mouths and voices, and both over time."""
        return self.draw()


BOX_SCALE = 8  # pixels of the video per pixel of masks made from face boxes


def binding_report(
    frames: Tensor,
    masks: Tensor | None,
    speeches: Sequence[Speech | None],
    fps: float,
    names: Sequence[str],
    *,
    matrix: Tensor | None = None,
    meter: PixelMeter | None = None,
    portraits: Sequence[Tensor] | None = None,
    faces: FaceMetrics | None = None,
    voices: Sequence[str] | None = None,
) -> BindingReport:
    """Measure a finished video.

    Args:
        frames: uint8 [F, H, W, 3].
        masks: character masks [N, F, h, w] in 0..1; None = the boxes of the faces.
        speeches: M speeches; None = listener.
        fps: frames per second.
        names: of the N characters.
        matrix: audio-character matrix [M, N]; None = speech m drives character m.
        meter: pixel meter of the characters, see `ModelBundle.meter`; None for real people.
        portraits: N reference images [3, h, w] in 0..1 on white, for the similarity of drawn characters.
        faces: measurements of real people; None = they are made here, with faces assigned by the masks or portraits.
        voices: names of the M speeches; None = those of the characters.

    Raises:
        InputError: masks of another number of characters or frames.
    """
    count, length = len(names), frames.shape[0]
    size = int(frames.shape[1]), int(frames.shape[2])
    if masks is not None and tuple(masks.shape[:2]) != (count, length):
        problem = f"masks of {masks.shape[0]} characters and {masks.shape[1]} frames"
        raise InputError(problem, f"{count} and {length}", "use the masks of this video")
    given = masks is not None
    if meter is None and faces is None:
        pixels = None if masks is None else masks.numpy() > 0.5
        faces = measure_faces(
            frames, speeches, fps, portraits, FaceTools.load(), matrix=matrix, masks=pixels, names=names
        )
    faces = faces or FaceMetrics()
    matrix = faces.matrix if matrix is None and faces.matrix is not None else matrix
    matrix = torch.eye(len(speeches), count) if matrix is None else matrix
    if masks is None:
        boxes = np.full((count, length, 4), np.nan) if faces.boxes is None else faces.boxes
        masks = torch.from_numpy(
            boxes_to_masks(boxes / BOX_SCALE, *(max(1, side // BOX_SCALE) for side in size))
        ).float()
    loudness = np.stack([speech_loudness(speech, length, fps) for speech in speeches])
    targets = targets_of((loudness.max(axis=1) > 0)[:, None] * matrix.numpy())
    identity = dict(faces.identity)
    if meter is not None:
        regions = F.interpolate(masks.float(), size=size, mode="bilinear", align_corners=False).numpy() > 0.5
        opening = meter.mouth_opening(frames.numpy(), regions)
        scores: MouthScores = ColorScores(opening, loudness, targets, np.asarray(regions.any(axis=(2, 3))), fps)
        if portraits is not None:
            identity["colors"] = IdentityTable(meter.likeness(frames.numpy(), regions, portraits))
    elif faces.lips is not None:
        scores = LipScores(faces.lips, loudness, targets, fps)
    else:
        still, seen = np.zeros((count, length)), (masks > 0.5).any(dim=3).any(dim=2).numpy()
        if faces.sync is not None:
            scores = SyncScores(still, loudness, targets, seen, fps, faces.sync)
        else:
            scores = MouthScores(still, loudness, targets, np.zeros_like(seen), fps, LIPS)
    owners = list(voices) if voices is not None else list(names)
    owners += [f"voice {m + 1}" for m in range(len(owners), len(speeches))]
    lanes = [_lane(n, names[n], scores, owners, masks, next(iter(identity.values()), None)) for n in range(count)]
    metrics = _metrics(lanes, scores, masks, identity, owners, faces)
    text = [*_sentences(lanes, scores, owners, metrics, identity, given), *faces.notices]
    text.append(scores.scale.description.format(frames=length))
    shown = np.where(scores.measured, scores.scores, np.nan)
    draw = partial(draw_report, lanes, shown, owners[: len(speeches)], fps, scores.scale)
    return BindingReport("\n".join(text), metrics, tuple(lanes), draw)


def _lane(
    n: int, name: str, scores: MouthScores, owners: Sequence[str], masks: Tensor, identity: IdentityTable | None
) -> Lane:
    """Character `n` over time."""
    verdict, text = scores.verdict(n, name, owners)
    own, mouths = int(scores.targets[n]), scores.mouths
    loudness = scores.speech[own] if own >= 0 else np.zeros(scores.length)
    level = scores.speaking_level
    failed = scores.listening[n] & (mouths[n] > STILL * max(level, 1e-9)) & (level > 0)
    times = np.arange(scores.length) / scores.fps
    for span in scores.failing:
        if span.character == n:
            failed |= (times >= span.start) & (times < span.end)
    if verdict in ("wrong", "shifted", "silent") and not failed.any():
        failed |= scores.audible[own]
    similarity = None
    if identity is not None:
        others = np.delete(identity.likeness[n], n, axis=1)
        rival = others.max(axis=1) if others.shape[1] else np.full(scores.length, -1.0)
        similarity = identity.per_frame[n], rival
        failed |= np.nan_to_num(similarity[0], nan=2.0) < np.nan_to_num(rival, nan=-1.0)
    return Lane(
        name=name,
        target=own,
        mouth=mouths[n] / max(float(mouths.max(initial=0.0)), 1e-9),
        loudness=loudness / max(float(loudness.max()), 1e-9),
        verdict=verdict,
        text=text,
        listening=scores.listening[n],
        coverage=(masks[n] > 0.5).float().mean(dim=(1, 2)).numpy(),
        identity=similarity,
        failed=failed,
        local=_local(scores, n),
    )


def _local(scores: MouthScores, n: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Scores of mouth `n` around each frame with the assigned voice, and with the best other voice that is heard."""
    own = int(scores.targets[n])
    if own < 0 or scores.local is None or not scores.measured[n, own]:
        return None
    rivals = [m for m in range(scores.local.shape[1]) if m != own and scores.measured[n, m]]
    best = scores.local[n, rivals].max(axis=0) if rivals else np.full(scores.length, np.nan)
    return scores.local[n, own], best


def _metrics(
    lanes: Sequence[Lane],
    scores: MouthScores,
    masks: Tensor,
    identity: dict[str, IdentityTable],
    owners: Sequence[str],
    faces: FaceMetrics,
) -> dict[str, Any]:
    passed, fps, sync, lips = [lane.passed for lane in lanes], scores.fps, faces.sync, faces.lips
    metrics: dict[str, Any] = {
        "passed": False if False in passed else None if None in passed or not passed else True,
        "measure": scores.scale.name,
        "characters": [lane.name for lane in lanes],
        "voices": list(owners[: scores.scores.shape[1]]),
        "score": _rounded(np.where(scores.measured, scores.scores, np.nan), 3),
        "should_follow": scores.targets.tolist(),
        "verdicts": [lane.verdict for lane in lanes],
        "offset": [int(scores.offset[n, own]) if own >= 0 else None for n, own in enumerate(scores.targets)],
        "movement": np.round(scores.mouths.std(axis=1), 5).tolist(),
        "listening": [_rounded(true_spans(lane.listening, fps), 3) for lane in lanes],
        "failed": [_rounded(true_spans(lane.failed, fps), 3) for lane in lanes],
        "follows_another": [
            {"character": lanes[s.character].name, "voice": owners[s.rival], "from": s.start, "to": s.end}
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
    if lips is not None:
        metrics["lips"] = {
            "score": _rounded(lips.scores, 3),
            "offset": lips.offsets.tolist(),
            "common_offset": lips.offset,
            "other_times": _rounded(lips.elsewhere, 3),
            "evidence": _rounded(lips.evidence, 2),
            "movement": _rounded(lips.movement, 5),
            "visible": _rounded(lips.visible.mean(axis=1), 3),
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
    given: bool,
) -> Iterator[str]:
    yield from (lane.text for lane in lanes)
    for span in scores.failing:
        if lanes[span.character].passed is not False:
            yield (
                f"From {span.start:.2f} to {span.end:.2f} s {lanes[span.character].name} follows the voice of "
                f"{owners[span.rival]} more than the assigned one."
            )
    coverage = ", ".join(f"{lane.name} {share:.0%}" for lane, share in zip(lanes, metrics["coverage"], strict=True))
    changes = f"; {metrics['flicker']:.1%} of their area changes from frame to frame" if given else ""
    yield f"{'Masks' if given else 'Faces'}: {coverage} of the frame{changes}."
    if "sync" in metrics:
        own = [
            (lane.name, metrics["sync"]["confidence"][n][lane.target])
            for n, lane in enumerate(lanes)
            if lane.target >= 0
        ]
        yield f"Sync-C by SyncNet: {', '.join(f'{name} {value:.2f}' for name, value in own)}."
    for network, table in identity.items():
        cells = [
            f"{lane.name} {mean:.2f} (worst frame {worst:.2f}{'' if correct else ', CLOSER TO ANOTHER'})"
            for lane, mean, worst, correct in zip(lanes, table.mean, table.worst, table.correct, strict=True)
        ]
        yield f"Similarity to the own reference by {network}: {', '.join(cells)}."
