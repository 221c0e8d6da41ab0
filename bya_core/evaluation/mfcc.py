"""Mel-frequency cepstra as SyncNet was trained on them (python_speech_features, its defaults)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

RATE = 16_000  # Hz
FRAME, STEP = 400, 160  # samples: 25 and 10 ms
_FFT, _MELS, _CEPSTRA, _LIFTER, _PREEMPHASIS = 512, 26, 13, 22, 0.97
_TINY = float(np.finfo(float).eps)


def mfcc(wave: np.ndarray) -> np.ndarray:
    """Cepstra of a recording, float64 [columns, 13], 100 a second; the first one is the log of the energy.

    Args:
        wave: [samples] at 16 kHz in the scale of int16 (the energy, and so the first coefficient, depends on it).
            What lies beyond the end counts as zeros; there is at least one column.
    """
    from scipy.fft import dct, rfft

    wave = np.asarray(wave, dtype=np.float64)
    sharp = np.append(wave[:1], wave[1:] - _PREEMPHASIS * wave[:-1])
    columns = 1 + max(0, -(-(sharp.size - FRAME) // STEP))
    sharp = np.pad(sharp, (0, max(0, (columns - 1) * STEP + FRAME - sharp.size)))
    frames = np.lib.stride_tricks.sliding_window_view(sharp, FRAME)[::STEP][:columns]
    power = np.square(np.abs(rfft(frames, _FFT))) / _FFT
    energy, mels = power.sum(axis=1), power @ _filters().T
    logs = np.log(np.where(mels == 0, _TINY, mels))
    cepstra = dct(logs, type=2, axis=1, norm="ortho")[:, :_CEPSTRA]
    cepstra *= 1 + _LIFTER / 2 * np.sin(np.pi * np.arange(_CEPSTRA) / _LIFTER)
    cepstra[:, 0] = np.log(np.where(energy == 0, _TINY, energy))
    return cepstra


@lru_cache(maxsize=1)
def _filters() -> np.ndarray:
    """Triangles on the mel scale, their corners on whole bins: [26, 257]."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, _MELS + 2) / 2595) - 1)
    corner = np.floor((_FFT + 1) * hertz / RATE)
    low, middle, high = corner[:-2, None], corner[1:-1, None], corner[2:, None]
    bins = np.arange(_FFT // 2 + 1)
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.where(bins < middle, rising, falling) * ((bins >= low) & (bins < high))
