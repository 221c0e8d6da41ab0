"""Sync-C and Sync-D, and who is in sync with whom: from embeddings of lips and voices, whatever made them.

Sync-D is the mean distance of lips and speech at the shift where it is least, Sync-C how much less that is than at the
median shift, the offset that shift. As in the reference, speech beyond the ends of a clip is embedded as zeros, which
biases short clips; scores of clips of different lengths do not compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

SHIFT = 15  # windows to each side, as in the reference and in published tables
_EPS = 1e-6  # what torch's pairwise_distance adds


@dataclass(frozen=True)
class Sync:
    """One face against one voice.

    Args:
        confidence: Sync-C, higher is better.
        distance: Sync-D, lower is better.
        offset: in frames; positive = the sound comes too early for the lips.
        curve: mean distance per shift [2 SHIFT + 1].
    """

    confidence: float
    distance: float
    offset: int
    curve: np.ndarray


def shifted_distances(lips: np.ndarray, voice: np.ndarray, shift: int = SHIFT) -> np.ndarray:
    """Distance of every lip window to the speech of the windows around it, float32 [V, 2 shift + 1].

    Args:
        lips, voice: embeddings [V, D] of the same moments.
    """
    lips, voice = np.asarray(lips, dtype=np.float32), np.asarray(voice, dtype=np.float32)
    padded = np.pad(voice, ((shift, shift), (0, 0)))
    made = np.empty((len(lips), 2 * shift + 1), dtype=np.float32)
    for column in range(2 * shift + 1):
        made[:, column] = np.linalg.norm(lips - padded[column : column + len(lips)] + np.float32(_EPS), axis=1)
    return made


def sync_of(distances: np.ndarray) -> Sync:
    """Score of a clip from `shifted_distances` [V, 2 shift + 1]."""
    curve = np.asarray(distances, dtype=np.float32).mean(axis=0)
    least, best = float(curve.min()), int(curve.argmin())
    return Sync(float(np.median(curve)) - least, least, len(curve) // 2 - best, curve)


@dataclass(frozen=True)
class Span:
    """A stretch of time in which a face goes better with a foreign voice.

    Args:
        character, rival: whose face, and whose voice.
        start, end: in seconds.
    """

    character: int
    rival: int
    start: float
    end: float


@dataclass(frozen=True)
class CrossTalk:
    """Every face against every voice.

    Args:
        confidence, distance: Sync-C and Sync-D [N, M].
        offset: [N, M], see `Sync`.
        target: voice each face should follow [N], -1 = none.
        failing: where a foreign voice wins.
    """

    confidence: np.ndarray
    distance: np.ndarray
    offset: np.ndarray
    target: np.ndarray
    failing: tuple[Span, ...] = ()

    @property
    def margin(self) -> np.ndarray:
        """Sync-C with the own voice beyond the best foreign one [N]; NaN for listeners, and where there is no other."""
        return margins(self.confidence, self.target)

    @property
    def right(self) -> np.ndarray:
        """Whether the own voice wins, bool [N]; means something where `margin` is a number."""
        return self.margin > 0


def margins(score: np.ndarray, target: Sequence[int] | np.ndarray) -> np.ndarray:
    """Score [N, M] of each face's own voice minus the best foreign one [N]; NaN where one of both is missing."""
    made = np.full(score.shape[0], np.nan)
    for n, own in enumerate(target):
        if own >= 0 and score.shape[1] > 1:
            made[n] = score[n, own] - np.delete(score[n], own).max()
    return made


def crosstalk(
    distances: np.ndarray,
    target: Sequence[int] | np.ndarray,
    audible: np.ndarray | None = None,
    fps: float = 25.0,
    width: int = 25,
) -> CrossTalk:
    """Judge a clip.

    Args:
        distances: `shifted_distances` of every face and voice [N, M, V, 2 shift + 1].
        target: voice each face should follow [N], -1 = none.
        audible: bool [M, V], where each voice speaks: a silent one cannot be followed. None = everywhere.
        fps: frames a second.
        width: windows over which a local score is taken; a single one says nothing.
    """
    pairs = [[sync_of(cell) for cell in row] for row in distances]
    grid = {
        name: np.array([[getattr(pair, name) for pair in row] for row in pairs])
        for name in ("confidence", "distance", "offset")
    }
    smooth = _moving_mean(distances, min(width, distances.shape[2]))
    local = np.median(smooth, axis=3) - smooth.min(axis=3)
    failing = failing_spans(local, target, audible, fps)
    return CrossTalk(grid["confidence"], grid["distance"], grid["offset"], np.asarray(target), failing)


def _moving_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over `width` neighbours along axis 2, as many as there are at the ends; same shape."""
    total = np.cumsum(np.pad(values.astype(np.float64), ((0, 0), (0, 0), (1, 0), (0, 0))), axis=2)
    centre = np.arange(values.shape[2])
    begin = np.maximum(centre - width // 2, 0)
    end = np.minimum(centre + (width + 1) // 2, values.shape[2])
    return (total[:, :, end] - total[:, :, begin]) / (end - begin)[None, None, :, None]


def failing_spans(
    local: np.ndarray,
    target: Sequence[int] | np.ndarray,
    audible: np.ndarray | None = None,
    fps: float = 25.0,
    margin: float = 0.0,
    least: float = 0.2,
) -> tuple[Span, ...]:
    """Stretches in which a foreign voice beats the own one, while the own one is heard.

    Neighbouring ones with the same rival are joined over gaps shorter than `least`.

    Args:
        local: score of every face and voice at every moment [N, M, V].
        target: [N].
        audible: bool [M, V].
        fps: moments a second.
        margin: by which a foreign voice must win.
        least: seconds; what is shorter is not told.
    """
    spans: list[Span] = []
    for n, own in enumerate(target):
        if own < 0 or local.shape[1] < 2:
            continue
        rivals = local[n].copy()
        rivals[own] = -np.inf
        rival = rivals.argmax(axis=0)
        lost = rivals.max(axis=0) > local[n, own] + margin
        lost &= True if audible is None else np.asarray(audible[own], dtype=bool)
        winner = np.where(lost, rival, -1)
        edges = np.flatnonzero(np.diff(winner, prepend=-1, append=-1))
        here: list[Span] = []
        for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if winner[begin] < 0:
                continue
            span = Span(n, int(winner[begin]), round(begin / fps, 3), round(end / fps, 3))
            if here and here[-1].rival == span.rival and span.start - here[-1].end < least:
                span = replace(span, start=here.pop().start)
            here.append(span)
        spans += [span for span in here if span.end - span.start >= least]
    return tuple(spans)
