"""Token pruning: cross-attention runs only on tokens inside at least one mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MASK_THRESHOLD = 0.01
"""Tokens whose masks do not exceed this are pruned; the error is at most this share of the full effect."""
MAX_KEPT_FRACTION = 0.9
"""If more than this fraction of the tokens remains, gather and scatter cost more than they save."""


@dataclass(frozen=True)
class TokenPruning:
    """Selection of equally many tokens per latent frame and batch entry.

    Frames with fewer masked tokens than the fullest one are padded with other tokens. These are computed with their own
    mask values, exactly as without pruning.

    Args:
        rows: indices [B*R] into the flattened B*S tokens, unique.
        batch: B.
        tokens: S.
    """

    rows: Tensor
    batch: int
    tokens: int

    @classmethod
    def of(cls, masks: Tensor, frames: int) -> TokenPruning | None:
        """Select the tokens of masks [B, N, S] with `frames` latent frames; None if pruning does not pay.

        The number of selected tokens determines tensor shapes, so this synchronizes with the GPU.
        """
        batch, _, tokens = masks.shape
        inside = (masks.amax(dim=1) > MASK_THRESHOLD).view(batch * frames, -1)
        count = max_tokens_per_frame(inside)
        if count > MAX_KEPT_FRACTION * inside.shape[1]:
            return None
        chosen = inside.byte().argsort(dim=1, descending=True, stable=True)[:, : max(1, count)].sort(dim=1).values
        start = torch.arange(batch * frames, device=masks.device).unsqueeze(1) * inside.shape[1]
        return cls((chosen + start).flatten(), batch, tokens)

    def gather(self, x: Tensor) -> Tensor:
        """[B, S, C] -> [B, R, C]."""
        return x.flatten(0, 1).index_select(0, self.rows).unflatten(0, (self.batch, -1))

    def gather_query(self, query: Tensor) -> Tensor:
        """[B, heads, S, d] -> [B, heads, R, d]."""
        heads = query.shape[1]
        return self.gather(query.transpose(1, 2).flatten(2)).unflatten(-1, (heads, -1)).transpose(1, 2)

    def gather_masks(self, masks: Tensor) -> Tensor:
        """[B, N, S] -> [B, N, R]."""
        return self.gather(masks.transpose(1, 2)).transpose(1, 2)

    def scatter(self, x: Tensor) -> Tensor:
        """[B, R, C] -> [B, S, C], zeros for pruned tokens."""
        out = x.new_zeros(self.batch * self.tokens, x.shape[-1])
        return out.index_copy_(0, self.rows, x.flatten(0, 1)).unflatten(0, (self.batch, -1))


def max_tokens_per_frame(inside: Tensor) -> int:
    """Largest number of selected tokens in one frame: [frames, P] bool."""
    return int(inside.sum(dim=1).max())
