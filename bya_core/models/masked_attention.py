"""Cross-attention of every video token to several characters, each weighted by its own mask.

Faces and speech both use it: sum_n mask_n softmax(q k_n^T) v_n (paper eqs. 7 and 8, before the linear output
projection). The query is shared by all characters, so that one more character costs only its keys.

NVIDIA GPUs in half precision without gradients use a fused Triton kernel, everything else PyTorch. The environment
variable BYA_ATTENTION = torch | triton selects one of them.
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
        key, value: [..., N, K, d]; keys are already multiplied by the softmax scale.
        mask: broadcastable to [..., S, N].

    Returns:
        [..., S, d].

    Raises:
        InputError: BYA_ATTENTION has another value, or selects the kernel for inputs it does not support.
    """
    backend = os.environ.get("BYA_ATTENTION", "")
    if backend not in ("", "torch", "triton"):
        raise InputError(f"BYA_ATTENTION={backend}", "torch or triton", "unset it to select the faster one")
    if backend == "triton":
        return _triton_attention(query, key, value, mask)
    if backend == "torch" or not _use_kernel(query, key, value, mask):
        return torch_attention(query, key, value, mask)
    try:
        from bya_core.models.masked_attention_triton import triton_attention

        return triton_attention(query, key, value, mask)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # Triton compiles at run time: a compiler may be missing, for example
        log.warning("The fused kernel for masked attention failed and is replaced by PyTorch: %s.", error)
        _failed_devices.append(query.device)
        return torch_attention(query, key, value, mask)


def torch_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Reference implementation: two matrix products for all characters together.

    torch's `scaled_dot_product_attention` would not avoid the attention weights [..., S, N K]: it has one softmax per
    call, so characters would become a batch axis, and its output [..., N, S, d] is larger than the weights whenever a
    character has fewer keys than a head has channels (published sizes: 32 keys; 64 or 128 channels).
    """
    characters = key.shape[-3]
    scores = query @ key.flatten(-3, -2).transpose(-1, -2)  # [..., S, N*K]
    weights = scores.unflatten(-1, (characters, -1)).softmax(dim=-1)
    mask = mask.unsqueeze(-1)
    # In place where no gradient needs the softmax, which saves one tensor of this size.
    weights = weights * mask if torch.is_grad_enabled() else weights.mul_(mask)
    return weights.flatten(-2) @ value.flatten(-3, -2)


_failed_devices: list[torch.device] = []
"""Devices on which the kernel failed once."""


def _use_kernel(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> bool:
    """Whether the kernel is available and the default for these inputs."""
    half = query.dtype in (torch.float16, torch.bfloat16)
    if not query.is_cuda or not half or _needs_gradient(query, key, value, mask):
        return False
    if query.device in _failed_devices or not _kernel_available(query.device):
        return False
    from bya_core.models.masked_attention_triton import is_supported

    return is_supported(query, key, value)


@functools.cache
def _kernel_available(device: torch.device) -> bool:
    """An NVIDIA GPU (Ampere or later) and Triton."""
    nvidia = torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= (8, 0)
    return nvidia and importlib.util.find_spec("triton") is not None


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _triton_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """The kernel, selected by BYA_ATTENTION=triton; raises InputError if it cannot run."""
    problem, hint = "BYA_ATTENTION=triton", "unset it to select a supported implementation"
    if importlib.util.find_spec("triton") is None:
        raise InputError(problem, "the package triton", "install it, or unset the variable")
    from bya_core.models.masked_attention_triton import INTERPRETED, is_supported, triton_attention

    if not (query.is_cuda or INTERPRETED):
        raise InputError(f"{problem} on {query.device.type}", "an NVIDIA GPU, or TRITON_INTERPRET=1", hint)
    if _needs_gradient(query, key, value, mask):
        raise InputError(f"{problem} with gradients", "a call without gradients (forward-only kernel)", hint)
    if not is_supported(query, key, value):
        shape = f"{str(query.dtype).removeprefix('torch.')} with heads of {query.shape[-1]} channels"
        raise InputError(f"{problem} for {shape}", "a supported dtype and head size", hint)
    return triton_attention(query, key, value, mask)
