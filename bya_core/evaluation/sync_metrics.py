"""Sync-C and Sync-D of each face with each voice, from embeddings of lips and speech.

Sync-D is the mean distance of lips and speech at the shift with the smallest distance, Sync-C is the median distance
over all shifts minus Sync-D, and the offset is that shift. As in the reference implementation, embeddings beyond the
ends of a clip are zeros, which biases short clips: scores of clips of different lengths are not comparable.

Shapes: N characters, M audio streams, V windows (one per video frame).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

SHIFT = 15  # windows to each side, as in the reference implementation and in published tables


@dataclass(frozen=True)
class Sync:
    """Lip sync of one face with one voice.

    Args:
        confidence: Sync-C, higher is better.
        distance: Sync-D, lower is better.
        offset: in frames; positive = the lips are late.
        curve: mean distance per shift [2 SHIFT + 1].
    """

    confidence: float
    distance: float
    offset: int
    curve: np.ndarray


def shifted_distances(lips: np.ndarray, voice: np.ndarray) -> np.ndarray:
    """Distance of each lip window to the speech windows around it, float32 [V, 2 SHIFT + 1].

    Args:
        lips, voice: embeddings [V, D] of the same windows.
    """
    lips_, padded = torch.as_tensor(lips).float(), F.pad(torch.as_tensor(voice).float(), (0, 0, SHIFT, SHIFT))
    columns = [F.pairwise_distance(lips_, padded[k : k + len(lips_)]) for k in range(2 * SHIFT + 1)]
    return torch.stack(columns, dim=1).numpy()


def sync_of(distances: np.ndarray) -> Sync:
    """Scores of a clip from `shifted_distances` [V, 2 shift + 1]."""
    curve = np.asarray(distances, dtype=np.float32).mean(axis=0)
    least, best = float(curve.min()), int(curve.argmin())
    return Sync(float(np.median(curve)) - least, least, len(curve) // 2 - best, curve)


@dataclass(frozen=True)
class Span:
    """A time span in which a face follows another voice more than the assigned one.

    Args:
        character: index of the face.
        rival: index of the other voice.
        start, end: in seconds.
    """

    character: int
    rival: int
    start: float
    end: float


@dataclass(frozen=True)
class CrossTalk:
    """Lip sync of each face with each voice.

    Args:
        confidence, distance: Sync-C and Sync-D [N, M].
        offset: [N, M], see `Sync`.
        target: assigned voice of each face [N], -1 = listener.
        failing: where a face follows another voice.
    """

    confidence: np.ndarray
    distance: np.ndarray
    offset: np.ndarray
    target: np.ndarray
    failing: tuple[Span, ...] = ()

    @property
    def margin(self) -> np.ndarray:
        """Sync-C with the assigned voice minus the best of the others [N]; NaN for listeners and with one voice."""
        margin = np.full(len(self.target), np.nan)
        for n, own in enumerate(self.target):
            if own >= 0 and self.confidence.shape[1] > 1:
                margin[n] = self.confidence[n, own] - np.delete(self.confidence[n], own).max()
        return margin

    @property
    def correct(self) -> np.ndarray:
        """Whether the assigned voice has the highest Sync-C, bool [N]; meaningful where `margin` is not NaN."""
        return self.margin > 0


def crosstalk(
    distances: np.ndarray,
    target: Sequence[int] | np.ndarray,
    audible: np.ndarray | None = None,
    fps: float = 25.0,
    width: int = 25,
) -> CrossTalk:
    """Lip sync of a clip.

    Args:
        distances: `shifted_distances` of each face and voice [N, M, V, 2 shift + 1].
        target: assigned voice of each face [N], -1 = listener.
        audible: where each voice is not silent, bool [M, V]; None = everywhere.
        fps: frames per second.
        width: number of windows that local scores are averaged over.
    """
    pairs = [[sync_of(cell) for cell in row] for row in distances]
    confidence, distance, offset = (
        np.array([[getattr(pair, name) for pair in row] for row in pairs])
        for name in ("confidence", "distance", "offset")
    )
    smooth = _moving_mean(distances, min(width, distances.shape[2]))
    local = np.median(smooth, axis=3) - smooth.min(axis=3)
    return CrossTalk(confidence, distance, offset, np.asarray(target), failing_spans(local, target, audible, fps))


def _moving_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over `width` neighbors along axis 2, over fewer at the ends; same shape."""
    from scipy.ndimage import uniform_filter1d

    total = uniform_filter1d(values.astype(np.float64), width, axis=2, mode="constant")
    return total / uniform_filter1d(np.ones(values.shape[2]), width, mode="constant")[None, None, :, None]


def failing_spans(
    local: np.ndarray,
    target: Sequence[int] | np.ndarray,
    audible: np.ndarray | None = None,
    fps: float = 25.0,
    margin: float = 0.0,
    min_seconds: float = 0.2,
) -> tuple[Span, ...]:
    """Time spans in which another voice scores higher than the assigned one while the assigned one is audible.

    Spans with the same rival are joined over gaps shorter than `min_seconds`.

    Args:
        local: local scores of each face with each voice [N, M, V].
        target, audible, fps: as in `crosstalk`.
        margin: minimum difference of the scores.
        min_seconds: shorter spans are dropped.
    """
    spans: list[Span] = []
    for n, own in enumerate(target):
        if own < 0 or local.shape[1] < 2:
            continue
        rivals = local[n].copy()
        rivals[own] = -np.inf
        failed = rivals.max(axis=0) > local[n, own] + margin
        failed &= True if audible is None else np.asarray(audible[own], dtype=bool)
        winner = np.where(failed, rivals.argmax(axis=0), -1)
        edges = np.flatnonzero(np.diff(winner, prepend=-1, append=-1))
        found: list[Span] = []
        for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if winner[begin] < 0:
                continue
            span = Span(n, int(winner[begin]), round(begin / fps, 3), round(end / fps, 3))
            if found and found[-1].rival == span.rival and span.start - found[-1].end < min_seconds:
                span = replace(span, start=found.pop().start)
            found.append(span)
        spans += [span for span in found if span.end - span.start >= min_seconds]
    return tuple(spans)
