"""Which tokens some mask reaches: the others need no projection of what acts through masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

THRESHOLD = 0.01
"""A mask of no more than this does not reach a token; what is left out is at most this share of the full effect."""
WORTH = 0.9
"""With more than this share of the tokens left, gathering and scattering them does not pay."""


@dataclass(frozen=True)
class TokenPruning:
    """Chosen tokens, equally many of each latent frame of each version of the video.

    A frame with fewer reached tokens than the fullest one is filled up with others: they are computed with their own
    masks, as if nothing were skipped.

    Args:
        rows: which they are, among B*S [B*R], each at most once.
        batch: B.
        tokens: S.
    """

    rows: Tensor
    batch: int
    tokens: int

    @classmethod
    def of(cls, masks: Tensor, frames: int) -> TokenPruning | None:
        """Tokens of masks [B, N, S] in frames latent frames; None where it does not pay.

        How many there are decides the shape of what follows, so a GPU is waited for here.
        """
        batch, _, tokens = masks.shape
        reached = (masks.amax(dim=1) > THRESHOLD).view(batch * frames, -1)
        most = fullest(reached)
        if most > WORTH * reached.shape[1]:
            return None
        chosen = reached.byte().argsort(dim=1, descending=True, stable=True)[:, : max(1, most)].sort(dim=1).values
        start = torch.arange(batch * frames, device=masks.device).unsqueeze(1) * reached.shape[1]
        return cls((chosen + start).flatten(), batch, tokens)

    def take(self, x: Tensor) -> Tensor:
        """[B, S, C] -> [B, R, C]."""
        return x.flatten(0, 1).index_select(0, self.rows).unflatten(0, (self.batch, -1))

    def take_query(self, query: Tensor) -> Tensor:
        """[B, heads, S, d] -> [B, heads, R, d]."""
        heads = query.shape[1]
        return self.take(query.transpose(1, 2).flatten(2)).unflatten(-1, (heads, -1)).transpose(1, 2)

    def take_masks(self, masks: Tensor) -> Tensor:
        """[B, N, S] -> [B, N, R]."""
        return self.take(masks.transpose(1, 2)).transpose(1, 2)

    def put(self, x: Tensor) -> Tensor:
        """[B, R, C] -> [B, S, C], zeros elsewhere."""
        out = x.new_zeros(self.batch * self.tokens, x.shape[-1])
        return out.index_copy_(0, self.rows, x.flatten(0, 1)).unflatten(0, (self.batch, -1))


def fullest(reached: Tensor) -> int:
    """Most reached tokens of a frame: [frames, P] bool."""
    return int(reached.sum(dim=1).max())
