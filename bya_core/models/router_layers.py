"""The spatio-temporal layers of the router: attention over space, time and characters (paper appendix A)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bya_core.models.compat import attend
from bya_core.models.rope import apply_rotary


class RouterAttention(nn.Module):
    """Self-attention along one axis of the router's tokens, optionally rotary."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def forward(self, x: Tensor, axis: str, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x [B, N, T, P, C] -> same; attends over `axis`: "space" (P), "time" (T) or "characters" (N; never rotary)."""
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.to_q, self.to_k, self.to_v))
        if rotary is not None:
            q, k = (apply_rotary(part.flatten(0, 1).flatten(1, 2), rotary).view_as(part) for part in (q, k))
        if axis == "characters" and x.shape[1] <= FEW:
            out = _among_few(q, k, v)
        else:  # axes before the one attended along join the batch, those after it the heads: nothing is copied
            at = AXES[axis]
            rows = (part.flatten(0, at - 1).flatten(2, -2) for part in (q, k, v))  # [G, L, R, d]
            out = attend(*rows).reshape(q.shape)
        return self.to_out[0](out.flatten(-2))


AXES = {"characters": 1, "time": 2, "space": 3}
"""Where they are in the router's tokens [B, N, T, P, C]."""
FEW = 4
"""Up to so many characters attend to each other without a kernel; beyond, N^2 products a token are too many."""


def _among_few(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over axis 1 of three of [B, N, T, P, heads, d] -> one, written out.

    Kernels are made for long sequences: here there is one of N tokens for each place, and each would fill a tile of 64
    or 128 with padding (at published sizes and N = 2, as many operations as an eighth of the transformer).
    """
    products = query.unsqueeze(2) * key.unsqueeze(1)
    scores = products.sum(dim=-1, dtype=torch.promote_types(products.dtype, torch.float32))  # [B, N, N, T, P, heads]
    weights = (scores * query.shape[-1] ** -0.5).softmax(dim=2).to(value.dtype)
    return (weights.unsqueeze(-1) * value.unsqueeze(1)).sum(dim=2)


class SpatioTemporalLayer(nn.Module):
    """Space, time, characters, then an MLP; each with its norm and a residual."""

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
