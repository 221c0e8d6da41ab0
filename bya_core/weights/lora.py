"""Low-rank updates (LoRA) merged into the weights they belong to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bya_core.errors import InputError

PREFIXES = ("base_model.model.", "transformer.", "module.")
"""What wrappers leave before a weight's name: peft, pipelines of diffusers, and DeepSpeed or several GPUs."""


def plain_name(name: str) -> str:
    """The name without what wrappers left before it, in whatever order."""
    while True:
        bare = name
        for prefix in PREFIXES:
            bare = bare.removeprefix(prefix)
        if bare == name:
            return name
        name = bare


def lora_pairs(lora: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Name of each updated weight -> (A [r, in], B [out, r]).

    Raises:
        InputError: a key that is no LoRA key, or half a pair.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    for key, value in lora.items():
        name, found, _ = plain_name(key).partition(".lora_")
        side = key.rpartition(".lora_")[2][:1]
        if not found or side not in ("A", "B"):
            raise InputError(f"LoRA entry {key!r}", "entries named ...lora_A... and ...lora_B...", "give a LoRA file")
        halves.setdefault(f"{name}.weight", {})[side] = value
    for name, pair in halves.items():
        if len(pair) < 2:
            raise InputError(f"only one half of the LoRA of {name!r}", "lora_A and lora_B", "give the whole file")
    return {name: (pair["A"], pair["B"]) for name, pair in halves.items()}


def merge_lora(weights: dict[str, Tensor], lora: Mapping[str, Tensor], scale: float = 1.0) -> int:
    """Adds scale * B A to each weight, in float32 and in place of the entry; returns how many were changed.

    The released files hold no alpha: rank and alpha are equal, so the right scale is 1. (The released
    inference asks for 1 / rank, but that call has no effect there.)

    Args:
        weights: state dict of the transformer; entries are replaced, the tensors themselves stay as they are.
        lora: released names to tensors.
        scale: strength.

    Raises:
        InputError: a weight that is not there or of another shape.
    """
    pairs = lora_pairs(lora)
    for name, (a, b) in pairs.items():
        weight = weights.get(name)
        if weight is None or weight.shape != (b.shape[0], a.shape[1]):
            shape = None if weight is None else tuple(weight.shape)
            raise InputError(
                f"a LoRA for {name!r} of shape {(b.shape[0], a.shape[1])}",
                f"the model's own shape {shape}" if shape else "a weight that the model has",
                "use the LoRA that was made for this model",
            )
        update = scale * (b.float() @ a.float())
        weights[name] = (weight.float() + update.to(weight.device)).to(weight.dtype)
    return len(pairs)


@torch.no_grad()
def merge_lora_into(model: torch.nn.Module, lora: Mapping[str, Tensor], scale: float = 1.0) -> int:
    """The same on a model's own weights, changed in place."""
    weights = dict(model.state_dict())
    count = merge_lora(weights, lora, scale)
    for name in lora_pairs(lora):
        model.get_parameter(name).copy_(weights[name])
    return count
