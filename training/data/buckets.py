"""Sizes and lengths that clips are brought to, so that batches can be made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bya_core.errors import InputError
from training.data.clip import SAMPLE_RATE, ClipSample

Fit = Literal["cover", "letterbox"]


@dataclass(frozen=True, order=True)
class Bucket:
    """A length in video frames and a size in pixels."""

    frames: int
    height: int
    width: int

    @staticmethod
    def parse(text: str) -> Bucket:
        """ "17x64x96" (frames, height, width). Raises InputError for anything else."""
        try:
            frames, height, width = (int(number) for number in text.lower().split("x"))
        except ValueError as error:
            raise InputError(f"bucket {text!r}", "FRAMESxHEIGHTxWIDTH such as 49x480x720", "write it so") from error
        return Bucket(frames, height, width)


@dataclass(frozen=True)
class View:
    """What of a clip is trained on: the frames from `start` on, brought to a bucket."""

    start: int
    bucket: Bucket


def choose_bucket(frames: int, height: int, width: int, buckets: Sequence[Bucket]) -> Bucket | None:
    """The bucket for a clip: nearest in shape, then not enlarging, then longest and largest; None = too short."""
    fitting = [b for b in buckets if b.frames <= frames]

    def distance(b: Bucket) -> tuple[float, float, int, int]:
        shape = abs(math.log(b.width / b.height) - math.log(width / height))
        enlarging = max(0.0, math.log(b.height * b.width / (height * width)))
        return round(shape, 3), round(enlarging, 3), -b.frames, -b.height * b.width

    return min(fitting, key=distance, default=None)


def own_bucket(
    frames: int, height: int, width: int, unit: int, time_factor: int, longest: int | None = None
) -> Bucket | None:
    """The largest bucket inside a clip whose sizes the grid allows; None = the clip is smaller than one token."""
    frames = min(frames, longest or frames)
    bucket = Bucket((frames - 1) // time_factor * time_factor + 1, height // unit * unit, width // unit * unit)
    return bucket if bucket.height and bucket.width else None


def window_starts(frames: int, length: int) -> list[int]:
    """First frames of the windows of `length` that a clip of `frames` is seen through, evenly spread."""
    count = max(1, frames // length)
    return [round(i * (frames - length) / max(1, count - 1)) for i in range(count)]


def at_rate(sample: ClipSample, fps: float) -> ClipSample:
    """The clip with `fps` frames a second: of each time the nearest frame. Voices stay as they are.

    Speech features are left out where frames change: they belong to the frames as they were.
    """
    if abs(sample.fps - fps) < 1e-3:
        return sample
    nearest = np.arange(resampled(len(sample.frames), sample.fps, fps)) * sample.fps / fps
    chosen = np.minimum(np.rint(nearest).astype(int), len(sample.frames) - 1)
    return replace(
        sample,
        frames=sample.frames[chosen],
        fps=fps,
        masks=sample.masks[:, chosen],
        speech_features=None,
        mouths=None if sample.mouths is None else sample.mouths[:, chosen],
    )


def resampled(frames: int, fps: float, target: float) -> int:
    """Number of frames of a clip at another rate."""
    return frames if abs(fps - target) < 1e-3 else max(1, round(frames * target / fps))


@dataclass(frozen=True)
class Cut:
    """The part of a picture that becomes a bucket's picture; beyond its edges lies black.

    Args:
        top, left: first row and column, below zero where black is added.
        height, width: of the part, in pixels of the picture.
    """

    top: int
    left: int
    height: int
    width: int

    def of(self, pixels: Tensor) -> Tensor:
        """[..., H, W] -> [..., height, width]."""
        rows, columns = pixels.shape[-2:]
        inner = pixels[..., max(0, self.top) : self.top + self.height, max(0, self.left) : self.left + self.width]
        edges = (
            max(0, -self.left), max(0, self.left + self.width - columns),
            max(0, -self.top), max(0, self.top + self.height - rows),
        )  # fmt: skip
        return F.pad(inner, edges) if any(edges) else inner


def find_cut(height: int, width: int, bucket: Bucket, fit: Fit, masks: np.ndarray | None = None) -> Cut:
    """Which part of a height x width picture is shown at the shape of a bucket.

    "cover" cuts what is too wide or too high, as near to the middle of all people as possible; "letterbox" keeps
    everything and adds black on both sides (as the released training does).

    Args:
        masks: [N,F,H,W], to know where people are; None = the middle of the picture.
    """
    aspect = bucket.width / bucket.height
    wide = width / height > aspect
    if wide == (fit == "cover"):
        size = height, max(1, min(width, round(height * aspect))) if fit == "cover" else round(height * aspect)
    else:
        size = (max(1, min(height, round(width / aspect))) if fit == "cover" else round(width / aspect)), width
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    if fit == "cover" and masks is not None and masks.any():
        rows, columns = (np.flatnonzero(masks.any(axis)) for axis in ((0, 1, 3), (0, 1, 2)))
        top = int(np.clip((rows[0] + rows[-1] + 1 - size[0]) // 2, 0, height - size[0]))
        left = int(np.clip((columns[0] + columns[-1] + 1 - size[1]) // 2, 0, width - size[1]))
    return Cut(top, left, *size)


def needs_cut(height: int, width: int, bucket: Bucket) -> bool:
    """Whether a picture and a bucket differ in shape by a pixel or more."""
    cut = find_cut(height, width, bucket, "cover")
    return (cut.height, cut.width) != (height, width)


def fit_frames(frames: np.ndarray, cut: Cut, bucket: Bucket) -> Tensor:
    """[F,H,W,3] uint8 -> [1,3,F,height,width] in -1..1; frames that fit already keep their pixels exactly."""
    size = bucket.height, bucket.width
    made = torch.empty(3, len(frames), *size)
    for place, frame in enumerate(frames):
        picture = cut.of(torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).float())
        if picture.shape[1:] != size:
            picture = F.interpolate(picture[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 255)
        made[:, place] = picture
    return (made / 127.5 - 1.0)[None]


def silence(frames: int, fps: float) -> np.ndarray:
    """A voice that says nothing for so many frames, [S] float32."""
    return np.zeros(round(frames / fps * SAMPLE_RATE), np.float32)
