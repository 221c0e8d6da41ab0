"""Merging of low-rank updates (LoRA)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bya_core.errors import InputError

PREFIXES = ("base_model.model.", "transformer.", "module.")
"""Prefixes added by wrappers: peft, diffusers pipelines, and DeepSpeed or DDP."""


def strip_prefixes(name: str) -> str:
    """Weight name without the prefixes of wrappers, in whatever order they appear."""
    while True:
        stripped = name
        for prefix in PREFIXES:
            stripped = stripped.removeprefix(prefix)
        if stripped == name:
            return name
        name = stripped


def lora_pairs(lora: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Group the entries of a LoRA file: weight name -> (A [r, in], B [out, r]).

    Raises:
        InputError: An entry is not a LoRA entry, or a pair is incomplete.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    for key, value in lora.items():
        name, found, _ = strip_prefixes(key).partition(".lora_")
        side = key.rpartition(".lora_")[2][:1]
        if not found or side not in ("A", "B"):
            raise InputError(f"LoRA entry {key!r}", "entries named ...lora_A... and ...lora_B...", "use a LoRA file")
        halves.setdefault(f"{name}.weight", {})[side] = value
    for name, pair in halves.items():
        if len(pair) < 2:
            raise InputError(f"an incomplete LoRA pair for {name!r}", "lora_A and lora_B", "use the complete file")
    return {name: (pair["A"], pair["B"]) for name, pair in halves.items()}


def check_lora_shape(name: str, a: Tensor, b: Tensor, shape: tuple[int, ...] | None) -> None:
    """Raise `InputError` if a LoRA pair does not match its weight of that shape (`None`: no such weight)."""
    update = (b.shape[0], a.shape[1])
    if shape != update:
        expected = f"the shape of the model {shape}" if shape else "a weight of the model"
        raise InputError(f"a LoRA for {name!r} of shape {update}", expected, "use a LoRA made for this model")


@torch.no_grad()
def merge_lora_into(model: torch.nn.Module, lora: Mapping[str, Tensor], scale: float = 1.0) -> int:
    """Add scale * B A to the weights of a model, in float32 and in place.

    The released files contain no alpha: rank equals alpha, so the correct scale is 1. (The released inference code
    requests 1 / rank, but that call has no effect.)

    Args:
        model: Model to change.
        lora: Released names -> tensors.
        scale: Strength.

    Returns:
        Number of weights that were changed.

    Raises:
        InputError: A weight does not exist or has another shape.
    """
    weights, pairs = model.state_dict(), lora_pairs(lora)
    for name, (a, b) in pairs.items():
        check_lora_shape(name, a, b, tuple(weights[name].shape) if name in weights else None)
    for name, (a, b) in pairs.items():
        weight = weights[name]
        weight.copy_(weight.float() + (scale * (b.float() @ a.float())).to(weight.device))
    return len(pairs)
