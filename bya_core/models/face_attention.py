"""Face path: identity features -> face tokens -> cross-attention (paper sec. 3.2)."""

from __future__ import annotations

import torch
from diffusers.models.transformers.consisid_transformer_3d import PerceiverAttention
from einops import rearrange
from torch import Tensor, nn

from bya_core.models.masked_attention import masked_attention


def _mapping(dim_in: int, hidden: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim_in, hidden),
        nn.LayerNorm(hidden),
        nn.LeakyReLU(),
        nn.Linear(hidden, hidden),
        nn.LayerNorm(hidden),
        nn.LeakyReLU(),
        nn.Linear(hidden, dim_out),
    )


class LocalFacialExtractor(nn.Module):
    """Perceiver resampler: learned queries attend to identity and multi-scale vision features of one face.

    Args:
        dim: width of the queries.
        depth: number of attention layers, divided evenly among the scales.
        vit_dim, id_dim: widths of the vision features and the identity vector.
        hidden_dim: hidden width of the input mappings.
        num_scale: number of vision feature maps.
    """

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        dim_head: int,
        heads: int,
        num_id_token: int,
        num_queries: int,
        output_dim: int,
        ff_mult: int,
        vit_dim: int,
        id_dim: int,
        hidden_dim: int,
        num_scale: int = 5,
    ) -> None:
        super().__init__()
        if depth % num_scale:
            raise ValueError(f"lfe_depth {depth} must be a multiple of lfe_num_scale {num_scale}")
        self.num_id_token, self.num_queries, self.num_scale = num_id_token, num_queries, num_scale
        self.depth = depth // num_scale
        self.latents = nn.Parameter(torch.randn(1, num_queries, dim) * dim**-0.5)
        self.proj_out = nn.Parameter(torch.randn(dim, output_dim) * dim**-0.5)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            feed_forward = nn.Sequential(
                nn.LayerNorm(dim),
                nn.Linear(dim, dim * ff_mult, bias=False),
                nn.GELU(),
                nn.Linear(dim * ff_mult, dim, bias=False),
            )
            self.layers.append(nn.ModuleList([PerceiverAttention(dim, dim_head, heads), feed_forward]))
        for scale in range(num_scale):
            self.add_module(f"mapping_{scale}", _mapping(vit_dim, hidden_dim, dim))
        self.id_embedding_mapping = _mapping(id_dim, hidden_dim, dim * num_id_token)

    def forward(self, identity: Tensor, hidden: Tensor) -> Tensor:
        """identity [B, id_dim], hidden [B, K, P, vit_dim] (K scales) -> face tokens [B, Q, output_dim]."""
        tokens = self.id_embedding_mapping(identity).unflatten(-1, (self.num_id_token, -1))
        latents = torch.cat([self.latents.expand(len(identity), -1, -1), tokens], dim=1)
        for scale in range(self.num_scale):
            mapped = self.get_submodule(f"mapping_{scale}")(hidden[:, scale])
            context = torch.cat([tokens, mapped], dim=1)
            for layer in self.layers[scale * self.depth : (scale + 1) * self.depth]:
                attention, feed_forward = layer.children()
                latents = latents + attention(context, latents)
                latents = latents + feed_forward(latents)
        return latents[:, : self.num_queries] @ self.proj_out


class FaceCrossAttention(nn.Module):
    """Cross-attention of video tokens to the face tokens of all characters, with one shared query."""

    zero_initialized = ("to_out",)

    def __init__(self, dim: int, dim_head: int, heads: int, kv_dim: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.norm1 = nn.LayerNorm(kv_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(kv_dim, 2 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def queries(self, hidden_states: Tensor) -> Tensor:
        """[B, S, D] -> q [B, heads, S, d]."""
        return rearrange(self.to_q(self.norm2(hidden_states)), "b s (h d) -> b h s d", h=self.heads)

    def keys_values(self, face_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, Q, kv_dim] -> k, v [B, N, heads, Q, d] each."""
        pair = self.to_kv(self.norm1(face_tokens))
        k, v = rearrange(pair, "b n q (two h d) -> two b n h q d", two=2, h=self.heads)
        return k, v

    def forward(self, query: Tensor, key: Tensor, value: Tensor, masks: Tensor) -> Tensor:
        """query [B, heads, S, d]; key, value [B, N, heads, Q, d]; masks [B, N, S] -> [B, S, D] (eq. 7)."""
        key, value = (rearrange(x, "b n h q d -> b h n q d") for x in (key * self.scale, value))
        mask = rearrange(masks, "b n s -> b 1 s n")
        out = masked_attention(query, key, value, mask)
        return self.to_out(rearrange(out, "b h s d -> b s (h d)"))
