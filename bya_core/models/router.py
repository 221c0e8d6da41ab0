"""Intra-denoise embedding router: face attention's queries and keys -> which token belongs to whom.

Paper appendix A. Two flavours: `OfficialRouter` is what the released weights need, `PaperRouter` is what the
paper describes. Both read the shared video query and every character's keys, take any number of characters
and are equivariant to their order. Both return logits (the paper's with a background class last) and masks.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from bya_core.grid import TokenGrid
from bya_core.models.rope import rotary_embedding
from bya_core.models.router_layers import SpatioTemporalLayer


def _sincos(length: int, dim: int) -> Tensor:
    """Sine and cosine interleaved: [length, dim] float32, dim even."""
    angle = torch.outer(torch.arange(length).float(), 1e4 ** (-torch.arange(0, dim, 2).float() / dim))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def released_position_table(shape: tuple[int, int, int], dim: int) -> Tensor:
    """Additive position table [T, a, b, dim] of the released router: a third of the channels per axis.

    The released code views the tokens of a frame, stored row by row as (h, w), as (a, b) = (w, h) without
    transposing them; the weights were trained so, and the table has to follow.
    """
    per_axis = dim // 3 // 2 * 2
    table = torch.zeros(*shape, dim)
    for axis, length in enumerate(shape):
        view = [1, 1, 1, per_axis]
        view[axis] = length
        table[..., axis * per_axis : (axis + 1) * per_axis] = _sincos(length, per_axis).view(view)
    return table


@functools.lru_cache(maxsize=4)
def _rebuilt_table(shape: tuple[int, int, int], dim: int, device: str) -> Tensor:
    """`released_position_table`, kept on the device it is used on (one clip asks for it in every layer)."""
    with torch.inference_mode(False), torch.device("cpu"):
        return released_position_table(shape, dim).to(device)


class _Router(nn.Module):
    """Part that both flavours share: queries and keys -> one score per head and face token.

    A score is (W x)_h k_h, with x the normed query of a token, W the query projection and k_h a projected key's part in
    head h. It is also x (W_h^T k_h): with W folded into the keys, tokens are not projected. That takes N Q heads inner
    multiplications a token instead of inner^2 + N Q inner, and something once for each layer. At published sizes (inner
    2048, 16 heads, Q = 32, 17550 tokens) it pays up to three characters: with two it halves what scores cost, 3.3 of
    the router's 66 TFLOP a step; with four it would cost more. The scores are the same to rounding. With gradients
    nothing is folded.
    """

    scale = 1.0
    key_order: str
    """How heads (h) and their channels (d) lie in what `norm_k` and `to_k` read."""

    def __init__(self, *, num_layers: int, heads: int, dim_head: int, num_queries: int) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads, self.inner, self.features = heads, inner, num_queries * heads
        self.norm_q = nn.LayerNorm(inner)
        self.norm_k = nn.LayerNorm(inner)
        self.to_q = nn.ModuleList([nn.Linear(inner, inner, bias=False) for _ in range(num_layers)])
        self.to_k = nn.ModuleList([nn.Linear(inner, inner, bias=False) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(self.features)

    def should_fold(self, tokens: int, characters: int) -> bool:
        """By multiplications, for one version of the video; the last two terms are of the folding itself."""
        read, inner = characters * self.features, self.inner  # `features` is heads x Q
        apart = tokens * (inner**2 + read // self.heads * inner)
        return tokens * read * inner + read // self.heads * inner**2 + inner**3 < apart

    def prepare(self, key: Tensor, layer: int, tokens: int) -> tuple[Tensor]:
        """What the router reads of the characters, the same in every step of a clip.

        Args:
            key: [B, N, heads, Q, d].
            layer: which face layer.
            tokens: how many will be scored (S).

        Returns:
            Projected keys [B, N, Q, inner], or where it pays keys with the query projection folded into them
            [B, inner, N*Q*heads], heads innermost.
        """
        k = self.to_k[layer](self.norm_k(rearrange(key, f"b n h q d -> b n q {self.key_order}"))) * self.scale
        if torch.is_grad_enabled() or not self.should_fold(tokens, key.shape[1]):
            return (k,)
        # The projection of the unit vectors is its transposed weight, also where a hook or an adapter stands before it.
        weight = self.to_q[layer](torch.eye(self.inner, dtype=k.dtype, device=k.device)).unflatten(1, (self.heads, -1))
        folded = torch.einsum("ihd,bnqhd->binqh", weight, k.unflatten(-1, (self.heads, -1)))
        return (folded.flatten(2),)

    def _scores(self, query: Tensor, key: Tensor, layer: int, prepared: tuple[Tensor] | None) -> Tensor:
        """Normed query [B, S, inner], key [B, N, heads, Q, d] -> [B, N, S, Q*heads], heads innermost."""
        characters = key.shape[1]
        (k,) = self.prepare(key, layer, query.shape[1]) if prepared is None else prepared
        if k.dim() == 3:
            return rearrange(query @ k, "b s (n f) -> b n s f", n=characters)
        q = rearrange(self.to_q[layer](query), "b s (h d) -> b h s d", h=self.heads)
        k = rearrange(k, "b n q (h d) -> b h d (n q)", h=self.heads)
        return rearrange(q @ k, "b h s (n q) -> b n s (q h)", n=characters)


class OfficialRouter(_Router):
    """Router of the released weights: unscaled scores, additive positions, one sigmoid per character.

    Args:
        dim_head, heads, num_queries: of the face attention.
        st_heads: heads of the spatio-temporal layers.
        grid: (T, a, b) of the stored position table.
    """

    # Heads innermost before the norm, but the projection is read with heads outermost: as trained.
    key_order = "(d h)"

    def __init__(
        self,
        *,
        num_layers: int,
        heads: int,
        dim_head: int,
        num_queries: int,
        st_heads: int,
        num_blocks: int,
        grid: tuple[int, int, int],
    ) -> None:
        super().__init__(num_layers=num_layers, heads=heads, dim_head=dim_head, num_queries=num_queries)
        dim = self.features
        self.pos_emb: Tensor
        self.register_buffer("pos_emb", released_position_table(grid, dim))
        self.spatial_temporal_layers = nn.ModuleList([SpatioTemporalLayer(dim, st_heads) for _ in range(num_blocks)])
        self.final_proj = nn.Sequential(nn.Linear(dim, 1))
        # In the published file, never used by the released code; held so that files load and save completely.
        self.layer_merge = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(dim + 3, 256), nn.ReLU(), nn.Linear(256, 128, bias=False))
                for _ in range(num_layers)
            ]
        )

    def positions(self, grid: TokenGrid) -> Tensor:
        """[T, P, C] for any grid: the stored table where it fits, else rebuilt by its rule."""
        shape, table = (grid.frames, grid.width, grid.height), self.pos_emb
        if shape != tuple(table.shape[:3]):
            table = _rebuilt_table(shape, self.features, str(table.device)).to(table.dtype)
        return table.flatten(1, 2)

    def forward(
        self, query: Tensor, key: Tensor, layer: int, grid: TokenGrid, prepared: tuple[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Masks of one face layer.

        Args:
            query: [B, heads, S, d], shared by all characters.
            key: [B, N, heads, Q, d].
            layer: which face layer.
            grid: token grid.
            prepared: of these keys and this layer, by `prepare`, where it is at hand.

        Returns:
            logits [B, N, T, h, w] and masks (their sigmoid), same shape.
        """
        query = self.norm_q(rearrange(query, "b h s d -> b s (d h)"))
        x = self.norm(self._scores(query, key, layer, prepared)).unflatten(2, (grid.frames, -1)) + self.positions(grid)
        for block in self.spatial_temporal_layers:
            x = block(x)
        logits = grid.unflatten(self.final_proj(x).flatten(2))
        return logits, logits.sigmoid()


