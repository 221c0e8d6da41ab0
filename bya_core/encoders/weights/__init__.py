"""Weights of small networks that are part of the package: NOTICE and LICENSE name their origin."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

_FOLDER = Path(__file__).parent


def weights_file(name: str) -> Path:
    """Path of `name`.safetensors in this folder."""
    return _FOLDER / f"{name}.safetensors"


def load_weights(network: nn.Module, name: str) -> nn.Module:
    """Load `name`.safetensors of this folder into `network`, in evaluation mode, float32, channels last."""
    from safetensors.torch import load_file

    weights = load_file(weights_file(name))
    network.load_state_dict({key: value.float() for key, value in weights.items()})
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network.eval().requires_grad_(False)
