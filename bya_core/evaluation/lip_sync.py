"""Lip sync without SyncNet: which voice fits which mouth, when, and by how many frames it is early or late.

    model = load_lip_sync()                               # weights are inside the package, 37 KB
    mouths = [mouth_shapes(track.points, times, length) for track in track_faces(frames)]
    voices = [model.predict(waveform, length) for waveform in ...]   # mono, 16 kHz
    result = compare(mouths, voices, model)               # `LipSync`: scores [N, M], offsets, over time

A linear model (ridge regression) predicts 13 distances between mesh points of the mouth from the log-mel spectrum of
a voice. The score of a mouth and a voice is the correlation of seen and predicted distances, after subtracting slow
movement and whitening the residual over time and distances. There is no threshold above which a mouth surely follows a
voice, so scores are compared: with the other voices, the other mouths, and the same voice at other times.

Shapes: N mouths, M voices, L frames at 25 per second, D = 13 distances. Trained by `python -m training.lip_sync`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from bya_core.encoders.mel import mel_bands
from bya_core.encoders.weights import weights_file

FPS = 25
RATE = 16_000  # Hz
MELS, CONTEXT = 26, 6  # bands; frames to each side
MAX_SHIFT = 12  # frames that a mouth may be shown early or late
DISTANCES = (
    *((0, 17), (13, 14), (82, 87), (312, 317), (37, 84), (267, 314)),
    *((61, 291), (78, 308), (1, 152)),
    *((61, 152), (291, 152), (61, 1), (291, 1)),
)
"""Pairs of mesh points: lip heights, lip widths and the jaw, and the corners of the mouth to chin and nose."""
EARLY, LATE = -4.6, 3.4
"""Frames; -185 and +90 ms are acceptable (ITU-R BT.1359), and one frame may be mismeasured."""
STILL_MOUTH = 0.004
"""`MouthTrack.movement` below which a mouth keeps still."""
_EYES, _INNER_LIPS, _HEIGHTS = (33, 263), (13, 14), 6  # the first distances are heights
_FFT, _WINDOW, _HOP, _PER_FRAME = 512, 400, 160, 4
_FLOOR = 1e-4  # relative to the loud parts of a voice
_SLOW, _SMOOTH, _EYE_SMOOTH = 10.0, 0.7, 5.0  # standard deviations of Gaussians in frames
_MEMORY = 0.7  # autocorrelation of the residual from frame to frame
_OFF_CENTER = 0.02  # cost of one frame of common offset, per mouth
_OWN, _REACH = 0.04, 5  # cost of one frame of own offset beyond the first, and most frames
_FEWEST = 12  # frames of overlap
_LEAST_SPREAD = 0.05  # standard deviation of scores that only chance can explain
_TIMES = 20  # by which a voice is moved for comparison


@dataclass(frozen=True)
class MouthTrack:
    """The mouth of one face.

    Args:
        shape: distances relative to that of the eyes, float64 [L, D]; interpolated where the face is not visible.
        visible: bool [L].
    """

    shape: np.ndarray
    visible: np.ndarray

    @property
    def opening(self) -> np.ndarray:
        """Height of the gap between the lips relative to the distance of the eyes [L]."""
        return self.shape[:, DISTANCES.index(_INNER_LIPS)]

    @property
    def movement(self) -> float:
        """Standard deviation of the lip distances in visible frames without slow movement."""
        if not self.visible.any():
            return 0.0
        fast = _without_slow(self.shape)[self.visible]
        return float(np.sqrt((fast[:, :_HEIGHTS] ** 2).mean()))

    def movement_track(self, width: float = 8.0) -> np.ndarray:
        """`movement` around each frame, weighted by a Gaussian of `width` frames [L]."""
        from scipy.ndimage import gaussian_filter1d

        fast = _without_slow(self.shape)[:, :_HEIGHTS]
        return np.sqrt(gaussian_filter1d((fast**2).mean(axis=1) * self.visible, width))


def mouth_shapes(points: np.ndarray, times: np.ndarray, length: int) -> MouthTrack:
    """Distances of mouth points at 25 frames per second.

    Args:
        points: mesh [F, 468, 2 or 3] in pixels; NaN where the face is not visible.
        times: of the F frames in seconds.
        length: number L of frames at 25 per second.
    """
    from scipy.ndimage import gaussian_filter1d

    pairs, eyes = np.array(DISTANCES), np.asarray(points[:, list(_EYES), :2], dtype=np.float64)
    flat = np.asarray(points[..., :2], dtype=np.float64)
    known = np.isfinite(flat[:, 0, 0])
    ticks = np.arange(length) / FPS
    if known.sum() < 2:
        return MouthTrack(np.zeros((length, len(pairs))), np.zeros(length, dtype=bool))
    scale = gaussian_filter1d(np.linalg.norm(eyes[known, 0] - eyes[known, 1], axis=1), _EYE_SMOOTH)
    values = np.linalg.norm(flat[known][:, pairs[:, 0]] - flat[known][:, pairs[:, 1]], axis=2) / scale[:, None]
    at = times[known]
    shape = np.stack([np.interp(ticks, at, column) for column in values.T], axis=1)
    nearest = np.abs(times[None] - ticks[:, None]).argmin(axis=1)
    return MouthTrack(gaussian_filter1d(shape, _SMOOTH, axis=0), known[nearest])


def speech_features(waveform: np.ndarray, length: int) -> np.ndarray:
    """Log-mel spectrum and its change over time, float64 [L, 2 * 26], relative to the loud parts of the voice.

    Args:
        waveform: mono [S] at 16 kHz; cut or padded to `length` frames.
        length: number L of frames at 25 per second.
    """
    from scipy.ndimage import gaussian_filter1d

    count = length * _PER_FRAME
    wave = np.zeros(count * _HOP + _WINDOW)
    samples = np.asarray(waveform, dtype=np.float64)[: count * _HOP]
    start = (_WINDOW - _HOP) // 2  # windows are centered on their 10 ms
    wave[start : start + len(samples)] = samples
    wave[1:] -= 0.97 * wave[:-1]
    windows = np.lib.stride_tricks.sliding_window_view(wave, _WINDOW)[::_HOP][:count] * np.hanning(_WINDOW)
    power = np.abs(np.fft.rfft(windows, _FFT)) ** 2 @ mel_bands(MELS, RATE, _FFT).double().numpy().T
    total = power.mean(axis=1)
    loud = total >= np.quantile(total, 0.7)
    level = float(total[loud].mean()) if total.size else 0.0
    if level <= 0:
        return np.zeros((length, 2 * MELS))
    logs = np.log(power / level + _FLOOR).reshape(length, _PER_FRAME, MELS).mean(axis=1)
    audible = total.reshape(length, _PER_FRAME).mean(axis=1) > 1e-3 * level
    logs -= logs[audible].mean(axis=0)
    change = np.gradient(gaussian_filter1d(logs, 1.0, axis=0), axis=0) if length > 1 else np.zeros_like(logs)
    return np.concatenate([logs, change], axis=1)


def with_context(features: np.ndarray) -> np.ndarray:
    """Features of each frame and its neighbors: [L, (2 CONTEXT + 1) * K] of [L, K]."""
    padded = np.pad(features, ((CONTEXT, CONTEXT), (0, 0)), mode="edge")
    return np.concatenate([padded[k : k + len(features)] for k in range(2 * CONTEXT + 1)], axis=1)


def standardized(shape: np.ndarray, visible: np.ndarray | None = None) -> np.ndarray:
    """Distances [L, D] without slow movement, with zero mean and unit variance over visible frames."""
    visible = np.ones(len(shape), dtype=bool) if visible is None or not visible.any() else visible
    fast = _without_slow(shape)
    fast = fast - fast[visible].mean(axis=0)
    return fast / np.maximum(fast[visible].std(axis=0), 1e-6)


def _without_slow(shape: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter1d

    return shape - gaussian_filter1d(shape, _SLOW, axis=0)


@dataclass(frozen=True)
class LipSyncModel:
    """The linear model.

    Args:
        mean, scale: of the features with context [K].
        weight: [K, D].
        whitening: [D, D]; whitens the residual over the distances.
    """

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    whitening: np.ndarray

    def predict(self, waveform: np.ndarray, length: int) -> np.ndarray:
        """Standardized distances that a voice (see `speech_features`) lets expect, float64 [L, D]."""
        return self.predict_from(speech_features(waveform, length))

    def predict_from(self, features: np.ndarray) -> np.ndarray:
        """As `predict`, from `speech_features` [L, 2 * 26]."""
        return ((with_context(features) - self.mean) / self.scale) @ self.weight

    def whiten(self, values: np.ndarray) -> np.ndarray:
        """Distances [L, D] whitened over time and distances."""
        before = np.concatenate([values[:1], values[:-1]])
        return (values - _MEMORY * before) @ self.whitening

    def state(self) -> dict[str, Tensor]:
        """Tensors for a safetensors file."""
        return {name: torch.from_numpy(value).float() for name, value in vars(self).items()}


def fit_model(
    features: Sequence[np.ndarray], shapes: Sequence[np.ndarray], ridge: float = 1500.0, shrinkage: float = 0.3
) -> LipSyncModel:
    """Fit the linear model to clips.

    Args:
        features: `speech_features` of each clip [L, 2 * 26].
        shapes: `MouthTrack.shape` of each clip [L, D].
        ridge: penalty of the weights, with standardized features.
        shrinkage: of the residual covariance towards a multiple of the identity, 0 to 1.
    """
    inputs = np.concatenate([with_context(each) for each in features])
    targets = np.concatenate([standardized(each) for each in shapes])
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0) + 1e-3
    inputs = (inputs - mean) / scale
    gram = inputs.T @ inputs + ridge * np.eye(inputs.shape[1])
    weight = np.linalg.solve(gram, inputs.T @ targets)
    covariance = np.cov((targets - inputs @ weight).T)
    spread = np.diag(covariance).mean() * np.eye(len(covariance))
    precision = np.linalg.inv((1 - shrinkage) * covariance + shrinkage * spread)
    return LipSyncModel(mean, scale, weight, np.linalg.cholesky(precision))


@lru_cache(maxsize=1)
def load_lip_sync() -> LipSyncModel:
    """The model that is part of the package."""
    tensors = load_file(weights_file("lip_sync"))
    return LipSyncModel(**{name: tensor.double().numpy() for name, tensor in tensors.items()})


@dataclass(frozen=True)
class LipSync:
    """Comparison of N mouths with M voices.

    Args:
        scores: [N, M] in -1..1 at the common offset of the video, within one frame.
        curves: scores by offset [N, M, 2 MAX_SHIFT + 1]; above the center the mouth is late.
        local: scores around each frame [N, M, L], see `compare`.
        offset: common offset of the video in frames; positive = the mouths are late.
        movement: of the mouths, see `MouthTrack.movement`, [N].
        opening: of the mouths [N, L].
        visible: frames in which the mouths are visible, bool [N, L].
        elsewhere: scores with the same voice moved by one second and more [N, M], high ones (80th percentile); 0 in
            clips below two seconds.
        evidence: by how many standard deviations the score of each mouth with each voice exceeds its scores with the
            other voices, and with all voices at other times [N, M]. Each mouth may have its own acceptable offset. NaN
            in clips below two seconds.
    """

    scores: np.ndarray
    curves: np.ndarray
    local: np.ndarray
    elsewhere: np.ndarray
    evidence: np.ndarray
    offset: int
    movement: np.ndarray
    opening: np.ndarray
    visible: np.ndarray

    @property
    def offsets(self) -> np.ndarray:
        """Offset in frames of each mouth to each voice, int [N, M]; near the common one unless another fits better."""
        return _offsets(self.curves, self.offset)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(mouth, voice) pairs with the largest sum of scores, each mouth and voice at most once."""
        return best_pairs(self.scores)


