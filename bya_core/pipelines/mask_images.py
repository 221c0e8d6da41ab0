"""Masks as pictures in a graph, and back: a batch of pictures, character after character."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.io.media import fit_image
from bya_core.io.overlay import render_overlay
from bya_core.scene.mask_control import given_masks


def to_images(masks: Tensor, grid: TokenGrid) -> Tensor:
    """[N, T, h, w] -> [N * T, height, width] in pixels of the video, all of the first character first."""
    still = TokenGrid(1, grid.height, grid.width, grid.patch, grid.space_factor, grid.time_factor)
    flat = rearrange(masks.float(), "n t h w -> (n t) 1 h w")
    return still.tokens_to_pixels(flat, mode="nearest")[:, 0]


def from_images(images: Tensor, grid: TokenGrid, count: int, what: str = "the masks") -> Tensor:
    """A batch of mask pictures on the token grid.

    Args:
        images: [B, H, W] in 0..1 of any size; B = N (held still), N * T (one per latent frame) or N * F (one per video
            frame), all pictures of the first character first.
        grid: of the video.
        count: N.
        what: names them in messages.

    Returns:
        [N, T, h, w].

    Raises:
        InputError: another number of pictures, or values outside 0..1.
    """
    images = (images[None] if images.ndim == 2 else images).float().cpu()
    if images.ndim != 3 or images.shape[0] % count:
        people = f"{count} character{'s' if count > 1 else ''}"
        came = f"{images.shape[0]} mask{'s' if images.shape[0] > 1 else ''} for {people}"
        do = "batch one mask for each character, in their order"
        raise InputError(f"{what}: {came}", _rule(grid, count), do)
    stacked = rearrange(images, "(n f) h w -> n f h w", n=count)
    if stacked.shape[1] not in (1, grid.frames, grid.video_frames):
        raise InputError(f"{what}: {images.shape[0]} pictures", _rule(grid, count), "give one of these numbers")
    return given_masks(stacked, grid, count, what)


def _rule(grid: TokenGrid, count: int) -> str:
    return (
        f"{count} (still), {count * grid.frames} (one per latent frame) or {count * grid.video_frames} (one per "
        "video frame)"
    )


def character_index(wanted: str, names: Sequence[str]) -> int:
    """Index of a character given by name, or by number from 1. Raises InputError where there is none."""
    text = wanted.strip()
    if text in names:
        return list(names).index(text)
    if text.isdigit() and 1 <= int(text) <= len(names):
        return int(text) - 1
    known = ", ".join(f"{i + 1} ({name})" for i, name in enumerate(names))
    raise InputError(f'no character is called "{wanted}"', known, "write a name, or a number")


def still(picture: Tensor | None, grid: TokenGrid) -> Tensor:
    """A picture [3, H, W] in 0..1 at the size of the video, or grey where there is none: uint8 [1, H, W, 3]."""
    pixels = torch.full((3, *grid.pixels), 0.5) if picture is None else fit_image(picture, *grid.pixels)
    return rearrange((pixels * 255).round().to(torch.uint8), "c h w -> 1 h w c")


def overlay_images(
    masks: Tensor, grid: TokenGrid, frames: Tensor, names: Sequence[str] = (), opacity: float = 0.5
) -> Tensor:
    """Mask overlay of a whole video: uint8 [F, H', W', 3].

    Args:
        masks, grid, names, opacity: as in `bya_core.io.overlay.render_overlay`.
        frames: uint8 [F, H, W, 3], or one frame that is repeated.

    Raises:
        InputError: the number of frames does not match the grid.
    """
    if frames.shape[0] not in (1, grid.video_frames):
        problem = f"{frames.shape[0]} images for masks of {grid.video_frames} frames"
        raise InputError(problem, f"1 or {grid.video_frames}", "connect all frames and the masks of one video")
    frames = frames.expand(grid.video_frames, -1, -1, -1)
    return torch.from_numpy(np.stack(list(render_overlay(frames, masks, grid, names, opacity))))
