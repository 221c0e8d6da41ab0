"""The released files of Bind-Your-Avatar: their layout, their names, and how they become our transformer.

Our parameters carry the published names, so a released file differs from ours by a prefix only:

| file under the released folder | holds | ours begin with |
|---|---|---|
| transformer/*.safetensors | base video transformer (and sometimes all the rest) | |
| audio_module/audio_modules.pt | speech path, flat | audio_model. |
| face_module/face_modules.pt | extractor; list of cross-attentions | local_facial_extractor., ... |
| router/router_modules.pt | router with its position table, flat | router. |
| lora_weight/pytorch_lora_weights.safetensors | update of the attention's q and k | (merged) |
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from bya_core.checkpoints.lora import merge_lora
from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel

log = logging.getLogger(__name__)

AUDIO_FILE = "audio_module/audio_modules.pt"
FACE_FILE = "face_module/face_modules.pt"
ROUTER_FILE = "router/router_modules.pt"
LORA_FILE = "lora_weight/pytorch_lora_weights.safetensors"

AUDIO, EXTRACTOR, CROSS, ROUTER = (
    "audio_model.",
    "local_facial_extractor.",
    "perceiver_cross_attention.",
    "router.",
)
RENAMED = {"is_train_face": "use_face", "is_train_audio": "use_audio"}
HARD_CODED = ("LFE_", "cross_attn_dim_head", "cross_attn_num_heads")
"""Entries of a released config.json that its own code never reads."""
OVERRIDES = {"flavour": "official", "in_channels": 48, "use_face": True, "use_audio": True}
"""What the released code sets whatever config.json says."""


def model_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of our transformer for a released config.json; what means nothing to it is left out."""
    known = inspect.signature(BindYourAvatarTransformer3DModel.__init__).parameters
    renamed = {RENAMED.get(k, k): v for k, v in config.items() if not k.startswith(HARD_CODED)}
    return {k: v for k, v in renamed.items() if k in known} | OVERRIDES


def audio_to_ours(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """audio_modules.pt -> our names."""
    return {AUDIO + key: value for key, value in released.items()}


def face_to_ours(released: Mapping[str, Any]) -> dict[str, Tensor]:
    """face_modules.pt -> our names."""
    ours = {EXTRACTOR + key: value for key, value in released["local_facial_extractor"].items()}
    for layer, weights in enumerate(released["perceiver_cross_attention"]):
        ours |= {f"{CROSS}{layer}.{key}": value for key, value in weights.items()}
    return ours


def router_to_ours(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """router_modules.pt -> our names."""
    return {ROUTER + key: value for key, value in released.items()}


def to_released(ours: Mapping[str, Tensor]) -> dict[str, Any]:
    """Our state dict -> contents of the released files, by the name they have in the released folder.

    "transformer" holds the base; LoRA is merged and cannot be taken out again.
    """
    layers: dict[int, dict[str, Tensor]] = {}
    for key, value in _under(ours, CROSS):
        layer, _, name = key.partition(".")
        layers.setdefault(int(layer), {})[name] = value
    parts = (AUDIO, EXTRACTOR, CROSS, ROUTER)
    return {
        "transformer": {key: value for key, value in ours.items() if not key.startswith(parts)},
        AUDIO_FILE: dict(_under(ours, AUDIO)),
        FACE_FILE: {
            "local_facial_extractor": dict(_under(ours, EXTRACTOR)),
            "perceiver_cross_attention": [layers[layer] for layer in sorted(layers)],
        },
        ROUTER_FILE: dict(_under(ours, ROUTER)),
    }


def _under(weights: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    return ((key.removeprefix(prefix), value) for key, value in weights.items() if key.startswith(prefix))


def widen_patch_embed(weight: Tensor, in_channels: int) -> Tensor:
    """Input projection [D, C, p, p] of a model with fewer input channels: the new ones begin at zero.

    Raises:
        InputError: it has more channels than wanted.
    """
    missing = in_channels - weight.shape[1]
    if missing < 0:
        raise InputError(
            f"an input projection of {weight.shape[1]} channels", f"at most {in_channels}", "use another base"
        )
    return torch.cat([weight, weight.new_zeros(len(weight), missing, *weight.shape[2:])], dim=1)


def read_released(folder: Path, dtype: torch.dtype | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads a released folder -> (arguments of our transformer, state dict under our names, LoRA merged).

    The separate files win over what the transformer's own file may also hold.

    Raises:
        InputError: a file is missing.
    """
    base = folder / ("transformer_ema" if (folder / "transformer_ema").is_dir() else "transformer")
    arguments = model_arguments(json.loads(_present(base / "config.json").read_text()))
    weights: dict[str, Tensor] = {}
    lora: dict[str, Tensor] = {}
    for shard in sorted(base.glob("*.safetensors")) or [_present(base / "*.safetensors")]:
        with safe_open(shard, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 (not a dict)
                name = key.replace(".base_layer.", ".")
                (lora if ".lora_" in name else weights)[name] = opened.get_tensor(key)
    for file, to_ours in (
        (AUDIO_FILE, audio_to_ours),
        (FACE_FILE, face_to_ours),
        (ROUTER_FILE, router_to_ours),
    ):
        weights |= to_ours(
            torch.load(_present(folder / file), map_location="cpu", weights_only=True, mmap=True)
        )
    projection = "patch_embed.proj.weight"
    if projection in weights:
        weights[projection] = widen_patch_embed(weights[projection], arguments["in_channels"])
    if (folder / LORA_FILE).is_file():
        lora = load_file(folder / LORA_FILE)
    if lora:
        log.info("merged %d LoRA updates", merge_lora(weights, lora))
    if dtype is not None:
        weights = {key: value.to(dtype) for key, value in weights.items()}
    return arguments, weights


def load_released(folder: Path, dtype: torch.dtype | None = None) -> BindYourAvatarTransformer3DModel:
    """Our transformer with the released weights, without ever holding them twice.

    Raises:
        InputError: a file is missing, or names or shapes do not fit.
    """
    arguments, weights = read_released(folder, dtype)
    with init_empty_weights():
        model = BindYourAvatarTransformer3DModel(**arguments)
    complain_about_differences(
        {key: tuple(value.shape) for key, value in model.state_dict().items()},
        {key: tuple(value.shape) for key, value in weights.items()},
    )
    model.load_state_dict(weights, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def complain_about_differences(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises InputError, naming the first few, if names or shapes differ."""
    problems = {
        "missing": sorted(expected.keys() - given.keys()),
        "unexpected": sorted(given.keys() - expected.keys()),
        "of another shape": sorted(k for k in expected.keys() & given.keys() if expected[k] != given[k]),
    }
    told = [f"{len(names)} {kind} ({', '.join(names[:3])}...)" for kind, names in problems.items() if names]
    if told:
        raise InputError(
            f"released weights with entries {'; '.join(told)}",
            f"exactly the {len(expected)} entries of this model",
            "check that all released files belong together",
        )


def _present(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"no file {path}", "the released folder with all its files", "download it again")
    return path
