"""Loudness of a recording, sampled once per video frame."""

from __future__ import annotations

import numpy as np


def loudness_track(
    waveform: np.ndarray, sample_rate: float, num_frames: int, fps: float = 25.0, window: float | None = None
) -> np.ndarray:
    """Root mean square of the waveform around each video frame, float64 [F].

    Frame k corresponds to time k / fps. Samples outside the recording count as silence.

    Args:
        waveform: [samples], or [channels, samples]; channels are averaged.
        sample_rate: Sample rate in Hz.
        num_frames: Number of frames F.
        fps: Frame rate.
        window: Length of the centered averaging window in seconds; `None` selects 1 / fps.
    """
    wave = np.asarray(waveform, dtype=np.float64)
    wave = wave.mean(axis=0) if wave.ndim > 1 else wave
    energy = np.concatenate([[0.0], np.cumsum(wave**2)])
    half = (window or 1.0 / fps) / 2.0
    center = np.arange(num_frames) / fps
    begin = np.round((center - half) * sample_rate).astype(int)
    end = np.round((center + half) * sample_rate).astype(int)
    total = energy[np.clip(end, 0, wave.size)] - energy[np.clip(begin, 0, wave.size)]
    return np.sqrt(np.maximum(total, 0.0) / np.maximum(end - begin, 1))
