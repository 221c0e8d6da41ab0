"""Compatibility with several versions of diffusers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from torch import Tensor

try:
    from diffusers.models.attention import AttentionMixin
except ImportError:  # diffusers < 0.35

    class AttentionMixin:  # type: ignore[no-redef]
        """Placeholder: this version keeps attention processors elsewhere."""


try:
    from diffusers.models.attention_dispatch import dispatch_attention_fn
except ImportError:  # diffusers < 0.35
    dispatch_attention_fn: Any = None  # type: ignore[no-redef]


MAX_EXPLICIT_LENGTH = 512
"""Longest key sequence for which training on a CPU computes attention as two matrix products and a softmax.

torch's CPU flash kernel is optimized for long sequences; its backward pass over 130 tokens takes five times as long.
"""
MAX_GRID_SIZE = 65_535
"""Limit of the second and third axis of a CUDA grid, to which attention kernels map batch and heads."""


def dispatch_attention(query: Tensor, key: Tensor, value: Tensor, backend: Any = None, parallel: Any = None) -> Tensor:
    """Scaled dot-product attention with the selected backend: query, key, value [B, S, heads, d] -> [B, S, heads, d].

    Batches beyond `MAX_GRID_SIZE` (the router attends over many short sequences) are split into several calls, because
    torch's kernels fail on them with "invalid configuration argument" (pytorch issues 142228 and 146704).
    """
    for axis, limit in ((2, MAX_GRID_SIZE), (0, max(1, MAX_GRID_SIZE // query.shape[2]))):
        if query.shape[axis] > limit:
            parts = zip(*(x.split(limit, dim=axis) for x in (query, key, value)), strict=True)
            return torch.cat([dispatch_attention(q, k, v, backend, parallel) for q, k, v in parts], dim=axis)
    if dispatch_attention_fn is None or (backend is None and parallel is None and query.device.type == "cpu"):
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        if q.device.type == "cpu" and q.requires_grad and k.shape[-2] <= MAX_EXPLICIT_LENGTH:
            weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(dim=-1)
            return (weights.to(v.dtype) @ v).transpose(1, 2)
        if torch.is_autocast_enabled("cpu"):  # bfloat16 attention is several times slower on a CPU
            with torch.autocast("cpu", enabled=False):
                return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    extra = {} if parallel is None else {"parallel_config": parallel}
    return dispatch_attention_fn(query, key, value, backend=backend, **extra)


def register_block(cls: type[CogVideoXBlock]) -> None:
    """Register the outputs of a block class with the step caches of diffusers."""
    try:
        from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
    except ImportError:  # diffusers < 0.35 has no such step caches
        return
    metadata = TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1)
    TransformerBlockRegistry.register(model_class=cls, metadata=metadata)
