"""Binding of mouths to speech: correlation of mouth movement with loudness, and scores over many scenes.

Shapes: N characters, M audio streams, F video frames.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_EPS = 1e-6


def correlations(opening: np.ndarray, speech: np.ndarray, max_lag: int = 0) -> np.ndarray:
    """Pearson correlation of each mouth with each stream, float64 [N, M]; 0 for constant tracks.

    Args:
        opening: mouth opening [N, F]; only changes over time matter.
        speech: loudness of the streams [M, F].
        max_lag: the maximum over shifts by -max_lag..max_lag frames is returned.
    """
    return lagged(opening, speech, max_lag).max(axis=2)


def lagged(opening: np.ndarray, speech: np.ndarray, max_lag: int) -> np.ndarray:
    """Correlation of each mouth with each stream at each shift, float64 [N, M, 2 max_lag + 1].

    Column max_lag + k compares a mouth with the speech k frames earlier: a peak at k > 0 means that the mouth is late.
    Arguments as in `correlations`.
    """
    opening, speech = np.asarray(opening, dtype=np.float64), np.asarray(speech, dtype=np.float64)
    frames = opening.shape[1]
    table = np.zeros((opening.shape[0], speech.shape[0], 2 * max_lag + 1))
    for lag in range(-max_lag, max_lag + 1):
        late, early = max(lag, 0), max(-lag, 0)
        if frames - late - early >= 2:
            mouths = _standardize(opening[:, late : frames - early])
            table[..., max_lag + lag] = mouths @ _standardize(speech[:, early : frames - late]).T / mouths.shape[1]
    return table


def local_correlations(opening: np.ndarray, speech: np.ndarray, width: int, max_lag: int = 0) -> np.ndarray:
    """Correlation in a window of `width` frames around each frame, float64 [N, M, F]; constant at both ends."""
    opening, speech = np.asarray(opening, dtype=np.float64), np.asarray(speech, dtype=np.float64)
    frames = opening.shape[1]
    width = min(width, frames - 2 * max_lag)
    if width < 2:
        return np.zeros((opening.shape[0], speech.shape[0], frames))
    starts = np.arange(max_lag, frames - max_lag - width + 1)
    windows = np.lib.stride_tricks.sliding_window_view
    mouths = _standardize(windows(opening, width, axis=1)[:, starts])
    streams = [_standardize(windows(speech, width, axis=1)[:, starts - k]) for k in range(-max_lag, max_lag + 1)]
    best = np.max([np.einsum("nvw,mvw->nmv", mouths, stream) / width for stream in streams], axis=0)
    return best[..., np.clip(np.arange(frames) - width // 2 - max_lag, 0, starts.size - 1)]


def _standardize(tracks: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance along the last axis; constant tracks become 0."""
    centered = tracks - tracks.mean(axis=-1, keepdims=True)
    deviation = centered.std(axis=-1, keepdims=True)
    return np.where(deviation > _EPS, centered / np.maximum(deviation, _EPS), 0.0)


@dataclass(frozen=True)
class BindingResult:
    """Binding of one scene.

    Args:
        correlation: of mouths with streams [N, M].
        target: stream that each character should follow [N]; -1 = listener.
        judged: which characters can be judged [N].
    """

    correlation: np.ndarray
    target: np.ndarray
    judged: np.ndarray

    @property
    def chosen(self) -> np.ndarray:
        """Stream with the highest correlation, int [N]; -1 if no correlation is positive."""
        return np.where(self.correlation.max(axis=1) > 0.0, self.correlation.argmax(axis=1), -1)

    @property
    def correct(self) -> np.ndarray:
        """bool [N]; meaningful where `judged`."""
        return self.chosen == self.target


