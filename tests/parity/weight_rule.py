"""Weights and inputs of the parity fixtures, drawn from a random stream seeded by their names."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

FIXTURES = Path(__file__).resolve().parent / "fixtures"


def folder() -> Path:
    """Folder of the recorded outputs: `BYA_PARITY_DIR`, or the one in the repository."""
    return Path(os.environ.get("BYA_PARITY_DIR") or FIXTURES).resolve()


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers, float64; every name seeds its own stream."""
    stream = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode("utf-8"))))
    return stream.standard_normal(tuple(shape))


def weight(key: str, shape: tuple[int, ...], salt: str) -> Tensor:
    """Value of the state-dict entry `key`, float32."""
    z = _draw(salt + key, shape)
    gain = key.endswith(".weight")
    if len(shape) == 1:
        z = 1 + 0.1 * z if gain else 0.1 * z
    else:
        z = z / np.prod(shape[1:]) ** 0.5 if gain else 0.1 * z
    return torch.from_numpy(z.astype(np.float32))


def input_tensor(name: str, shape: tuple[int, ...], salt: str) -> Tensor:
    """Input that is not stored, float32."""
    return torch.from_numpy(_draw(salt + "input:" + name, shape).astype(np.float32))


def fill(module: nn.Module, salt: str, prefix: str = "") -> nn.Module:
    """Set every parameter and buffer of `module` to its drawn value, except the routers' position tables.

    Args:
        prefix: prepended to the module's keys if the fixture names them from a parent module.
    """
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if not key.endswith("pos_emb"):
                value.copy_(weight(prefix + key, tuple(value.shape), salt))
    return module.eval()
