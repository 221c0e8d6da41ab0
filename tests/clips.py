"""Real people who speak: the GRID clips in tests/assets/grid, alone and combined to videos with known truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import pytest

FPS = 25
SAMPLE_RATE = 16_000
FOLDER = Path(__file__).resolve().parent / "assets" / "grid"
NAMES = ("bbaf2n", "brbk7n", "lbax4n", "lbbc2a", "lrwp9a")
"""The clips; every one shows another person."""


def clip_path(name: str) -> Path:
    """Path of a clip; skips the test if the folder was left out."""
    path = FOLDER / f"{name}.mp4"
    if not path.is_file():
        pytest.skip(f"no {path}: the clips of real people are not on this machine")
    return path


@lru_cache(maxsize=len(NAMES))
def read_clip(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [75, 480, 360, 3] and speech float32 [48000] at 16 kHz of a clip; read-only."""
    with av.open(str(clip_path(name))) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(clip_path(name))) as container:
        pieces = [frame.to_ndarray().mean(axis=0) for frame in container.decode(audio=0)]
    samples = len(frames) * SAMPLE_RATE // FPS
    speech = np.concatenate(pieces)[:samples].astype(np.float32)
    speech = np.pad(speech, (0, samples - len(speech)))
    frames.flags.writeable = speech.flags.writeable = False
    return frames, speech


def side_by_side(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """People next to each other, all speaking at once.

    Returns:
        Frames uint8 [75, 480, 360 * N, 3] and the speech of each person, float32 [N, 48000] at 16 kHz.
    """
    clips = [read_clip(name) for name in names]
    return np.concatenate([frames for frames, _ in clips], axis=2), np.stack([speech for _, speech in clips])


def taking_turns(names: Sequence[str], frames: int = 75) -> tuple[np.ndarray, np.ndarray]:
    """People next to each other who speak one after the other; the others keep still meanwhile.

    Returns:
        Frames uint8 [N * frames, 480, 360 * N, 3] and the speech of each person, float32 [N, S] at 16 kHz.
    """
    clips = [read_clip(name) for name in names]
    samples = frames * SAMPLE_RATE // FPS
    still = np.abs((np.arange(frames) + 8) % 16 - 8)  # frames 0 to 8 and back, before anybody speaks
    parts, speeches = [], np.zeros((len(clips), len(clips) * samples), np.float32)
    for turn in range(len(clips)):
        shown = [pixels[:frames] if n == turn else pixels[still] for n, (pixels, _) in enumerate(clips)]
        parts.append(np.concatenate(shown, axis=2))
        speeches[turn, turn * samples : (turn + 1) * samples] = clips[turn][1][:samples]
    return np.concatenate(parts), speeches


def write_clip(
    path: Path,
    frames: Iterable[np.ndarray],
    audio: np.ndarray | None,
    fps: float = FPS,
    times: Sequence[float] | None = None,
    rotation: int = 0,
) -> Path:
    """Write frames uint8 [H,W,3] and mono audio [S] at 16 kHz as H.264 and AAC.

    Args:
        times: seconds at which each frame is shown; None = every 1 / `fps` seconds.
        rotation: counterclockwise rotation in degrees that a player applies, as phones store it.
    """
    base = Fraction(1, 90_000)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        video.options = {"crf": "20", "preset": "veryfast"}
        video.pix_fmt, video.codec_context.time_base = "yuv420p", base
        if rotation:
            video.set_display_rotation(rotation)
        sound = None if audio is None else container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for index, pixels in enumerate(frames):
            if index == 0:
                video.height, video.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.time_base, frame.pts = base, round((index / fps if times is None else times[index]) / base)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None and audio is not None:
            samples = av.AudioFrame.from_ndarray(audio[None].astype(np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts = SAMPLE_RATE, 0
            container.mux(sound.encode(samples))
            container.mux(sound.encode(None))
    return path
