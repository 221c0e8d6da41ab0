"""The token grid, and conversions between pixels, latents and tokens.

Tokens are ordered (t, h, w) with t slowest. The first latent frame is the first video frame; latent frame t >= 1 covers
the video frames `time_factor * (t - 1) + 1 .. time_factor * t` (causal video VAE of CogVideoX).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from bya_core.errors import InputError


def round_frames(frames: int, time_factor: int) -> int:
    """The nearest number of video frames that is 1 + a multiple of `time_factor`."""
    return max(0, (2 * (frames - 1) + time_factor - 1) // (2 * time_factor)) * time_factor + 1


@dataclass(frozen=True)
class TokenGrid:
    """Grid of T x h x w tokens.

    Args:
        frames: T, latent frames.
        height: h, token rows.
        width: w, token columns.
        patch: latent cells per token and side.
        space_factor: pixels per latent cell and side.
        time_factor: video frames per latent frame (after the first).
    """

    frames: int
    height: int
    width: int
    patch: int = 2
    space_factor: int = 8
    time_factor: int = 4

    def __post_init__(self) -> None:
        for name in ("frames", "height", "width", "patch", "space_factor", "time_factor"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"TokenGrid.{name} = {value}", "an integer of at least 1", "increase it")

    @classmethod
    def from_pixels(
        cls,
        num_frames: int,
        height: int,
        width: int,
        *,
        patch: int = 2,
        space_factor: int = 8,
        time_factor: int = 4,
    ) -> TokenGrid:
        """Grid of a video with `num_frames` frames of height x width pixels.

        Raises:
            InputError: size not divisible by patch * space_factor, or frames not 1 + a multiple of time_factor.
        """
        unit = patch * space_factor
        for name, size in (("height", height), ("width", width)):
            if size < unit or size % unit:
                nearest = max(unit, round(size / unit) * unit)
                raise InputError(f"{name} of {size} pixels", f"a multiple of {unit}", f"use {nearest}")
        if num_frames < 1 or (num_frames - 1) % time_factor:
            nearest = round_frames(num_frames, time_factor)
            raise InputError(f"{num_frames} frames", f"1 + a multiple of {time_factor}", f"use {nearest}")
        frames = (num_frames - 1) // time_factor + 1
        return cls(frames, height // unit, width // unit, patch, space_factor, time_factor)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T, h, w)."""
        return self.frames, self.height, self.width

    @property
    def tokens(self) -> int:
        """S = T * h * w."""
        return self.frames * self.height * self.width

    @property
    def video_frames(self) -> int:
        """F."""
        return (self.frames - 1) * self.time_factor + 1

    @property
    def pixels(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        unit = self.patch * self.space_factor
        return self.height * unit, self.width * unit

    def latent_index(self, frame: int) -> int:
        """Index of the latent frame that covers video frame `frame`."""
        return -(-frame // self.time_factor)

    def latent_shape(self, channels: int) -> tuple[int, int, int, int]:
        """Shape (T, channels, H, W) of the latents of one clip."""
        return self.frames, channels, self.height * self.patch, self.width * self.patch

    def flatten(self, x: Tensor) -> Tensor:
        """[..., T, h, w] -> [..., S]."""
        return rearrange(x, "... t h w -> ... (t h w)", t=self.frames, h=self.height, w=self.width)

    def unflatten(self, x: Tensor) -> Tensor:
        """[..., S] -> [..., T, h, w]."""
        return rearrange(x, "... (t h w) -> ... t h w", t=self.frames, h=self.height, w=self.width)

    def frames_to_latent(self, x: Tensor, dim: int = -1) -> Tensor:
        """Mean over the video frames of each latent frame along `dim`: F -> T."""
        x = x.movedim(dim, -1).float()
        head, tail = x[..., :1], x[..., 1 : self.video_frames]
        tail = rearrange(tail, "... (t k) -> ... t k", k=self.time_factor).mean(-1)
        return torch.cat([head, tail], dim=-1).movedim(-1, dim)

    def latent_to_frames(self, x: Tensor, dim: int = -1) -> Tensor:
        """Repeat each latent frame for the video frames it covers along `dim`: T -> F."""
        x = x.movedim(dim, -1)
        tail = repeat(x[..., 1:], "... t -> ... (t k)", k=self.time_factor)
        return torch.cat([x[..., :1], tail], dim=-1).movedim(-1, dim)

    def pixels_to_tokens(self, masks: Tensor) -> Tensor:
        """Covered fraction of each token: [..., F, height, width] -> [..., T, h, w] in [0, 1].

        Masks of any height and width are resampled by area.
        """
        lead = masks.shape[:-3]
        flat = masks.reshape(-1, 1, *masks.shape[-2:]).float()
        small = F.adaptive_avg_pool2d(flat, (self.height, self.width))
        return self.frames_to_latent(small.reshape(*lead, masks.shape[-3], self.height, self.width), dim=-3)

    def tokens_to_pixels(self, masks: Tensor, size: tuple[int, int] | None = None, mode: str = "bilinear") -> Tensor:
        """[..., T, h, w] -> [..., F, height, width]; `mode` as in `torch.nn.functional.interpolate`."""
        lead = masks.shape[:-3]
        flat = self.latent_to_frames(masks.float(), dim=-3).reshape(-1, 1, self.height, self.width)
        smooth = {"align_corners": False} if mode != "nearest" else {}
        large = F.interpolate(flat, size=size or self.pixels, mode=mode, **smooth)
        return large.reshape(*lead, self.video_frames, *large.shape[-2:])
