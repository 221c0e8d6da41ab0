"""Where the parity fixtures are, and the models they were made with."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from tests.parity.weight_rule import weight

DEFAULT = Path(__file__).resolve().parents[2] / ".." / "shared" / "parity" / "public"
FOLDER = Path(os.environ.get("BYA_PARITY_DIR", DEFAULT))

needs_fixtures = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"parity fixtures not found at {FOLDER}; set BYA_PARITY_DIR to their folder"
)


def read_json(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def read_tensors(name: str) -> dict[str, Tensor]:
    return load_file(FOLDER / f"{name}.safetensors")


def largest_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference; shapes must be equal."""
    assert ours.shape == theirs.shape, (tuple(ours.shape), tuple(theirs.shape))
    return (ours.double() - theirs.double()).abs().max().item()


def fill(module: nn.Module, salt: str, kept: tuple[str, ...] = ("pos_emb",)) -> None:
    """Draws every weight by the rule; entries whose last name is in `kept` stay as constructed."""
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if key.rsplit(".", 1)[-1] not in kept:
                value.copy_(torch.from_numpy(weight(key, tuple(value.shape), salt)))


def transformer_arguments(config: dict[str, Any], model: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of our transformer for a fixture's config; `model` replaces the config's own one."""
    renamed = {"is_train_face": "use_face", "is_train_audio": "use_audio"}
    ignored = ("is_kps", "is_teacher_forcing", "LFE_num_tokens", "LFE_output_dim", "LFE_heads")
    given = model or config["model"]
    arguments = {renamed.get(k, k): v for k, v in given.items() if k not in ignored}
    lfe, ca, router, audio = (config[name] for name in ("lfe", "ca", "router", "audio"))
    arguments |= {f"lfe_{k}": v for k, v in lfe.items() if k != "hid"} | {"lfe_hidden_dim": lfe["hid"]}
    arguments |= {"cross_attn_dim_head": ca["dim_head"], "cross_attn_num_heads": ca["heads"]}
    arguments |= {
        "router_heads": router["st_heads"],
        "router_blocks": router["n_st"],
        "router_grid": tuple(router["grid"]),
    }
    proj = audio["proj"]
    arguments |= {
        "audio_dim": audio["audio_dim"],
        "audio_heads": audio["num_attention_heads"],
        "audio_dim_head": audio["attention_head_dim"],
        "audio_window": proj["seq_len"],
        "audio_blocks": proj["blocks"],
        "audio_channels": proj["channels"],
        "audio_hidden_dim": proj["intermediate_dim"],
        "audio_context_tokens": proj["context_tokens"],
    }
    return arguments


def build_transformer(arguments: dict[str, Any], salt: str, **more: Any) -> BindYourAvatarTransformer3DModel:
    """Our transformer in the official flavour with the fixture's weights."""
    model = BindYourAvatarTransformer3DModel(flavour="official", **(arguments | more)).eval()
    fill(model, salt)
    return model


@lru_cache
def tiny_transformer() -> BindYourAvatarTransformer3DModel:
    """The transformer of the tiny fixtures; shared, so do not change it."""
    config = read_json("transformer_config")
    return build_transformer(transformer_arguments(config), config["salt"])


def faces(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Identity [B, N, id_dim] and vision features [B, N, K, P, vit_dim] of a fixture's inputs."""
    characters = sum(1 for name in inputs if name.startswith("id_cond_"))
    scales = sum(1 for name in inputs if name.startswith("id_vit_0_"))
    identity = torch.stack([inputs[f"id_cond_{n}"] for n in range(characters)], dim=1)
    hidden = torch.stack(
        [torch.stack([inputs[f"id_vit_{n}_{k}"] for k in range(scales)], dim=1) for n in range(characters)],
        dim=1,
    )
    return identity, hidden


def columns_to_masks(masks: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Masks as stored, [..., S, N] -> [..., N, T, h, w]."""
    return masks.transpose(-1, -2).unflatten(-1, shape)
