"""Masks that a person gives: of any resolution, still or per frame, brought onto the token grid."""

from __future__ import annotations

import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.grid import TokenGrid


def given_masks(masks: Tensor, grid: TokenGrid, count: int, what: str = "the masks") -> Tensor:
    """Masks on the token grid, each token with the share of its area that is covered.

    Args:
        masks: one per character, in their order, values 0..1: [N, H, W] held over the whole video, or
            [N, T, H, W] with one per latent frame, or [N, F, H, W] with one per video frame. H and W are free; where
            they are those of the tokens, values stay as they are. A length of 1 is held over the video.
        grid: of the video.
        count: N, characters of the scene.
        what: names them in messages.

    Returns:
        [N, T, h, w] float32.

    Raises:
        InputError: another number of masks or of frames, values outside 0..1, or no masks at all.
    """
    came = f"{what} of shape {' x '.join(map(str, masks.shape))}"
    if masks.ndim not in (3, 4) or masks.numel() == 0:
        rule = "characters x height x width, or characters x frames x height x width"
        raise InputError(came, rule, "give one mask for each character")
    if masks.shape[0] != count:
        characters = f"{count} character{'s' if count > 1 else ''}"
        raise InputError(came, f"{count} along the first axis, for {characters}", "give one for each")
    masks = (masks[:, None] if masks.ndim == 3 else masks).to(torch.float32)
    if not bool(torch.isfinite(masks).all()) or masks.min() < 0 or masks.max() > 1:
        raise InputError(f"{what} with values outside 0..1", "0..1 each", "scale them")
    frames = masks.shape[1]
    if frames not in (1, grid.frames, grid.video_frames):
        rule = f"1 frame, {grid.frames} (latent) or {grid.video_frames} (video)"
        raise InputError(f"{what} with {frames} frames", rule, "give one of these numbers")
    if frames == grid.video_frames:
        return grid.pixels_to_tokens(masks)
    still = TokenGrid(1, grid.height, grid.width)  # each latent frame by itself
    small = torch.cat([still.pixels_to_tokens(frame[:, None]) for frame in masks.unbind(1)], dim=1)
    return small.expand(count, *grid.shape).clone()
