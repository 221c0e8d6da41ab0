"""Random weights by rule: every number follows from the name of its tensor, so none has to be stored.

Each tensor draws standard normal numbers z from a stream of its own (PCG64, seeded by the CRC-32 of salt + name), in
float64. Matrices and kernels are z / sqrt(inputs), gains 1 + 0.1 z, all else 0.1 z. The same rule stands behind the
parity tests; a model filled by it keeps its activations at an even size through many layers.
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

AT_ONCE = 2**22  # numbers drawn at a time: float64 copies of whole tensors would take gigabytes


def draw(name: str, shape: tuple[int, ...], salt: str = "", dtype: torch.dtype = torch.float32) -> Tensor:
    """Weight `name` (as in the state dict) of that shape, on the CPU."""
    gain = name.endswith(".weight")
    if len(shape) == 1:
        scale, shift = 0.1, 1.0 if gain else 0.0
    else:
        scale, shift = (1 / math.sqrt(math.prod(shape[1:])) if gain else 0.1), 0.0
    return _filled(salt + name, shape, scale, shift, dtype)


def draw_input(name: str, shape: tuple[int, ...], salt: str = "", dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal input of that name."""
    return _filled(f"{salt}input:{name}", shape, 1.0, 0.0, dtype)


def _filled(seed: str, shape: tuple[int, ...], scale: float, shift: float, dtype: torch.dtype) -> Tensor:
    stream = np.random.Generator(np.random.PCG64(zlib.crc32(seed.encode("utf-8"))))
    flat = torch.empty(math.prod(shape), dtype=dtype)
    for start in range(0, len(flat), AT_ONCE):
        z = stream.standard_normal(min(AT_ONCE, len(flat) - start))
        flat[start : start + len(z)] = torch.from_numpy((shift + scale * z).astype(np.float32))
    return flat.view(shape)


def fill(module: nn.Module, salt: str = "", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Give a module that may lie on the meta device its weights, on the CPU, in all threads of the machine.

    Position tables of routers (`pos_emb`) stay as they were built, but for the dtype.
    """

    def place(found: tuple[nn.Module, str, str]) -> None:
        owner, name, full = found
        old = getattr(owner, name)
        if isinstance(old, nn.Parameter):
            setattr(owner, name, nn.Parameter(draw(full, tuple(old.shape), salt, dtype), requires_grad=False))
        elif full.endswith("pos_emb"):
            setattr(owner, name, old.to(dtype))
        else:
            setattr(owner, name, draw(full, tuple(old.shape), salt, dtype))

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(place, _tensors(module)))
    return module.eval()


def _tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Owner, name and full name of all that a state dict holds, the largest first."""
    found = []
    for prefix, owner in module.named_modules():
        kept = {**owner._parameters, **owner._buffers}
        for name, tensor in kept.items():
            if tensor is not None and name not in owner._non_persistent_buffers_set:
                found.append((tensor.numel(), owner, name, f"{prefix}.{name}" if prefix else name))
    for _, owner, name, full in sorted(found, key=lambda entry: -entry[0]):
        yield owner, name, full
