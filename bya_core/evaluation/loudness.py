"""Loudness of a recording, one number per video frame."""

from __future__ import annotations

import numpy as np


def loudness_track(
    waveform: np.ndarray, sample_rate: float, num_frames: int, fps: float = 25.0, window: float | None = None
) -> np.ndarray:
    """Root mean square around each frame, float64 [F].

    Frame k shows time k / fps; the mean is taken over `window` seconds (default 1 / fps) centred there. What
    lies outside the recording counts as silence.

    Args:
        waveform: [samples], or [channels, samples] (channels are averaged).
    """
    wave = np.asarray(waveform, dtype=np.float64)
    wave = wave.mean(axis=0) if wave.ndim > 1 else wave
    energy = np.concatenate([[0.0], np.cumsum(wave**2)])
    half = (window or 1.0 / fps) / 2.0
    centre = np.arange(num_frames) / fps
    begin = np.round((centre - half) * sample_rate).astype(int)
    end = np.round((centre + half) * sample_rate).astype(int)
    total = energy[np.clip(end, 0, wave.size)] - energy[np.clip(begin, 0, wave.size)]
    return np.sqrt(np.maximum(total, 0.0) / np.maximum(end - begin, 1))
