"""A model of a few thousand weights and random batches for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bya_core.models.transformer import BindYourAvatarTransformer3DModel

SMALL: dict[str, Any] = {
    "flavour": "paper",
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 3,
    "in_channels": 12,
    "out_channels": 4,
    "time_embed_dim": 16,
    "text_embed_dim": 8,
    "max_text_seq_length": 4,
    "sample_height": 4,
    "sample_width": 6,
    "sample_frames": 5,
    "use_learned_positional_embeddings": False,
    "cross_attn_interval": 2,
    "cross_attn_num_heads": 2,
    "cross_attn_dim_head": 16,
    "lfe_dim": 16,
    "lfe_depth": 5,
    "lfe_dim_head": 8,
    "lfe_heads": 2,
    "lfe_num_id_token": 2,
    "lfe_num_queries": 4,
    "lfe_output_dim": 16,
    "lfe_ff_mult": 2,
    "lfe_vit_dim": 8,
    "lfe_id_dim": 8,
    "lfe_hidden_dim": 16,
    "router_dim": 16,
    "router_heads": 2,
    "router_blocks": 1,
    "inflate_audio_masks": False,
    "audio_dim": 16,
    "audio_heads": 2,
    "audio_dim_head": 16,
    "audio_blocks": 2,
    "audio_channels": 4,
    "audio_hidden_dim": 16,
    "audio_context_tokens": 2,
}


def small_model(**changes: Any) -> BindYourAvatarTransformer3DModel:
    """A model with random weights everywhere, also where the initialization is zero."""
    torch.manual_seed(0)
    model = BindYourAvatarTransformer3DModel(**(SMALL | changes))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=rng)
    return model


def small_batch(count: int = 4, characters: int = 2, frames: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """A batch as from `as_float`; each character covers one column of tokens."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=rng)

    masks = torch.zeros(count, characters, frames, 2, 3)
    for n in range(characters):
        masks[:, n, :, :, n] = 1.0
    return {
        "latents": normal(frames, 4, 4, 6),
        "canvas": normal(4, 4, 6),
        "first_frame": normal(4, 4, 6),
        "text": normal(4, 8),
        "masks": masks,
        "emphasis": torch.rand(count, frames, 4, 6, generator=rng),
        "identity": normal(characters, 8),
        "hidden": normal(characters, 5, 3, 8),
        "speech": normal(characters, (frames - 1) * 4 + 5, 2, 4),
    }
