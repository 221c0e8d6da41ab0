"""Intra-denoise embedding router: predicts character masks from the queries and keys of face attention.

Paper appendix A. `OfficialRouter` matches the released weights, `PaperRouter` the description in the paper. Both read
the shared video query and the keys of each character, take any number of characters, are equivariant to their order,
and return logits (`PaperRouter`: with a background class last) and masks.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from bya_core.grid import TokenGrid
from bya_core.models.rope import rotary_embedding
from bya_core.models.router_layers import SpatioTemporalLayer


def _sincos(length: int, dim: int) -> Tensor:
    """Interleaved sine-cosine table [length, dim] float32, dim even."""
    angle = torch.outer(torch.arange(length).float(), 1e4 ** (-torch.arange(0, dim, 2).float() / dim))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


def position_table(shape: tuple[int, int, int], dim: int) -> Tensor:
    """Additive position table [T, a, b, dim] of the released router; one third of the channels per axis.

    The released code views the row-major (h, w) tokens of a frame as (a, b) = (w, h) without a transpose. The weights
    were trained with this order.
    """
    per_axis = dim // 3 // 2 * 2
    table = torch.zeros(*shape, dim)
    for axis, length in enumerate(shape):
        view = [1, 1, 1, per_axis]
        view[axis] = length
        table[..., axis * per_axis : (axis + 1) * per_axis] = _sincos(length, per_axis).view(view)
    return table


@functools.lru_cache(maxsize=4)
def _cached_table(shape: tuple[int, int, int], dim: int, device: str) -> Tensor:
    """`position_table` on a device."""
    with torch.inference_mode(False), torch.device("cpu"):
        return position_table(shape, dim).to(device)


class _Router(nn.Module):
    """Base class: attention scores of queries and keys, one per head and face token.

    The score of a token is (W x)_h k_h with the normalized query x, the query projection W and the projected key k_h of
    head h. It equals x (W_h^T k_h): with W folded into the keys, tokens need no projection. This takes N Q heads inner
    multiplications per token instead of inner^2 + N Q inner, plus a cost per layer. At published sizes (inner 2048,
    16 heads, Q = 32, 17550 tokens) it is faster for up to three characters; for two it saves 3.3 of the router's 66
    TFLOP per step. Scores agree up to rounding. With gradients, W is not folded.
    """

    scale = 1.0
    key_order: str
    """Order of heads (h) and channels (d) in the input of `norm_k` and `to_k`."""

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
        """Compare the number of multiplications per batch entry, including those of the folding itself."""
        scores, inner = characters * self.features, self.inner  # features = heads * Q
        unfolded = tokens * (inner**2 + scores // self.heads * inner)
        return tokens * scores * inner + scores // self.heads * inner**2 + inner**3 < unfolded

    def prepare_keys(self, key: Tensor, layer: int, tokens: int) -> tuple[Tensor]:
        """Project the face keys; the result is the same in every step of a clip.

        Args:
            key: [B, N, heads, Q, d].
            layer: index of the face layer.
            tokens: number of video tokens S.

        Returns:
            Projected keys [B, N, Q, inner], or keys with the folded query projection [B, inner, N*Q*heads], heads
            innermost.
        """
        k = self.to_k[layer](self.norm_k(rearrange(key, f"b n h q d -> b n q {self.key_order}"))) * self.scale
        if torch.is_grad_enabled() or not self.should_fold(tokens, key.shape[1]):
            return (k,)
        # Projecting unit vectors gives the transposed weight, including hooks and adapters.
        weight = self.to_q[layer](torch.eye(self.inner, dtype=k.dtype, device=k.device)).unflatten(1, (self.heads, -1))
        folded = torch.einsum("ihd,bnqhd->binqh", weight, k.unflatten(-1, (self.heads, -1)))
        return (folded.flatten(2),)

    def _scores(self, query: Tensor, key: Tensor, layer: int, prepared: tuple[Tensor] | None) -> Tensor:
        """Normalized query [B, S, inner], key [B, N, heads, Q, d] -> [B, N, S, Q*heads], heads innermost."""
        characters = key.shape[1]
        (k,) = self.prepare_keys(key, layer, query.shape[1]) if prepared is None else prepared
        if k.dim() == 3:
            return rearrange(query @ k, "b s (n f) -> b n s f", n=characters)
        q = rearrange(self.to_q[layer](query), "b s (h d) -> b h s d", h=self.heads)
        k = rearrange(k, "b n q (h d) -> b h d (n q)", h=self.heads)
        return rearrange(q @ k, "b h s (n q) -> b n s (q h)", n=characters)


class OfficialRouter(_Router):
    """Router of the released weights: unscaled scores, additive positions, a sigmoid per character.

    Args:
        st_heads, num_blocks: heads and number of the spatio-temporal layers.
        grid: (T, a, b) of the stored position table.
        attention: num_layers, heads, dim_head and num_queries of the face attention.
    """

    # As trained: heads innermost before the norm, but outermost in the projected keys.
    key_order = "(d h)"

    def __init__(self, *, st_heads: int, num_blocks: int, grid: tuple[int, int, int], **attention: int) -> None:
        super().__init__(**attention)
        dim = self.features
        self.pos_emb: Tensor
        self.register_buffer("pos_emb", position_table(grid, dim))
        self.spatial_temporal_layers = nn.ModuleList([SpatioTemporalLayer(dim, st_heads) for _ in range(num_blocks)])
        self.final_proj = nn.Sequential(nn.Linear(dim, 1))
        # Unused parameters of the published files.
        self.layer_merge = nn.ModuleList(
            [nn.Sequential(nn.Linear(dim + 3, 256), nn.ReLU(), nn.Linear(256, 128, bias=False)) for _ in self.to_q]
        )

    def positions(self, grid: TokenGrid) -> Tensor:
        """Position table [T, P, C]: the stored one for the trained grid, otherwise computed."""
        shape, table = (grid.frames, grid.width, grid.height), self.pos_emb
        if shape != tuple(table.shape[:3]):
            table = _cached_table(shape, self.features, str(table.device)).to(table.dtype)
        return table.flatten(1, 2)

    def forward(
        self, query: Tensor, key: Tensor, layer: int, grid: TokenGrid, prepared: tuple[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predict the masks of one face layer.

        Args:
            query: [B, heads, S, d], shared by all characters.
            key: [B, N, heads, Q, d].
            layer: index of the face layer.
            grid: token grid.
            prepared: `prepare_keys(key, layer, S)`, if already computed.

        Returns:
            logits [B, N, T, h, w] and masks of the same shape.
        """
        query = self.norm_q(rearrange(query, "b h s d -> b s (d h)"))
        x = self.norm(self._scores(query, key, layer, prepared)).unflatten(2, (grid.frames, -1)) + self.positions(grid)
        for block in self.spatial_temporal_layers:
            x = block(x)
        logits = grid.unflatten(self.final_proj(x).flatten(2))
        return logits, logits.sigmoid()


