"""Does every mouth follow its own voice? Correlation of mouths with speeches, and what is decided from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_FLAT = 1e-6


def correlations(opening: np.ndarray, speech: np.ndarray, max_lag: int = 0) -> np.ndarray:
    """Pearson correlation of every mouth with every speech, float64 [N, M] in -1..1.

    A track without any change correlates with nothing: 0.

    Args:
        opening: [N, F], mouth opening per character (only its changes matter).
        speech: [M, F], loudness (or opening) per stream.
        max_lag: the best correlation over shifts of the speech by -max_lag..max_lag frames is taken.
    """
    return lagged(opening, speech, max_lag).max(axis=2)


def lagged(opening: np.ndarray, speech: np.ndarray, max_lag: int) -> np.ndarray:
    """Correlation of every mouth with every speech at every shift, float64 [N, M, 2 max_lag + 1].

    Column max_lag + k compares a mouth with what was said k frames earlier: a peak at k > 0 is a mouth that is late by
    k frames, or a sound that is early. Arguments as in `correlations`.
    """
    opening, speech = np.asarray(opening, dtype=np.float64), np.asarray(speech, dtype=np.float64)
    frames = opening.shape[1]
    made = np.zeros((opening.shape[0], speech.shape[0], 2 * max_lag + 1))
    for lag in range(-max_lag, max_lag + 1):
        late, early = max(lag, 0), max(-lag, 0)
        if frames - late - early < 2:
            continue
        mouths = _standard(opening[:, late : frames - early])
        voices = _standard(speech[:, early : frames - late])
        made[..., max_lag + lag] = mouths @ voices.T / mouths.shape[1]
    return made


def local_correlations(opening: np.ndarray, speech: np.ndarray, width: int, max_lag: int = 0) -> np.ndarray:
    """Correlation over `width` frames about every frame, float64 [N, M, F]; the ends hold the nearest whole window."""
    opening, speech = np.asarray(opening, dtype=np.float64), np.asarray(speech, dtype=np.float64)
    frames = opening.shape[1]
    width = min(width, frames - 2 * max_lag)
    if width < 2:
        return np.zeros((opening.shape[0], speech.shape[0], frames))
    inner = np.arange(max_lag, frames - max_lag - width + 1)  # starts of the mouths' windows
    mouths = np.lib.stride_tricks.sliding_window_view(opening, width, axis=1)[:, inner]
    best = np.full((opening.shape[0], speech.shape[0], inner.size), -np.inf)
    for lag in range(-max_lag, max_lag + 1):
        voices = np.lib.stride_tricks.sliding_window_view(speech, width, axis=1)[:, inner - lag]
        here = np.einsum("nvw,mvw->nmv", _standard(mouths), _standard(voices)) / width
        best = np.maximum(best, here)
    nearest = np.clip(np.arange(frames) - width // 2 - max_lag, 0, inner.size - 1)
    return best[..., nearest]


def _standard(tracks: np.ndarray) -> np.ndarray:
    """Of mean 0 and deviation 1 along the last axis; tracks without a change become 0."""
    centred = tracks - tracks.mean(axis=-1, keepdims=True)
    spread = centred.std(axis=-1, keepdims=True)
    return np.where(spread > _FLAT, centred / np.maximum(spread, _FLAT), 0.0)


@dataclass(frozen=True)
class BindingResult:
    """One scene.

    Args:
        correlation: of mouths and streams [N, M].
        target: stream each character should follow [N], -1 = none.
        judged: which characters are judged [N].
    """

    correlation: np.ndarray
    target: np.ndarray
    judged: np.ndarray

    @property
    def chosen(self) -> np.ndarray:
        """Stream that each mouth follows most, int [N]; -1 where it follows none (no correlation above 0)."""
        return np.where(self.correlation.max(axis=1) > 0.0, self.correlation.argmax(axis=1), -1)

    @property
    def correct(self) -> np.ndarray:
        """bool [N]; means something where `judged`."""
        return self.chosen == self.target


def bind(
    opening: np.ndarray,
    speech: np.ndarray,
    target: np.ndarray | None = None,
    max_lag: int = 0,
    visible: np.ndarray | None = None,
) -> BindingResult:
    """Judge one scene.

    A character is judged when the speech that drives it changes in loudness and there is another stream to
    confuse it with; listeners cannot be judged by a correlation (see `stillness`).

    Args:
        opening: [N, F].
        speech: [M, F] loudness per stream.
        target: [N] stream that drives each character (-1 = none); None = stream n for character n.
        visible: bool [N, F], frames in which each mouth can be seen: the others do not count; None = all.
    """
    target = np.arange(opening.shape[0]) if target is None else np.asarray(target)
    speech = np.asarray(speech, dtype=np.float64)
    audible = speech.std(axis=1) > 0.05 * max(float(speech.max(initial=0.0)), _FLAT)
    judged = (target >= 0) & audible[np.maximum(target, 0)] & (speech.shape[0] > 1)
    if visible is None or visible.all():
        return BindingResult(correlations(opening, speech, max_lag), target, judged)
    pairs = zip(opening[:, None], visible, strict=True)
    seen = [correlations(mouth[:, frames], speech[:, frames], max_lag)[0] for mouth, frames in pairs]
    return BindingResult(np.stack(seen), target, judged)


@dataclass(frozen=True)
class BindingScore:
    """Over many scenes.

    Args:
        accuracy: share of judged mouths that follow their own voice most.
        chance: what guessing among the streams of each scene would give.
        judged: number of judged mouths.
        own, other: mean correlation with the own voice and with foreign ones.
    """

    accuracy: float
    chance: float
    judged: int
    own: float
    other: float


def score(results: Iterable[BindingResult]) -> BindingScore:
    """Pool all judged characters; NaN where there are none."""
    correct, chance, own, other = [], [], [], []
    for result in results:
        for n in np.flatnonzero(result.judged):
            row, target = result.correlation[n], result.target[n]
            correct.append(bool(result.correct[n]))
            chance.append(1.0 / row.size)
            own.append(row[target])
            other.append(np.delete(row, target).mean())
    return BindingScore(_mean(correct), _mean(chance), len(correct), _mean(own), _mean(other))


def stillness(opening: np.ndarray, speech: np.ndarray, target: np.ndarray | None = None) -> float:
    """How much less the listeners' mouths move than the speakers': 1 = not at all, 0 = just as much.

    NaN where a scene lacks either. Arguments as in `bind`.
    """
    target = np.arange(opening.shape[0]) if target is None else np.asarray(target)
    level = np.asarray(speech, dtype=np.float64).max(axis=1, initial=0.0)
    loud = np.where(target >= 0, level[np.maximum(target, 0)], 0.0)
    listening = loud < 0.05 * max(float(level.max(initial=0.0)), _FLAT)
    if listening.all() or not listening.any():
        return float("nan")
    moves = np.asarray(opening, dtype=np.float64).std(axis=1)
    return float(1.0 - moves[listening].mean() / max(moves[~listening].mean(), _FLAT))


def listener_opening_ratio(opening: np.ndarray, speaking: np.ndarray, border: int = 2) -> float:
    """Mean opening of mouths that should be shut, over that of mouths that speak; 0 = listeners' mouths stay closed.

    NaN where nobody speaks or nobody listens. Frames within `border` of a change from one to the other are left out: a
    video latent spans four frames, a mouth cannot shut faster. Nothing is subtracted, so a mouth that is stuck open
    counts; what `mouth_opening` says of dark hair would count too, leave such characters out.

    Args:
        opening: [K, F] of K characters, also of several clips, see `mouth_opening`.
        speaking: bool [K, F], who speaks when.
        border: in frames.
    """
    from scipy.ndimage import binary_dilation, binary_erosion

    opening, speaking = np.asarray(opening, dtype=np.float64), np.asarray(speaking, dtype=bool)
    reach = np.ones((1, 2 * border + 1))
    sure = binary_erosion(speaking, reach, border_value=1)
    silent = ~binary_dilation(speaking, reach)
    if not sure.any() or not silent.any():
        return float("nan")
    return float(opening[silent].mean() / max(opening[sure].mean(), _FLAT))


def targets_of(matrix: np.ndarray) -> np.ndarray:
    """Audio-character matrix [M, N] -> stream each character hears most, int [N], -1 = none."""
    matrix = np.asarray(matrix)
    return np.where(matrix.max(axis=0) > 0, matrix.argmax(axis=0), -1)


def _mean(values: list) -> float:
    return float(np.mean(values)) if values else float("nan")
