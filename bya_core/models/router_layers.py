"""Spatio-temporal layers of the router: attention over space, time and characters (paper appendix A)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bya_core.models.compat import dispatch_attention
from bya_core.models.rope import apply_rotary


class RouterAttention(nn.Module):
    """Self-attention along one axis of the router tokens, optionally with rotary embedding."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, x: Tensor, axis: str, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x [B, N, T, P, C] -> same.

        Args:
            axis: "space" (P), "time" (T) or "characters" (N; without rotary embedding).
            rotary: cosine and sine table of the token grid.
        """
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.to_q, self.to_k, self.to_v))
        if rotary is not None:
            q, k = (apply_rotary(part.flatten(0, 1).flatten(1, 2), rotary).view_as(part) for part in (q, k))
        if axis == "characters" and x.shape[1] <= MAX_UNROLLED:
            out = _character_attention(q, k, v)
        else:  # axes before `axis` become the batch and those after it heads, without copies
            at = AXES[axis]
            rows = (part.flatten(0, at - 1).flatten(2, -2) for part in (q, k, v))  # [G, L, R, d]
            out = dispatch_attention(*rows).reshape(q.shape)
        return self.to_out[0](out.flatten(-2))


AXES = {"characters": 1, "time": 2, "space": 3}
"""Axes of the router tokens [B, N, T, P, C]."""
MAX_UNROLLED = 4
"""Up to this number of characters, attention among them is written out instead of using an attention kernel."""


def _character_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over axis 1: query, key, value [B, N, T, P, heads, d] -> [B, N, T, P, heads, d].

    Attention kernels pad each of these sequences of N tokens to a tile of 64 or 128 (at published sizes and N = 2, as
    many operations as an eighth of the transformer).
    """
    products = query.unsqueeze(2) * key.unsqueeze(1)
    scores = products.sum(dim=-1, dtype=torch.promote_types(products.dtype, torch.float32))  # [B, N, N, T, P, heads]
    weights = (scores * query.shape[-1] ** -0.5).softmax(dim=2).to(value.dtype)
    return (weights.unsqueeze(-1) * value.unsqueeze(1)).sum(dim=2)


class SpatioTemporalLayer(nn.Module):
    """Attention over space, time and characters, then an MLP; each with pre-norm and residual."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.spatial_attn = RouterAttention(dim, heads)
        self.temporal_attn = RouterAttention(dim, heads)
        self.multi_id_attn = RouterAttention(dim, heads)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """[B, N, T, P, C] -> same."""
        x = x + self.spatial_attn(self.norm1(x), "space", rotary)
        x = x + self.temporal_attn(self.norm2(x), "time", rotary)
        x = x + self.multi_id_attn(self.norm3(x), "characters")
        return x + self.mlp(self.norm4(x))
