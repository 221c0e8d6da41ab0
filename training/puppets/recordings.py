"""Recordings that drive the mouths of puppets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bya_core.io.loudness import loudness_track
from bya_core.io.media import read_audio, resample_mono
from training.puppets.voice import SAMPLE_RATE


def load_recordings(paths: Sequence[Path], num_frames: int, fps: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """Mouth opening [N,F] from the loudness of each recording, and the recordings [N,S] at 16 kHz, at clip length.

    Raises:
        InputError: a missing file, or a file without audio.
    """
    length = round(num_frames / fps * SAMPLE_RATE)
    openings, speeches = [], []
    for path in paths:
        waveform = resample_mono(*read_audio(path), SAMPLE_RATE).numpy()
        speeches.append(np.pad(waveform[:length], (0, max(0, length - len(waveform)))))
        openings.append(opening_from_recording(speeches[-1], SAMPLE_RATE, num_frames, fps))
    return np.stack(openings), np.stack(speeches)


def opening_from_recording(
    waveform: np.ndarray, sample_rate: int, num_frames: int | None = None, fps: float = 25.0
) -> np.ndarray:
    """Mouth opening [F] in 0..1 from the loudness of a recording, [samples] or [channels, samples].

    Loudness is relative to the 95th percentile; 30 dB below it, and digital silence, give exactly 0.
    """
    wave = np.asarray(waveform, dtype=np.float64)
    wave = wave.mean(axis=0) if wave.ndim > 1 else wave
    frames = num_frames if num_frames is not None else round(wave.shape[-1] / sample_rate * fps)
    loud = loudness_track(wave, sample_rate, frames, fps, window=1.5 / fps)
    reference = float(np.percentile(loud, 95)) if frames else 0.0
    if reference < 1e-4:
        return np.zeros(frames, dtype=np.float32)
    relative = loud / reference
    opening = np.clip((relative - 0.03) / 0.97, 0.0, 1.0) ** 0.8
    return opening.astype(np.float32)
