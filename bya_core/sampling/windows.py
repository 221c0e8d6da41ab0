"""Long videos in windows: where each one lies, and how neighbours are joined. Pure planning; nothing is sampled here.

All windows lie on the latent grid of the whole video: window k starts at an absolute video frame that is a multiple of
the VAE's time factor, so that latent frame t of the window is latent frame `start / time_factor + t` of the video.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bya_core.errors import InputError


@dataclass(frozen=True)
class Window:
    """A part of the video that is made in one go.

    Args:
        index: 0, 1, ...
        start, stop: absolute video frames, `stop` not included.
        lead: frames at its beginning that the window before has made too; 0 for the first.
        tail: frames at its end that the window after makes too; 0 for the last.
        time_factor: video frames per latent frame (after the first).
    """

    index: int
    start: int
    stop: int
    lead: int = 0
    tail: int = 0
    time_factor: int = 4

    @property
    def frames(self) -> int:
        """Video frames of the window."""
        return self.stop - self.start

    @property
    def latent_start(self) -> int:
        """Its first latent frame, counted in the whole video."""
        return self.start // self.time_factor

    @property
    def latent_frames(self) -> int:
        return (self.frames - 1) // self.time_factor + 1

    def latent(self, frames: int) -> int:
        """Latent frames that hold so many video frames at an end of the window; 0 of 0."""
        return 0 if frames == 0 else (frames - 1) // self.time_factor + 1

    @property
    def final(self) -> slice:
        """Video frames [start, stop) of the whole video that are done once this window is: all but its tail."""
        return slice(self.start, self.stop - self.tail)


def plan_windows(num_frames: int, frames: int, overlap: int, time_factor: int = 4) -> list[Window]:
    """Windows that cover a video of `num_frames`, none longer than `frames`, each sharing `overlap` with the next.

    All have nearly the same length (they differ by one latent frame at most), so that the last one is no stub. There
    are as few as possible.

    Raises:
        InputError: lengths that are not 1 + a multiple of `time_factor`, or windows no longer than their overlap.
    """
    for name, value in (("a video", num_frames), ("windows", frames), ("an overlap", overlap)):
        if value < 1 or (value - 1) % time_factor:
            near = max(0, round((value - 1) / time_factor)) * time_factor + 1
            raise InputError(f"{name} of {value} frames", f"1 + a multiple of {time_factor}", f"use {near}")
    if num_frames <= frames:
        return [Window(0, 0, num_frames, time_factor=time_factor)]
    if frames <= overlap:
        came = f"windows of {frames} frames with {overlap} in common"
        raise InputError(came, "windows longer than their overlap", "lengthen them, or lessen the overlap")
    strides = (num_frames - overlap) // time_factor  # latent frames that windows add, one after the other
    count = -(-strides // ((frames - overlap) // time_factor))
    each, longer = divmod(strides, count)
    windows, start = [], 0
    for index in range(count):
        stride = (each + (index < longer)) * time_factor
        last = index == count - 1
        lead, tail = (overlap if index else 0), (0 if last else overlap)
        windows.append(Window(index, start, start + stride + overlap, lead, tail, time_factor))
        start += stride
    return windows


def fade(frames: int) -> Tensor:
    """Weight [frames] of the later of two windows over what they share: rises evenly, never quite 0 or 1."""
    return (torch.arange(frames) + 1) / (frames + 1)


def join(before: Tensor, after: Tensor, dim: int = 0) -> Tensor:
    """What two windows made of the same frames, faded from one to the other along `dim`; keeps the kind of number.

    Args:
        before, after: of one shape, uint8 or float.
    """
    weight = fade(before.shape[dim])
    weight = weight.view([-1 if axis == dim % before.ndim else 1 for axis in range(before.ndim)])
    mixed = torch.lerp(before.float(), after.float(), weight.to(before.device))
    return mixed.round().to(before.dtype) if before.dtype == torch.uint8 else mixed.to(before.dtype)
