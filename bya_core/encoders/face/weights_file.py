"""Reading the published weights of a face network into our module, strictly."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bya_core.errors import InputError


def read_weights(path: Path, what: str) -> dict[str, Tensor]:
    """A state dict (.safetensors, or .pth/.pt without code in it); "module." before every name is taken off.

    Args:
        what: names the file in messages: which, how large, which licence.

    Raises:
        InputError: no such file, or one that holds something else.
    """
    if not path.is_file():
        raise InputError(f"no file {path}", what, "python -m bya_core download official fetches it")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            read: Any = load_file(path)
        else:
            read = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read ({error})", what, "download it again") from error
    for inside in ("model", "module", "state_dict"):
        if isinstance(read, Mapping) and isinstance(read.get(inside), Mapping):
            read = read[inside]
    if not isinstance(read, Mapping) or not all(isinstance(value, Tensor) for value in read.values()):
        raise InputError(f"{path} holds no table of weights", what, "download it again")
    return {name.removeprefix("module."): value for name, value in read.items()}


def load_strictly(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Give a network, also one on the meta device, its weights. Raises InputError where names or shapes differ."""
    try:
        network.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        told = str(error).replace("\n", " ").replace("\t", " ")
        raise InputError(f"weights that do not fit ({told[:300]})", what, "give the published file") from error
    network.float().requires_grad_(False).eval()
