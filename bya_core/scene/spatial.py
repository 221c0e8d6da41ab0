"""Stereo placement: each voice is heard from where its character is in the picture.

The level of the channels follows the center of the character's mask with constant power, and the farther channel is
delayed a little, less than between two ears, so that the sum of both channels stays a good mono mix. Both change
smoothly. Where a character has no mask, the last position is kept.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bya_core.grid import TokenGrid
from bya_core.io.audio import PlacedSpeech, place
from bya_core.io.media import mix_speeches, resample_mono
from bya_core.scene.types import Scene

WIDTH = 0.5  # share of the full range of levels that the width of the picture covers: 7.7 dB at its edges
MAX_DELAY = 1.2e-4  # seconds of the farther channel at the edges of the picture; more would color a mono mix
_SMOOTH = 0.2  # seconds, standard deviation of a Gaussian
BLOCK = 1 << 16  # samples that are placed at once
_SPLINE = 64  # samples beside a block; those farther away change the interpolation by less than rounding does
_SEEN = 1e-3  # smallest share of the tokens that a character covers where it has a position


def video_audio(scene: Scene, masks: Tensor, grid: TokenGrid, matrix: Tensor) -> tuple[Tensor, int] | None:
    """The audio of a generated video: the mix of its voices, in stereo if the scene asks for it.

    Args:
        scene: The scene.
        masks: Character masks [N, T, h, w] in 0..1.
        grid: Token grid of the masks.
        matrix: Audio-character matrix [M, N].

    Returns:
        ([channels, samples], sample rate in Hz); None if there is no speech.
    """
    if not scene.sampling.spatial or all(sound is None for sound in scene.sounds):
        return mix_speeches(scene.sounds, scene.seconds)
    positions = voice_positions(mask_centers(masks, grid, scene.num_frames, scene.fps), matrix.numpy())
    rate = max(speech.sample_rate for speech in (*scene.speeches, *scene.sounds) if speech is not None)
    length = round(scene.seconds * rate)
    mix = np.zeros((2, length), np.float32)
    if scene.sound is not None:
        mix += _signal(scene.sound, rate, length)
    for speech, position in zip(scene.speeches, positions, strict=True):
        if speech is not None:
            voice = _signal(speech, rate, length)
            if scene.sound is not None:  # what no turn of the dialogue contains stays in the middle
                mix -= voice
            add_voice(mix, voice, position, rate, scene.fps)
    mix /= max(1.0, float(mix.max(initial=0.0)), -float(mix.min(initial=0.0)))
    return torch.from_numpy(mix), rate


def mask_centers(masks: Tensor, grid: TokenGrid, num_frames: int, fps: float) -> np.ndarray:
    """Smooth horizontal centers of character masks over time, -1 (left edge) to 1 (right edge): [N, F].

    Args:
        masks: [N, T, h, w] in 0..1.
        grid: Their token grid.
        num_frames: Number F of video frames.
        fps: Frames per second.
    """
    from scipy.ndimage import gaussian_filter1d

    weights = masks.double().sum(dim=2).numpy()  # [N, T, w]
    columns = (np.arange(weights.shape[2]) + 0.5) / weights.shape[2] * 2 - 1
    total = weights.sum(axis=2)
    seen = total >= _SEEN * masks.shape[2] * masks.shape[3]
    first = np.concatenate([[0], np.arange(1, weights.shape[1]) * grid.time_factor - (grid.time_factor - 1)])
    last = np.arange(weights.shape[1]) * grid.time_factor
    times, frames = (first + last) / 2, np.arange(num_frames)
    centers = np.zeros((len(weights), num_frames))
    for n in range(len(weights)):
        if seen[n].any():
            found = weights[n, seen[n]] @ columns / total[n, seen[n]]
            centers[n] = np.interp(frames, times[seen[n]], found)
    return gaussian_filter1d(centers, _SMOOTH * fps, axis=1, mode="nearest")


def voice_positions(centers: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Positions [M, F] of voices: the mean of the centers [N, F] of the characters that they drive; 0 without one."""
    weights = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1e-9)
    return weights @ centers


def add_voice(mix: np.ndarray, voice: np.ndarray, position: np.ndarray, rate: int, fps: float) -> None:
    """Add a mono voice to a stereo mix in place, block by block, so that memory is bounded.

    The power of both channels together is twice that of the voice at every position, as of a mono voice on two
    channels.

    Args:
        mix: [2, S].
        voice: [S].
        position: In each video frame [F], -1 (left) to 1 (right).
        rate: Sample rate in Hz.
        fps: Frames per second.
    """
    from scipy.ndimage import map_coordinates

    margin = math.ceil(MAX_DELAY * rate) + _SPLINE
    for start in range(0, len(voice), BLOCK):
        samples = np.arange(start, min(start + BLOCK, len(voice)))
        place = np.clip(np.interp(samples / rate * fps, np.arange(len(position)), position), -1.0, 1.0)
        angle = (1 + WIDTH * place) * math.pi / 4
        first = max(0, start - margin)
        near = voice[first : start + BLOCK + margin].astype(np.float64)
        for channel, gain, side in ((0, np.cos(angle), place), (1, np.sin(angle), -place)):
            times = samples - first - np.maximum(side, 0.0) * MAX_DELAY * rate
            heard = map_coordinates(near, [times], order=3, mode="constant")
            mix[channel, start : start + BLOCK] += math.sqrt(2) * gain * heard


def _signal(speech: PlacedSpeech, rate: int, length: int) -> np.ndarray:
    """A speech as mono samples float32 [length] at `rate` on the time axis of the video."""
    last = max(0, math.ceil((length / rate - speech.offset + 1) * speech.sample_rate))
    mono = resample_mono(speech.waveform[:, :last], speech.sample_rate, rate)
    placed = place(mono[None], rate, speech.offset, speech.gain)[0, :length]
    return F.pad(placed, (0, length - len(placed))).numpy()
