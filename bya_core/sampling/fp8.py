"""Float8 matrix products in the transformer blocks, by torchao, on GPUs that support them.

Weights are quantized once per run with a scale per output channel, activations in each call with a scale per token. The
original weights are kept and restored at the end of the run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)

ROOM = 3
"""Weights are quantized if this multiple of their float8 size is free, since a step needs memory as well."""


def block_linears(blocks: Iterable[Any]) -> list[nn.Linear]:
    """Linear layers of attention and feed-forward of each block."""
    modules = (module for block in blocks for module in (block.attn1, block.ff))
    return [layer for module in modules for layer in module.modules() if isinstance(layer, nn.Linear)]


def has_room(layers: Iterable[nn.Linear]) -> bool:
    """Whether all weights are on a GPU with enough free memory for their float8 copies."""
    weights = [layer.weight for layer in layers]
    if not all(weight.is_cuda for weight in weights):
        return False
    needed, (free, _) = sum(weight.numel() for weight in weights), torch.cuda.mem_get_info(weights[0].device)
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated() > ROOM * needed


@contextmanager
def fp8_matmul(layers: list[nn.Linear]) -> Iterator[bool]:
    """Compute these layers in float8 inside the context; yields whether they are.

    If torchao is missing or does not support this machine, a warning is logged and the layers stay as they are.
    """
    original = [layer.weight for layer in layers]
    try:
        quantized = _quantize(layers)
        if not quantized:
            _restore(layers, original)  # it may have failed half way
        yield quantized
    finally:
        _restore(layers, original)


def _restore(layers: list[nn.Linear], weights: Iterable[Any]) -> None:
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight = weight
        vars(layer).pop("extra_repr", None)  # set by torchao


def _quantize(layers: list[nn.Linear]) -> bool:
    try:
        from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, PerRow, quantize_
    except ModuleNotFoundError:
        log.warning("FP8 is not used: torchao is not installed (pip install torchao).")
        return False
    except Exception as error:  # builds for another version of torch fail in various ways
        log.warning("FP8 is not used: torchao cannot be imported (%s).", error)
        return False
    try:
        quantize_(nn.ModuleList(layers), Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()))
        with torch.no_grad():  # unsupported kernels fail in the first call
            layers[0](torch.zeros(16, layers[0].in_features, dtype=torch.bfloat16, device=layers[0].weight.device))
    except (AssertionError, NotImplementedError, RuntimeError, ValueError) as error:  # unsupported hardware
        log.warning("FP8 is not used: %s.", error)
        return False
    return True