class PaperRouter(_Router):
    """Router of the paper: 3D rotary embedding, softmax over characters and a background class.

    Args:
        dim: width of the router, divisible by st_heads into even heads.
        reads_tokens: use the video query as an additional input (in the paper: the scores alone).
        temperature: of the softmax or sigmoid that yields the masks; below 1 they are sharper. The router loss uses the
            unscaled logits.
        activation: "softmax" over characters and background, as in the paper, or "sigmoid" per character without a
            background class.
        others: as in `OfficialRouter`.
    """

    key_order = "(h d)"

    def __init__(
        self,
        *,
        dim: int,
        st_heads: int,
        num_blocks: int,
        reads_tokens: bool,
        temperature: float = 1.0,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        **attention: int,
    ) -> None:
        super().__init__(**attention)
        self.scale, self.rotary_dim = (self.inner // self.heads) ** -0.5, dim // st_heads
        self.temperature = temperature
        self.proj_in = nn.Linear(self.features, dim)
        self.token_in = nn.Linear(self.inner, dim) if reads_tokens else None
        self.spatial_temporal_layers = nn.ModuleList([SpatioTemporalLayer(dim, st_heads) for _ in range(num_blocks)])
        self.norm_out = nn.LayerNorm(dim)
        self.final_proj = nn.Linear(dim, 1)
        self.background = nn.Linear(dim, 1) if activation == "softmax" else None

    def forward(
        self, query: Tensor, key: Tensor, layer: int, grid: TokenGrid, prepared: tuple[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `OfficialRouter.forward`; with softmax the logits are [B, N+1, T, h, w], background last."""
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


def build_router(config: Any, num_layers: int) -> OfficialRouter | PaperRouter:
    """Router of a transformer with this configuration."""
    shared: dict[str, Any] = {
        "num_layers": num_layers,
        "heads": config.cross_attn_num_heads,
        "dim_head": config.cross_attn_dim_head,
        "num_queries": config.lfe_num_queries,
        "st_heads": config.router_heads,
        "num_blocks": config.router_blocks,
    }
    if config.flavour == "official":
        frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
        sample = frames, config.sample_width // config.patch_size, config.sample_height // config.patch_size
        return OfficialRouter(grid=config.router_grid or sample, **shared)
    return PaperRouter(
        dim=config.router_dim,
        reads_tokens=config.router_reads_tokens,
        temperature=config.router_temperature,
        activation=config.router_activation,
        **shared,
    )
