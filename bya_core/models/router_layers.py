"""The spatio-temporal layers of the router: attention over space, time and characters (paper appendix A)."""

from __future__ import annotations

import torch
from einops import rearrange
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
        if axis == "characters" and x.shape[1] <= FEW:
            q, k, v = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.to_q, self.to_k, self.to_v))
            return self.to_out[0](_among_few(q, k, v).flatten(-2))
        here = LAYOUTS[axis]
        y = rearrange(x, f"{AXES} -> {here}").contiguous()  # [G, R, L, C]: once, not for each projection
        q, k, v = (f(y).unflatten(-1, (self.heads, -1)) for f in (self.to_q, self.to_k, self.to_v))
        if rotary is not None:
            order = "(t p) d -> (p t) d" if axis == "time" else "(t p) d -> (t p) d"
            cos, sin = (rearrange(part, order, t=x.shape[2]) for part in rotary)
            q, k = (apply_rotary(part.flatten(1, 2), (cos, sin)).view_as(part) for part in (q, k))
        out = attend(*(part.flatten(0, 1) for part in (q, k, v))).flatten(-2)  # [G R, L, C]
        sizes = dict(zip(AXES.split(), x.shape, strict=True))
        return rearrange(self.to_out[0](out).view_as(y), f"{here} -> {AXES}", **{k: sizes[k] for k in "bntp"})


AXES = "b n t p c"
LAYOUTS = {"space": "(b n) t p c", "time": "(b n) p t c", "characters": "b (t p) n c"}
"""Of the tokens while they attend: the axis before the last is the one that they attend along."""
FEW = 4
"""Up to so many characters attend to each other without a kernel; beyond, N^2 products a token are too many."""


def _among_few(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over axis 1 of three of [B, N, T, P, heads, d] -> one, written out.

    Kernels are made for long sequences: here there is one of N tokens for each place, and each would fill a tile of 64
    or 128 with padding (at published sizes and N = 2, as many operations as an eighth of the transformer) after copies
    that bring the characters together. This copies nothing.
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
