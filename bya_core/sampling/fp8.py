"""Large products of the transformer's blocks in float8 (e4m3), for GPUs that multiply in it.

Weights are rounded once per run, with a scale for each output channel, activations in each call, with one for each
token. The weights themselves stay as they are; their copies take half as much memory again, until the run ends.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

LARGEST = torch.finfo(torch.float8_e4m3fn).max
UNIT = 16
"""Sizes of a matrix that the product takes are multiples of it."""
ROOM = 3
"""The copies are made where so many times as much memory is free: a step needs some as well."""


def linears(blocks: Iterable[Any]) -> list[nn.Linear]:
    """The large layers: attention and feed-forward of each block."""
    parts = (part for block in blocks for part in (block.attn1, block.ff))
    found = (layer for part in parts for layer in part.modules() if isinstance(layer, nn.Linear))
    return [layer for layer in found if layer.in_features % UNIT == 0 and layer.out_features % UNIT == 0]


def room_for(layers: Iterable[nn.Linear]) -> bool:
    """Whether all weights are on a GPU, and copies of them in 8 bits fit beside them."""
    weights = [layer.weight for layer in layers]
    if not all(weight.is_cuda for weight in weights):
        return False
    needed, (free, _) = sum(weight.numel() for weight in weights), torch.cuda.mem_get_info(weights[0].device)
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated() > ROOM * needed


@contextmanager
def in_8_bits(layers: Iterable[nn.Linear]) -> Iterator[None]:
    """These layers multiply in 8 bits; afterwards they are as they were."""
    changed: list[Any] = []
    try:
        for layer in layers:
            changed.append(layer)
            weight, scale = rounded(layer.weight.detach())
            layer.register_buffer("weight_8", weight, persistent=False)
            layer.register_buffer("scale_8", scale.t().contiguous(), persistent=False)
            layer.forward = types.MethodType(_forward, layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in changed:
            vars(layer).pop("forward", None)
            for name in ("weight_8", "scale_8"):
                layer._buffers.pop(name, None)
                layer._non_persistent_buffers_set.discard(name)


def _forward(layer: Any, x: Tensor) -> Tensor:
    """[..., in] -> [..., out]."""
    flat, scale = rounded(x.flatten(0, -2))
    out = torch._scaled_mm(
        flat, layer.weight_8.t(), scale_a=scale, scale_b=layer.scale_8, bias=layer.bias, out_dtype=x.dtype
    )
    return out.unflatten(0, x.shape[:-1])


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[R, C] -> in float8 [R, C], and the scale of each row [R, 1] in float32 that undoes it."""
    scale = rows.abs().amax(dim=1, keepdim=True).float().clamp_min(1e-12) / LARGEST
    return (rows / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale
