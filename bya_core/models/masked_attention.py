"""Attention of every video token to several characters at once, each weighted by its own mask.

Faces and speech both act through it: sum_n mask_n softmax(q k_n^T) v_n (paper eqs. 7 and 8, taken before the output
projection, which is linear). The query is shared by all characters; one more of them costs only its keys.

A fused kernel computes it on NVIDIA GPUs in half precision without gradients, plain PyTorch everything else. The
environment variable BYA_ATTENTION = plain | triton forces one of them.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os

import torch
from torch import Tensor

from bya_core.errors import InputError

log = logging.getLogger(__name__)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """sum_n mask_n softmax(q k_n^T) v_n over N characters.

    Args:
        query: [..., S, d].
        key, value: [..., N, K, d]; keys carry the softmax scale already.
        mask: broadcastable to [..., S, N].

    Returns:
        [..., S, d].

    Raises:
        InputError: BYA_ATTENTION asks for what there is not, or for the kernel where it cannot be.
    """
    wanted = os.environ.get("BYA_ATTENTION", "")
    if wanted not in ("", "plain", "triton"):
        raise InputError(f"BYA_ATTENTION={wanted}", "plain or triton", "leave it out, and the faster one is taken")
    if wanted == "triton":
        return _forced(query, key, value, mask)
    if wanted == "plain" or not _pays(query, key, value, mask):
        return plain(query, key, value, mask)
    try:
        from bya_core.models.masked_attention_triton import fused

        return fused(query, key, value, mask)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # triton builds a part of itself on this machine: a compiler may be missing, and more
        log.warning("the fused attention to faces and speech does not run here, plain PyTorch does: %s", error)
        _refused.append(query.device)
        return plain(query, key, value, mask)


def plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The reference: two matrix products for all characters together.

    torch's `scaled_dot_product_attention` is no way around the weights [..., S, N K] here. It knows one softmax per
    call, so characters would have to join the batch, and what it gives back, [..., N, S, d], is larger than the
    weights wherever a character has fewer keys than a head has channels (published sizes: 32 keys; 64 channels for
    speech, 128 for faces).
    """
    characters = key.shape[-3]
    scores = query @ key.flatten(-3, -2).transpose(-1, -2)  # [..., S, N*K]
    weights = scores.unflatten(-1, (characters, -1)).softmax(dim=-1)
    mask = mask.unsqueeze(-1)
    # In place where no gradient needs the softmax: one tensor of this size less to write.
    weights = weights * mask if torch.is_grad_enabled() else weights.mul_(mask)
    return weights.flatten(-2) @ value.flatten(-3, -2)


_refused: list[torch.device] = []
"""Where the kernel failed once."""


def _pays(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> bool:
    """Whether the kernel can be used and is what is wanted where nothing is said."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    if not query.is_cuda or not half or _needs_gradient(query, key, value, mask):
        return False
    if query.device in _refused or not _kernel_there(query.device):
        return False
    from bya_core.models.masked_attention_triton import fits

    return fits(query, key, value)


@functools.cache
def _kernel_there(device: torch.device) -> bool:
    """An NVIDIA GPU (Ampere or later) and triton."""
    nvidia = torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    return nvidia and importlib.util.find_spec("triton") is not None


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _forced(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    came, do = "BYA_ATTENTION=triton", "leave it out, and what can be used is used"
    if importlib.util.find_spec("triton") is None:
        raise InputError(came, "the package triton", "install it, or leave the variable out")
    from bya_core.models.masked_attention_triton import INTERPRETED, fits, fused

    if not (query.is_cuda or INTERPRETED):
        raise InputError(f"{came} on {query.device.type}", "an NVIDIA GPU, or also TRITON_INTERPRET=1", do)
    if _needs_gradient(query, key, value, mask):
        raise InputError(f"{came} with gradients", "a call without: the kernel has no backward pass", do)
    if not fits(query, key, value):
        shape = f"{str(query.dtype).removeprefix('torch.')} with heads of {query.shape[-1]} channels"
        raise InputError(f"{came} for {shape}", "what the kernel is made for", do)
    return fused(query, key, value, mask)