def bind(
    opening: np.ndarray,
    speech: np.ndarray,
    target: np.ndarray | None = None,
    max_lag: int = 0,
    visible: np.ndarray | None = None,
) -> BindingResult:
    """Judge one scene.

    A character is judged if its stream varies in loudness and there is another stream. Listeners cannot be judged by
    correlation, see `stillness`.

    Args:
        opening: mouth opening [N, F].
        speech: loudness of the streams [M, F].
        target: stream of each character [N], -1 = listener; None = stream n for character n.
        max_lag: see `correlations`.
        visible: frames in which each mouth is visible, bool [N, F]; the others are ignored. None = all.
    """
    target = np.arange(opening.shape[0]) if target is None else np.asarray(target)
    speech = np.asarray(speech, dtype=np.float64)
    audible = speech.std(axis=1) > 0.05 * max(float(speech.max(initial=0.0)), _EPS)
    judged = (target >= 0) & audible[np.maximum(target, 0)] & (speech.shape[0] > 1)
    if visible is None or visible.all():
        return BindingResult(correlations(opening, speech, max_lag), target, judged)
    pairs = zip(opening[:, None], visible, strict=True)
    rows = [correlations(mouth[:, frames], speech[:, frames], max_lag)[0] for mouth, frames in pairs]
    return BindingResult(np.stack(rows), target, judged)


@dataclass(frozen=True)
class BindingScore:
    """Binding over many scenes.

    Args:
        accuracy: fraction of judged mouths that correlate most with their own stream.
        chance: expected accuracy of a random choice.
        judged: number of judged mouths.
        own, other: mean correlation with the own stream and with the others.
    """

    accuracy: float
    chance: float
    judged: int
    own: float
    other: float


def score(results: Iterable[BindingResult]) -> BindingScore:
    """Pool all judged characters; NaN if there are none."""
    rows = [
        (result.correct[n], 1 / len(row), row[result.target[n]], np.delete(row, result.target[n]).mean())
        for result in results
        for n, row in enumerate(result.correlation)
        if result.judged[n]
    ]
    accuracy, chance, own, other = np.mean(rows, axis=0).tolist() if rows else [float("nan")] * 4
    return BindingScore(accuracy, chance, len(rows), own, other)


def stillness(opening: np.ndarray, speech: np.ndarray, target: np.ndarray | None = None) -> float:
    """1 minus the ratio of the mouth movement of listeners to that of speakers; NaN if a scene lacks either.

    Arguments as in `bind`.
    """
    target = np.arange(opening.shape[0]) if target is None else np.asarray(target)
    level = np.asarray(speech, dtype=np.float64).max(axis=1, initial=0.0)
    loud = np.where(target >= 0, level[np.maximum(target, 0)], 0.0)
    listening = loud < 0.05 * max(float(level.max(initial=0.0)), _EPS)
    if listening.all() or not listening.any():
        return float("nan")
    movement = np.asarray(opening, dtype=np.float64).std(axis=1)
    return float(1.0 - movement[listening].mean() / max(movement[~listening].mean(), _EPS))


def listener_opening_ratio(opening: np.ndarray, speaking: np.ndarray, border: int = 2) -> float:
    """Mean opening of mouths of listeners divided by that of speakers; 0 = listeners' mouths stay closed.

    NaN without speakers or without listeners. The opening is absolute, so a mouth that is stuck open counts, and so
    does the offset of `mouth_opening` for dark hair; leave such characters out.

    Args:
        opening: [K, F] of K characters, also of several clips.
        speaking: bool [K, F], which character speaks in which frame.
        border: frames around each change that are ignored: a latent frame spans four video frames, so a mouth cannot
            close faster.
    """
    from scipy.ndimage import binary_dilation, binary_erosion

    opening, speaking = np.asarray(opening, dtype=np.float64), np.asarray(speaking, dtype=bool)
    structure = np.ones((1, 2 * border + 1))
    speakers = binary_erosion(speaking, structure, border_value=1)
    listeners = ~binary_dilation(speaking, structure)
    if not speakers.any() or not listeners.any():
        return float("nan")
    return float(opening[listeners].mean() / max(opening[speakers].mean(), _EPS))


def targets_of(matrix: np.ndarray) -> np.ndarray:
    """Stream with the largest weight of each character, int [N], from a matrix [M, N]; -1 = listener."""
    matrix = np.asarray(matrix)
    return np.where(matrix.max(axis=0) > 0, matrix.argmax(axis=0), -1)
