"""Models of this project in the sizes of the parity fixtures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bya_core.models.transformer import BindYourAvatarTransformer3DModel

COPIED = [
    "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "flip_sin_to_cos", "freq_shift",
    "time_embed_dim", "text_embed_dim", "num_layers", "dropout", "attention_bias", "sample_width", "sample_height",
    "sample_frames", "patch_size", "temporal_compression_ratio", "max_text_seq_length", "activation_fn",
    "timestep_activation_fn", "norm_elementwise_affine", "norm_eps", "spatial_interpolation_scale",
    "temporal_interpolation_scale", "use_rotary_positional_embeddings", "use_learned_positional_embeddings",
    "cross_attn_interval", "local_face_scale", "audio_attn_interval",
]  # fmt: skip


def face_extractor_settings(lfe: dict[str, int]) -> dict[str, int]:
    """Arguments of our face extractor."""
    return {"hidden_dim" if key == "hid" else key: value for key, value in lfe.items()}


def transformer_settings(fixture: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Arguments of our transformer for a `transformer_config.json`."""
    lfe = {f"lfe_{key}": value for key, value in face_extractor_settings(fixture["lfe"]).items()}
    audio, projection = fixture["audio"], fixture["audio"]["proj"]
    grid = fixture["router"]["grid"]
    settings = {key: fixture["model"][key] for key in COPIED}
    settings |= lfe | {
        "flavour": "official",
        "cross_attn_dim_head": fixture["ca"]["dim_head"],
        "cross_attn_num_heads": fixture["ca"]["heads"],
        "router_heads": fixture["router"]["st_heads"],
        "router_blocks": fixture["router"]["n_st"],
        "router_grid": tuple(grid),
        "audio_dim": audio["audio_dim"],
        "audio_heads": audio["num_attention_heads"],
        "audio_dim_head": audio["attention_head_dim"],
        "audio_window": projection["seq_len"],
        "audio_blocks": projection["blocks"],
        "audio_channels": projection["channels"],
        "audio_hidden_dim": projection["intermediate_dim"],
        "audio_context_tokens": projection["context_tokens"],
    }
    return settings | changes


def build_transformer(fixture: dict[str, Any], **changes: Any) -> BindYourAvatarTransformer3DModel:
    """Our transformer, weights not filled."""
    return BindYourAvatarTransformer3DModel(**transformer_settings(fixture, **changes))


def face_tokens(model: BindYourAvatarTransformer3DModel, inputs: dict[str, Tensor]) -> Tensor:
    """[B, N, Q, kv] of all faces in the fixture's inputs."""
    characters = sorted(int(key.rsplit("_", 1)[1]) for key in inputs if key.startswith("id_cond_"))
    scales = model.config.lfe_num_scale
    identity = torch.stack([inputs[f"id_cond_{k}"] for k in characters], dim=1)
    hidden = [torch.stack([inputs[f"id_vit_{k}_{s}"] for s in range(scales)], dim=1) for k in characters]
    return model.encode_faces(identity, torch.stack(hidden, dim=1))


def masks(tokens: Tensor, grid: dict[str, int]) -> Tensor:
    """The fixtures' masks [B, S, N] -> ours [B, N, T, h, w]."""
    return tokens.transpose(1, 2).unflatten(2, (grid["T"], grid["H"], grid["W"]))
