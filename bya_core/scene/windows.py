"""Windows of long videos: their position, and blending of their overlaps.

Windows are aligned to the latent grid of the whole video: each starts at a multiple of the VAE's time factor, so that
latent frame t of a window is latent frame `start / time_factor + t` of the video.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bya_core.config import WindowConfig
from bya_core.errors import InputError
from bya_core.grid import round_frames


@dataclass(frozen=True)
class Window:
    """A part of the video that is sampled at once.

    Args:
        index: 0, 1, ...
        start, stop: absolute video frames, `stop` not included.
        lead: frames at its start shared with the previous window; 0 for the first.
        tail: frames at its end shared with the next window; 0 for the last.
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
        """Number of video frames."""
        return self.stop - self.start

    @property
    def latent(self) -> slice:
        """Its latent frames in the whole video."""
        return slice(self.start // self.time_factor, (self.stop - 1) // self.time_factor + 1)

    @property
    def latent_lead(self) -> int:
        """Number of latent frames of the lead."""
        return -(-self.lead // self.time_factor)

    @property
    def latent_tail(self) -> int:
        """Number of latent frames of the tail."""
        return -(-self.tail // self.time_factor)


OVERLAP = 9
"""Default overlap in video frames: three latent frames, of which two show motion."""


def round_lengths(
    num_frames: int, windows: WindowConfig, time_factor: int
) -> tuple[int, WindowConfig, tuple[str, ...]]:
    """Round the lengths of a scene to 1 + a multiple of `time_factor`, the only valid ones.

    Args:
        num_frames: video frames of the whole video.
        windows: options of its windows.
        time_factor: video frames per latent frame (after the first).

    Returns:
        Both with rounded lengths, and a notice for each change.
    """
    notices = []

    def rounded(value: int, what: str) -> int:
        near = round_frames(value, time_factor)
        if near != value:
            notices.append(f"{what} of {value} frames is rounded to {near}: 1 + a multiple of {time_factor}.")
        return near

    num_frames = rounded(num_frames, "The length")
    frames = None if windows.frames is None else rounded(windows.frames, "The window length")
    overlap = None if windows.overlap is None else rounded(windows.overlap, "The overlap")
    if frames is not None and overlap is not None and frames <= overlap:
        frames = overlap + time_factor  # they differed by less than a latent frame
    return num_frames, replace(windows, frames=frames, overlap=overlap), tuple(notices)


def plan_windows(num_frames: int, frames: int, overlap: int | None = None, time_factor: int = 4) -> list[Window]:
    """Plan as few windows as possible, whose lengths differ by at most one latent frame.

    Args:
        num_frames: video frames of the whole video.
        frames: maximum video frames of a window.
        overlap: video frames shared by neighboring windows; None = `OVERLAP`, at most half a window.
        time_factor: video frames per latent frame (after the first).

    Raises:
        InputError: lengths that are not 1 + a multiple of `time_factor`, or windows not longer than their overlap.
    """
    if overlap is None:
        overlap = max(0, min(OVERLAP, frames // 2) - 1) // time_factor * time_factor + 1
    for name, value in (("a video", num_frames), ("windows", frames), ("an overlap", overlap)):
        if value < 1 or (value - 1) % time_factor:
            near = round_frames(value, time_factor)
            raise InputError(f"{name} of {value} frames", f"1 + a multiple of {time_factor}", f"use {near}")
    if num_frames <= frames:
        return [Window(0, 0, num_frames, time_factor=time_factor)]
    if frames <= overlap:
        problem = f"windows of {frames} frames with an overlap of {overlap} frames"
        raise InputError(
            problem, "an overlap shorter than the window", "increase the window length or reduce the overlap"
        )
    strides = (num_frames - overlap) // time_factor  # in latent frames
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


def crossfade(before: Tensor, after: Tensor) -> Tensor:
    """Linear crossfade of two versions of the same frames along the first axis.

    Args:
        before, after: [O, ...] of the same shape, uint8 or float. Both have a nonzero weight everywhere.

    Returns:
        Same shape and dtype.
    """
    count = before.shape[0]
    weight = (torch.arange(count, device=before.device) + 1) / (count + 1)
    mixed = torch.lerp(before.float(), after.float(), weight.view(-1, *[1] * (before.ndim - 1)))
    return mixed.round().to(before.dtype) if before.dtype == torch.uint8 else mixed.to(before.dtype)


class WindowJoiner:
    """Joins consecutive windows, crossfading their overlaps; holds only the current overlap in memory."""

    def __init__(self) -> None:
        self._pending: Tensor | None = None

    def add(self, piece: Tensor, lead: int, tail: int) -> Tensor:
        """Add the next window [K, ...] and return all frames that are final, i.e. all but its tail.

        Args:
            lead: frames shared with the previous window; 0 for the first.
            tail: frames shared with the next window; 0 for the last.
        """
        if lead and self._pending is not None:
            piece = torch.cat([crossfade(self._pending, piece[:lead]), piece[lead:]])
        done = piece.shape[0] - tail
        self._pending = piece[done:].clone()
        return piece[:done]
