"""Mask algebra: pure functions on character masks and audio masks.

A character mask says which tokens belong to which character, an audio mask which tokens hear which speech.
Shapes: B batch, N characters, M speech streams, T latent frames, h w token rows and columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bya_core.errors import InputError


def audio_masks(character_masks: Tensor, matrix: Tensor | None, inflate: bool) -> Tensor:
    """Audio masks from character masks: A^av = A^ac A^cv (paper eq. 6).

    Args:
        character_masks: [B, N, ...] in [0, 1], any token axes.
        matrix: audio-character matrix [B, M, N]; None = stream i drives character i.
        inflate: every voice acts everywhere except on the others (paper sec. 3.3.3, "flip and swap"): one
            minus the sum of the other streams' masks. For two streams this is the released rule.

    Returns:
        [B, M, ...] in [0, 1].
    """
    masks = character_masks if matrix is None else torch.einsum("bmn,bn...->bm...", matrix, character_masks)
    if inflate:
        others = 1 - torch.eye(masks.shape[1], dtype=masks.dtype, device=masks.device)
        masks = 1 - torch.einsum("mk,bk...->bm...", others, masks)
    return masks.clamp(0, 1)


def blend(router: Tensor, forced: Tensor | None, weight: Tensor | float | None) -> Tensor:
    """Router masks drawn towards forced masks: weight 0 = the router decides, 1 (or None) = forced entirely.

    Args:
        router: [B, N, T, h, w].
        forced: same shape, or None.
        weight: number or tensor broadcastable to [B, N, T, h, w].
    """
    if forced is None:
        return router
    if weight is None:
        return forced
    return torch.lerp(router, forced.to(router), torch.as_tensor(weight).to(router))


def time_union(masks: Tensor) -> Tensor:
    """Static masks: the union over time, held in every frame. [..., T, h, w] -> [..., T, h, w]."""
    return masks.amax(dim=-3, keepdim=True).expand_as(masks)


def to_boxes(masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Upright boxes, zeros and ones, around what each mask claims in each frame; nothing where it claims nothing.

    Boxes of different characters may overlap (paper sec. 5.4.1). Masks and boxes [..., T, h, w].
    """
    own = masks > threshold
    rows, columns = own.any(dim=-1, keepdim=True), own.any(dim=-2, keepdim=True)
    for_rows, for_columns = (_between(line, axis) for line, axis in ((rows, -2), (columns, -1)))
    return (for_rows & for_columns).to(masks.dtype)


def _between(line: Tensor, axis: int) -> Tensor:
    """True from the first to the last true value along `axis`."""
    ahead = line.long().cumsum(axis) > 0
    behind = line.flip(axis).long().cumsum(axis).flip(axis) > 0
    return ahead & behind


def exclusive(masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Binary masks: a token belongs to the character that claims it most, if by more than `threshold`.

    Args:
        masks: [..., N, T, h, w] in [0, 1].

    Returns:
        Same shape, zeros and ones. Where two characters claim a token alike, the later one has it.
    """
    flipped = masks.flip(-4)
    winner = F.one_hot(flipped.argmax(dim=-4), masks.shape[-4]).movedim(-1, -4).flip(-4)
    return (winner.bool() & (masks > threshold)).to(masks.dtype)


def labels_to_masks(labels: Tensor, characters: int) -> Tensor:
    """Label per token (-1 = background) to masks of zeros and ones: [B, ...] -> [B, N, ...], float.

    Raises:
        InputError: a label of `characters` or more.
    """
    if labels.numel() and int(labels.max()) >= characters:
        came = f"mask label {int(labels.max())}"
        raise InputError(came, f"labels below {characters}", "give every label a character")
    index = torch.arange(characters, device=labels.device)
    return (labels.unsqueeze(1) == index.view(1, -1, *[1] * (labels.dim() - 1))).float()


def resample(masks: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Trilinear resampling in time and space, soft: [..., F, H, W] -> [..., *size], float.

    As in the released code: no antialiasing, so two source samples per axis decide.
    """
    flat = masks.reshape(1, -1, *masks.shape[-3:]).float()
    small = F.interpolate(flat, size=size, mode="trilinear", align_corners=False)
    return small.reshape(*masks.shape[:-3], *size)


def objects_to_tokens(masks: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Segmented objects to binary token masks by the released rule.

    Args:
        masks: [N, F, H, W] binary, one per character, in the order of the characters.
        size: (T, h, w).

    Returns:
        [N, T, h, w] of float zeros and ones: resampled, above one half; a later object wins an overlap.
    """
    inside = resample(masks, size) > 0.5
    later = inside.flip(0).long().cumsum(0).flip(0) - inside.long()
    return (inside & (later == 0)).float()
