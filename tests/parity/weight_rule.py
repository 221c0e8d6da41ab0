"""Weights and inputs of the parity fixtures, drawn by rule from their names so that none is stored."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]


def folder() -> Path:
    """Where the fixtures are: BYA_PARITY_DIR, else beside the repository."""
    return Path(os.environ.get("BYA_PARITY_DIR") or ROOT / ".." / "shared" / "parity" / "public").resolve()


def _draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers from a stream of their own for every name, float64."""
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
    """Give every parameter and buffer of `module` its drawn value; position tables of routers stay as built.

    `prefix` stands before the module's own key where the fixture names keys from further up.
    """
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if not key.endswith("pos_emb"):
                value.copy_(weight(prefix + key, tuple(value.shape), salt))
    return module.eval()
