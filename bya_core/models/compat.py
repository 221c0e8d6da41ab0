"""What older and newer diffusers name differently; everything else imports it from here."""

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
        """Nothing: this diffusers keeps attention processors elsewhere."""


try:
    from diffusers.models.attention_dispatch import dispatch_attention_fn
except ImportError:  # diffusers < 0.35
    dispatch_attention_fn: Any = None  # type: ignore[no-redef]


GRID = 65_535
"""Most programs along the second and third axis of a CUDA grid, on which kernels lay batch and heads."""


def attend(query: Tensor, key: Tensor, value: Tensor, backend: Any = None, parallel: Any = None) -> Tensor:
    """Scaled dot-product attention by the backend that the user chose: three of [B, S, heads, d] -> one.

    Many short sequences (the router's, one for each place of the picture, in batch or heads) are taken in several
    calls: beyond `GRID` torch's kernels fail with "invalid configuration argument" (pytorch issues 142228 and 146704).
    """
    for axis, most in ((2, GRID), (0, max(1, GRID // query.shape[2]))):  # too many heads, then too many of both
        if query.shape[axis] > most:
            parts = zip(*(x.split(most, dim=axis) for x in (query, key, value)), strict=True)
            return torch.cat([attend(q, k, v, backend, parallel) for q, k, v in parts], dim=axis)
    if dispatch_attention_fn is None or (backend is None and parallel is None and query.device.type == "cpu"):
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        if torch.is_autocast_enabled("cpu"):  # the processor's bfloat16 attention is several times slower
            with torch.autocast("cpu", enabled=False):
                return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    extra = {} if parallel is None else {"parallel_config": parallel}
    return dispatch_attention_fn(query, key, value, backend=backend, **extra)


def register_block(cls: type[CogVideoXBlock]) -> None:
    """Tell diffusers' step caches where a block's outputs are."""
    try:
        from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
    except ImportError:  # diffusers < 0.35: no step caches that need it
        return
    metadata = TransformerBlockMetadata(return_hidden_states_index=0, return_encoder_hidden_states_index=1)
    TransformerBlockRegistry.register(model_class=cls, metadata=metadata)
