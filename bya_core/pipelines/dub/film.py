"""The film that is dubbed: its frames as they are, and a copy at the frame rate of the model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.container import open_media, usable_stream
from bya_core.io.files import existing_file
from bya_core.io.media import decode_pictures, on_time_line, read_frames, read_recording
from bya_core.io.video import EXPECTED, MAX_FPS, Video
from bya_core.scene.types import Scene, Speech

MAX_SIDE = 960  # pixels of the longer side of the copy in which people are searched
FPS = Scene.fps


@dataclass(frozen=True)
class Film:
    """An existing video.

    Args:
        copy: uint8 [F, h, w, 3] at `FPS` frames per second, upright, at most `MAX_SIDE` pixels per side.
        size: Height and width in pixels.
        fps: Frames per second.
        num_frames: Number of frames.
        frames: Decodes all frames in order, uint8 [H, W, 3] each.
        sound: Its sound; None without.
        notices: One sentence each.
    """

    copy: Tensor
    size: tuple[int, int]
    fps: float
    num_frames: int
    frames: Callable[[], Iterable[np.ndarray]]
    sound: Speech | None = None
    notices: tuple[str, ...] = ()

    @property
    def video(self) -> Video:
        """The copy, with the number of the frame of the film that each of its frames shows."""
        shown = nearest_frames(len(self.copy), self.fps, self.num_frames)
        return Video(self.copy, FPS, shown, self.num_frames)

    @property
    def seconds(self) -> float:
        """Its length in seconds."""
        return self.num_frames / self.fps

    @property
    def scale(self) -> float:
        """Pixels of the film per pixel of the copy."""
        return self.size[1] / self.copy.shape[2]


def open_film(path: str | os.PathLike[str]) -> Film:
    """Open a video file.

    Raises:
        InputError: A file that is missing, unreadable, too long, or has no video.
    """
    path = existing_file(path, "the film")
    copy = read_frames(path, FPS, max_side=MAX_SIDE, what="the film")
    own = read_frames(path, max_side=16, what="the film")
    fps, count = own.fps, len(own.frames)
    height, width = next(decode_pictures(path, what="the film")).pixels.shape[:2]

    def frames() -> Iterator[np.ndarray]:
        last, pixels = -1, np.zeros(0, np.uint8)
        for k, picture in on_time_line(decode_pictures(path, what="the film"), fps):
            if k >= count:
                return
            if picture.index != last:
                last, pixels = picture.index, picture.pixels
            if pixels.shape[:2] != (height, width):
                raise InputError(f"the film {path} changes its size", "one size", "convert it")
            yield pixels

    sound, notices = _sound(path)
    notices = [*(notice for notice in copy.notices if "to fit into memory" not in notice), *notices]
    if own.num_pictures != count:
        notices.append(f"{path.name} has a variable frame rate: it is written at {fps:g} frames per second.")
    return Film(copy.frames, (height, width), fps, count, frames, sound, tuple(notices))


def film_of(frames: Tensor, fps: float, sound: tuple[Tensor, int] | None = None) -> Film:
    """A film in memory.

    Args:
        frames: uint8 [F, H, W, 3].
        fps: Frames per second.
        sound: ([channels, samples], sample rate in Hz), or None.

    Raises:
        InputError: No frames, or a frame rate out of range.
    """
    if not len(frames):
        raise InputError("a film without frames", "at least one frame", "choose another one")
    if not 0 < fps <= MAX_FPS:
        raise InputError(f"{fps:g} frames per second", f"at most {MAX_FPS:g}", "use a usual frame rate")
    count = max(1, round(len(frames) / fps * FPS))
    nearest = nearest_frames(count, fps, len(frames))
    size = int(frames.shape[1]), int(frames.shape[2])
    speech = None if sound is None else Speech(*sound)
    return Film(_reduced(frames[nearest]), size, fps, len(frames), lambda: (f.numpy() for f in frames), speech)


def nearest_frames(count: int, fps: float, num_frames: int) -> Tensor:
    """Number of the frame of a film that is nearest to each of `count` frames at `FPS` frames per second."""
    return (torch.arange(count) / FPS * fps).round().long().clamp(max=num_frames - 1)


def masks_of(images: Tensor, count: int, film: Film) -> np.ndarray:
    """Masks of the characters in a film, bool [N, F, h, w] at `FPS` frames per second.

    Args:
        images: [N * K, h, w] in 0..1, all K masks of the first character first: one per character, or one per frame.
        count: Number of characters N.
        film: The film.

    Raises:
        InputError: Another number of masks.
    """
    each, rest = divmod(images.shape[0], count)
    if rest or each not in (1, film.num_frames, len(film.copy)):
        expected = f"{count} (one per character) or {count * film.num_frames} (characters x frames)"
        raise InputError(f"{images.shape[0]} masks for {count} characters", expected, "connect one of these numbers")
    masks = images.reshape(count, each, *images.shape[1:]).numpy() > 0.5
    if each == film.num_frames and each != 1:
        masks = masks[:, film.video.pictures.numpy()]
    return np.broadcast_to(masks, (count, len(film.copy), *masks.shape[2:]))


def _reduced(frames: Tensor) -> Tensor:
    scale = MAX_SIDE / max(frames.shape[1:3])
    if scale >= 1:
        return frames
    size = [max(1, round(side * scale)) for side in frames.shape[1:3]]
    small = [torch.nn.functional.interpolate(f.movedim(-1, 0)[None].float(), size, mode="area")[0] for f in frames]
    return torch.stack(small).movedim(1, -1).round().to(torch.uint8)


def _sound(path: Path) -> tuple[Speech | None, Sequence[str]]:
    """The sound of a film, None without, and notices."""
    with open_media(path, "the film", EXPECTED) as container:
        if usable_stream(container, "audio") is None:
            return None, ()
    recording = read_recording(path, what="the film")
    return Speech(recording.waveform, recording.sample_rate), recording.notices
