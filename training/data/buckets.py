"""Buckets: the lengths and sizes to which clips are cropped and resized, so that they can be batched."""

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
from training.data.clip import ClipSample, resampled_length

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
            raise InputError(f"bucket {text!r}", "FRAMESxHEIGHTxWIDTH such as 49x480x720", "use this format") from error
        return Bucket(frames, height, width)


@dataclass(frozen=True)
class Window:
    """A part of a clip: the frames from `start` on, at the length and size of a bucket."""

    start: int
    bucket: Bucket


def choose_bucket(frames: int, height: int, width: int, buckets: Sequence[Bucket]) -> Bucket | None:
    """The bucket for a clip: nearest aspect ratio, then no upscaling, then longest, then largest; None = too short."""
    candidates = [b for b in buckets if b.frames <= frames]

    def rank(b: Bucket) -> tuple[float, float, int, int]:
        aspect = abs(math.log(b.width / b.height) - math.log(width / height))
        upscaling = max(0.0, math.log(b.height * b.width / (height * width)))
        return round(aspect, 3), round(upscaling, 3), -b.frames, -b.height * b.width

    return min(candidates, key=rank, default=None)


def native_bucket(
    frames: int, height: int, width: int, unit: int, time_factor: int, longest: int | None = None
) -> Bucket | None:
    """The largest valid bucket inside a clip; None = the clip is smaller than one token."""
    frames = min(frames, longest or frames)
    bucket = Bucket((frames - 1) // time_factor * time_factor + 1, height // unit * unit, width // unit * unit)
    return bucket if bucket.height and bucket.width else None


def window_starts(frames: int, length: int) -> list[int]:
    """Start frames of evenly spaced windows of `length` frames in a clip of `frames`."""
    count = max(1, frames // length)
    return [round(i * (frames - length) / max(1, count - 1)) for i in range(count)]


def resample_frames(sample: ClipSample, fps: float) -> ClipSample:
    """Resample the frames of a clip to `fps` by nearest neighbor. Speech is unchanged.

    Speech features are dropped if the frame rate changes, as they are aligned with the original frames.
    """
    if abs(sample.fps - fps) < 1e-3:
        return sample
    nearest = np.arange(resampled_length(len(sample.frames), sample.fps, fps)) * sample.fps / fps
    chosen = np.minimum(np.rint(nearest).astype(int), len(sample.frames) - 1)
    return replace(
        sample,
        frames=sample.frames[chosen],
        fps=fps,
        masks=sample.masks[:, chosen],
        speech_features=None,
        mouths=None if sample.mouths is None else sample.mouths[:, chosen],
    )


@dataclass(frozen=True)
class Crop:
    """A crop rectangle; parts outside of the image are black.

    Args:
        top, left: first row and column; negative values add a black border.
        height, width: size in pixels.
    """

    top: int
    left: int
    height: int
    width: int

    def apply(self, pixels: Tensor) -> Tensor:
        """[..., H, W] -> [..., height, width]."""
        rows, columns = pixels.shape[-2:]
        inner = pixels[..., max(0, self.top) : self.top + self.height, max(0, self.left) : self.left + self.width]
        edges = (
            max(0, -self.left), max(0, self.left + self.width - columns),
            max(0, -self.top), max(0, self.top + self.height - rows),
        )  # fmt: skip
        return F.pad(inner, edges) if any(edges) else inner


def find_crop(height: int, width: int, bucket: Bucket, fit: Fit, masks: np.ndarray | None = None) -> Crop:
    """The crop of a height x width image with the aspect ratio of a bucket.

    "cover" crops the longer side, centered on the characters where possible; "letterbox" keeps the whole image and adds
    black borders (as the released training code does).

    Args:
        height, width: size of the image.
        bucket: target size.
        fit: "cover" or "letterbox".
        masks: character masks [N,F,H,W]; None = crop at the center of the image.
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
    return Crop(top, left, *size)


def needs_crop(height: int, width: int, bucket: Bucket) -> bool:
    """Whether the aspect ratios of an image and a bucket differ by a pixel or more."""
    crop = find_crop(height, width, bucket, "cover")
    return (crop.height, crop.width) != (height, width)


def resize_frames(frames: np.ndarray, crop: Crop, bucket: Bucket) -> Tensor:
    """[F,H,W,3] uint8 -> [1,3,F,height,width] in -1..1; frames of the right size keep their exact pixels."""
    size = bucket.height, bucket.width
    video = torch.empty(3, len(frames), *size)
    for index, frame in enumerate(frames):
        image = crop.apply(torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).float())
        if image.shape[1:] != size:
            image = F.interpolate(image[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 255)
        video[:, index] = image
    return (video / 127.5 - 1.0)[None]