def best_pairs(scores: np.ndarray) -> list[tuple[int, int]]:
    """Rows and columns of a table [N, M] with the largest sum, each at most once (Hungarian assignment)."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(scores, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def compare(
    mouths: Sequence[MouthTrack],
    voices: Sequence[np.ndarray],
    model: LipSyncModel,
    width: int = 38,
    own_offsets: bool = False,
) -> LipSync:
    """Compare all mouths with all voices.

    The mouths of a video share an offset up to one frame: the one with the best assignment of voices to mouths.

    Args:
        mouths: N mouths over L frames.
        voices: predictions [L, D] of M voices, see `LipSyncModel.predict`.
        model: for whitening.
        width: frames of the window of the local scores.
        own_offsets: use the offset of each mouth for its local scores instead of the common one.
    """
    seen = [model.whiten(standardized(mouth.shape, mouth.visible)) * mouth.visible[:, None] for mouth in mouths]
    fast = [voice - voice.mean(axis=0) for voice in voices]
    expected = [model.whiten(voice) for voice in fast]
    length = len(mouths[0].shape) if mouths else 0
    pairs = list(np.ndindex(len(mouths), len(voices)))
    curves = np.zeros((len(mouths), len(voices), 2 * MAX_SHIFT + 1))
    for n, m in pairs:
        curves[n, m] = _curves(seen[n], expected[m][None], mouths[n].visible)[0]
    offset, scores = _common_offset(curves)
    elsewhere, evidence = np.zeros(scores.shape), np.full(scores.shape, np.nan)
    if length >= 2 * FPS and pairs:
        moves = np.unique(np.linspace(FPS, length - FPS, _TIMES).round().astype(int)).tolist()
        moved = [np.stack([np.roll(voice, move, axis=0) for move in moves]) for voice in expected]
        away = [
            [_curves(mouth, voice, track.visible, _REACH) for voice in moved]
            for mouth, track in zip(seen, mouths, strict=True)
        ]
        near = slice(_REACH - 1, _REACH + 2)
        elsewhere = np.quantile(np.array(away)[..., near].max(axis=-1), 0.8, axis=2)
        evidence = _evidence(curves, np.array(away), offset)
    offsets, local = _offsets(curves, offset), np.zeros((len(mouths), len(voices), length))
    for n, mouth in enumerate(mouths):
        for m in range(len(voices)):
            lag = int(offsets[n, m]) if own_offsets else offset
            local[n, m] = _local(seen[n], expected[m], mouth.visible, lag, width)
    return LipSync(
        scores,
        curves,
        local,
        elsewhere,
        evidence,
        offset,
        np.array([mouth.movement for mouth in mouths]),
        np.array([mouth.opening for mouth in mouths]).reshape(len(mouths), length),
        np.array([mouth.visible for mouth in mouths]).reshape(len(mouths), length),
    )


def _curves(seen: np.ndarray, expected: np.ndarray, visible: np.ndarray, reach: int = MAX_SHIFT) -> np.ndarray:
    """Correlations of a mouth [L, D] with K voices [K, L, D] by offset [K, 2 reach + 1]."""
    length, curves = len(seen), np.zeros((len(expected), 2 * reach + 1))
    for lag in range(-reach, reach + 1):
        late, early = max(lag, 0), max(-lag, 0)
        frames = visible[late : length - early] if late + early < length else visible[:0]
        if frames.sum() < _FEWEST:
            continue
        mouth, voices = seen[late : length - early][frames], expected[:, early : length - late][:, frames]
        mouth, voices = mouth - mouth.mean(axis=0), voices - voices.mean(axis=1, keepdims=True)
        norms = np.sqrt((mouth**2).sum() * np.einsum("kld,kld->k", voices, voices))
        products = np.einsum("ld,kld->k", mouth, voices)
        curves[:, reach + lag] = products / np.maximum(norms, 1e-9) * np.sqrt(frames.sum() / visible.sum())
    return curves


def _evidence(curves: np.ndarray, away: np.ndarray, offset: int) -> np.ndarray:
    """`LipSync.evidence` [N, M].

    Args:
        curves: see `LipSync` [N, M, 2 MAX_SHIFT + 1].
        away: those of voices at K other times [N, M, K, 2 _REACH + 1].
        offset: common offset in frames.
    """
    relative = np.arange(-_REACH, _REACH + 1)
    accepted = (np.abs(relative) <= 1) | ((offset + relative > EARLY) & (offset + relative < LATE))
    cost = np.where(accepted, _OWN * np.maximum(np.abs(relative) - 1, 0), np.inf)
    padded = np.pad(curves, ((0, 0), (0, 0), (_REACH, _REACH)), constant_values=-1.0)
    scores = (padded[..., MAX_SHIFT + offset : MAX_SHIFT + offset + len(relative)] - cost).max(axis=2)
    others = (away - cost).max(axis=3)
    evidence = np.zeros(scores.shape)
    for n, m in np.ndindex(*scores.shape):
        rivals = np.concatenate([others[n].ravel(), np.repeat(np.delete(scores[n], m), others.shape[2] // 4)])
        evidence[n, m] = (scores[n, m] - rivals.mean()) / max(rivals.std(), _LEAST_SPREAD)
    return evidence


def _offsets(curves: np.ndarray, common: int) -> np.ndarray:
    distance = np.abs(np.arange(-MAX_SHIFT, MAX_SHIFT + 1) - common)
    return (curves - _OFF_CENTER * distance).argmax(axis=2) - MAX_SHIFT


def _common_offset(curves: np.ndarray) -> tuple[int, np.ndarray]:
    """Offset with the best assignment, and the scores [N, M] within one frame of it."""
    best, offset, scores = -np.inf, 0, np.zeros(curves.shape[:2])
    for lag in sorted(range(1 - MAX_SHIFT, MAX_SHIFT), key=abs):
        near = curves[..., MAX_SHIFT + lag - 1 : MAX_SHIFT + lag + 2].max(axis=2)
        pairs = best_pairs(near)
        value = sum(near[n, m] for n, m in pairs) - _OFF_CENTER * abs(lag) * len(pairs)
        if value > best + 1e-9:
            best, offset, scores = value, lag, near
    pairs = best_pairs(scores)
    around = [sum(curves[n, m, MAX_SHIFT + lag] for n, m in pairs) for lag in range(offset - 1, offset + 2)]
    return offset + int(np.argmax(around)) - 1 if pairs else offset, scores


def _local(seen: np.ndarray, expected: np.ndarray, visible: np.ndarray, offset: int, width: int) -> np.ndarray:
    """Correlation around each frame within one frame of `offset` [L]; 0 where the face is mostly hidden."""
    from scipy.ndimage import uniform_filter1d

    def around(values: np.ndarray) -> np.ndarray:
        return uniform_filter1d(values, min(width, len(values)), mode="constant")

    tables = []
    for lag in (offset - 1, offset, offset + 1):
        shifted = np.roll(expected, lag, axis=0) * visible[:, None]
        shifted[: max(lag, 0)] = 0
        shifted[len(shifted) + min(lag, 0) :] = 0
        power = around((seen**2).sum(axis=1)) * around((shifted**2).sum(axis=1))
        tables.append(around((seen * shifted).sum(axis=1)) / np.sqrt(np.maximum(power, 1e-9)))
    enough = around(visible.astype(float)) > 0.5 * around(np.ones(len(visible)))
    return np.where(enough, np.max(tables, axis=0), 0.0)
