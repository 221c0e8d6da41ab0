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
    def latent(self) -> slice:
        """Its latent frames, counted in the whole video."""
        return slice(self.start // self.time_factor, (self.stop - 1) // self.time_factor + 1)

    @property
    def latent_lead(self) -> int:
        """Latent frames of its lead."""
        return -(-self.lead // self.time_factor)

    @property
    def latent_tail(self) -> int:
        """Latent frames of its tail."""
        return -(-self.tail // self.time_factor)


OVERLAP = 9
"""Video frames that windows share unless told otherwise: three latent frames, of which two show motion."""


def plan_windows(num_frames: int, frames: int, overlap: int | None = None, time_factor: int = 4) -> list[Window]:
    """Windows that cover a video of `num_frames`, none longer than `frames`, each sharing `overlap` with the next.

    All have nearly the same length (they differ by one latent frame at most), so that the last one is no stub. There
    are as few as possible.

    Args:
        num_frames: of the video.
        frames: most that one window has.
        overlap: None = `OVERLAP`, or less where that were more than half a window.
        time_factor: video frames per latent frame (after the first).

    Raises:
        InputError: lengths that are not 1 + a multiple of `time_factor`, or windows no longer than their overlap.
    """
    if overlap is None:
        overlap = max(0, min(OVERLAP, frames // 2) - 1) // time_factor * time_factor + 1
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


def fade(before: Tensor, after: Tensor) -> Tensor:
    """What two windows made of the same frames, evenly faded from one to the other along the first axis.

    Args:
        before, after: [O, ...] of one shape, uint8 or float. Neither counts 0 anywhere.

    Returns:
        The same shape and kind of number.
    """
    count = before.shape[0]
    weight = (torch.arange(count, device=before.device) + 1) / (count + 1)
    mixed = torch.lerp(before.float(), after.float(), weight.view(-1, *[1] * (before.ndim - 1)))
    return mixed.round().to(before.dtype) if before.dtype == torch.uint8 else mixed.to(before.dtype)


class Joiner:
    """Windows in, one after the other; out comes the video without a gap and without anything twice.

    It keeps no more than what the next window shares with the last one.
    """

    def __init__(self) -> None:
        self._open: Tensor | None = None

    def add(self, piece: Tensor, lead: int, tail: int) -> Tensor:
        """The next window [K, ...]; returns what is final now, all but its tail.

        Args:
            lead: how many of K the window before has made too; 0 for the first.
            tail: how many of K the window after will make too; 0 for the last.
        """
        if lead and self._open is not None:
            piece = torch.cat([fade(self._open, piece[:lead]), piece[lead:]])
        done = piece.shape[0] - tail
        self._open = piece[done:].clone()
        return piece[:done]