class PaperRouter(_Router):
    """Router of the paper: 3D rotary positions, softmax over the characters and a background class.

    Args:
        dim_head, heads, num_queries: of the face attention.
        dim: width of the router, divisible by st_heads into even heads.
        reads_tokens: also give the router the video query itself, not only its scores with the faces. The
            paper reads scores alone; the query tells where shapes end.
        temperature: of the softmax that gives the masks that act; below 1 they are sharper than the router is sure.
            Its loss sees the logits as they are.
        activation: "softmax" over the characters and the background, as in the paper, or "sigmoid" of each character
            by itself, without background.
    """

    key_order = "(h d)"

    def __init__(
        self,
        *,
        num_layers: int,
        heads: int,
        dim_head: int,
        num_queries: int,
        dim: int,
        st_heads: int,
        num_blocks: int,
        reads_tokens: bool,
        temperature: float = 1.0,
        activation: Literal["softmax", "sigmoid"] = "softmax",
    ) -> None:
        super().__init__(num_layers=num_layers, heads=heads, dim_head=dim_head, num_queries=num_queries)
        self.scale, self.rotary_dim = dim_head**-0.5, dim // st_heads
        self.temperature = temperature
        self.proj_in = nn.Linear(self.features, dim)
        self.token_in = nn.Linear(heads * dim_head, dim) if reads_tokens else None
        self.spatial_temporal_layers = nn.ModuleList([SpatioTemporalLayer(dim, st_heads) for _ in range(num_blocks)])
        self.norm_out = nn.LayerNorm(dim)
        self.final_proj = nn.Linear(dim, 1)
        self.background = nn.Linear(dim, 1) if activation == "softmax" else None

    def forward(
        self, query: Tensor, key: Tensor, layer: int, grid: TokenGrid, prepared: tuple[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `OfficialRouter.forward`, but with softmax logits are [B, N+1, T, h, w], the background class last."""
        query = self.norm_q(rearrange(query, "b h s d -> b s (h d)"))
        x = self.proj_in(self.norm(self._scores(query, key, layer, prepared)))  # [B, N, S, C]
        if self.token_in is not None:
            x = x + self.token_in(query).unsqueeze(1)
        x = x.unflatten(2, (grid.frames, -1))
        rotary = rotary_embedding(grid, self.rotary_dim, device=x.device)
        for block in self.spatial_temporal_layers:
            x = block(x, rotary)
        x = self.norm_out(x)
        if self.background is None:
            logits = grid.unflatten(self.final_proj(x).flatten(2))
            return logits, (logits / self.temperature).sigmoid()
        per_class = torch.cat([self.final_proj(x), self.background(x.mean(dim=1, keepdim=True))], dim=1)
        logits = grid.unflatten(per_class.flatten(2))
        return logits, (logits / self.temperature).softmax(dim=1)[:, :-1]
