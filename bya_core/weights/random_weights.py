"""Deterministic random weights: every value follows from the name of its tensor, so nothing has to be stored.

Each tensor draws standard normal values z from its own stream (PCG64 seeded with the CRC-32 of salt + name) in float64.
Matrices and kernels are z / sqrt(fan_in), norm gains 1 + 0.1 z, everything else 0.1 z. The parity tests use the same
rule; it keeps the scale of activations stable through many layers.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor, nn

DRAW_SIZE = 2**22  # values drawn at once; float64 copies of whole tensors would take gigabytes


def draw(name: str, shape: tuple[int, ...], salt: str = "", dtype: torch.dtype = torch.float32) -> Tensor:
    """Weight with state-dict name `name`, on the CPU."""
    gain = name.endswith(".weight")
    if len(shape) == 1:
        scale, shift = 0.1, 1.0 if gain else 0.0
    else:
        scale, shift = (1 / math.sqrt(math.prod(shape[1:])) if gain else 0.1), 0.0
    return _draw(salt + name, shape, scale, shift, dtype)


def draw_input(name: str, shape: tuple[int, ...], salt: str = "", dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal input called `name`."""
    return _draw(f"{salt}input:{name}", shape, 1.0, 0.0, dtype)


def _draw(seed: str, shape: tuple[int, ...], scale: float, shift: float, dtype: torch.dtype) -> Tensor:
    stream = np.random.Generator(np.random.PCG64(zlib.crc32(seed.encode("utf-8"))))
    flat = torch.empty(math.prod(shape), dtype=dtype)
    for start in range(0, len(flat), DRAW_SIZE):
        z = stream.standard_normal(min(DRAW_SIZE, len(flat) - start))
        flat[start : start + len(z)] = torch.from_numpy((shift + scale * z).astype(np.float32))
    return flat.view(shape)


def fill_random(module: nn.Module, salt: str = "", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Initialize a module, which may be on the meta device, on the CPU with all threads.

    Position tables of routers (`pos_emb`) keep their values and are only cast.
    """

    def assign(found: tuple[nn.Module, str, str]) -> None:
        owner, name, full = found
        old = getattr(owner, name)
        if isinstance(old, nn.Parameter):
            setattr(owner, name, nn.Parameter(draw(full, tuple(old.shape), salt, dtype), requires_grad=False))
        elif full.endswith("pos_emb"):
            setattr(owner, name, old.to(dtype))
        else:
            setattr(owner, name, draw(full, tuple(old.shape), salt, dtype))

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(assign, _tensors(module)))
    return module.eval()


def _tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Owner, name and full name of every state-dict entry, largest first."""
    found = []
    for prefix, owner in module.named_modules():
        kept = {**owner._parameters, **owner._buffers}
        for name, tensor in kept.items():
            if tensor is not None and name not in owner._non_persistent_buffers_set:
                found.append((tensor.numel(), owner, name, f"{prefix}.{name}" if prefix else name))
    for _, owner, name, full in sorted(found, key=lambda entry: -entry[0]):
        yield owner, name, full
