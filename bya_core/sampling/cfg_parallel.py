"""Evaluation of the guidance branches: as one batch, sequentially, or distributed over processes.

All modes give the same prediction up to rounding. One batch reads the weights once per step and holds the activations
of all branches; sequential evaluation holds those of one branch at a time. With several processes, each one evaluates
its share of the branches and receives the predictions of the others, so that all continue with identical numbers.

Step caches of diffusers keep one state per named context; branches evaluated separately use separate contexts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.sampling.conditions import BranchInputs

log = logging.getLogger(__name__)

GuidanceMode = Literal["batch", "sequential", "distributed"]


@dataclass(frozen=True)
class Prediction:
    """Output of the transformer for all K branches, the fully conditioned one last.

    Args:
        sample: [K, T, C, H, W].
        used_masks: masks applied in the last face layer [K, N, T, h, w]; None without faces.
        masks: router predictions [R, K, N, T, h, w]; None if no router ran, or not in the same layers of all branches.
    """

    sample: Tensor
    used_masks: Tensor | None
    masks: Tensor | None

    def to(self, device: torch.device | str) -> Prediction:
        """Move all tensors to a device."""
        parts = (None if part is None else part.to(device) for part in (self.used_masks, self.masks))
        return Prediction(self.sample.to(device), *parts)


def set_guidance_mode(transformer: Any, mode: GuidanceMode) -> None:
    """Set how the guidance branches of this transformer are evaluated.

    Args:
        transformer: the denoiser.
        mode: "batch" (default; falls back to "sequential" when memory runs out), "sequential", or "distributed" (over
            the processes of an initialized torch process group, all of which denoise the same video).

    Raises:
        InputError: unknown mode.
    """
    if mode not in get_args(GuidanceMode):
        raise InputError(f"guidance mode {mode!r}", '"batch", "sequential" or "distributed"', "choose one of them")
    transformer.guidance_mode = mode


def predict(
    transformer: Any, x: Tensor, timestep: int, inputs: BranchInputs, override: dict[str, Tensor | None]
) -> Prediction:
    """Predict all branches in the guidance mode of the transformer.

    Args:
        transformer: the denoiser.
        x: latents [1, T, C, H, W].
        timestep: timestep of the step.
        inputs: inputs of the branches.
        override: arguments `mask_override` and `mask_override_strength` of the transformer in this step.
    """
    mode, count = getattr(transformer, "guidance_mode", "batch"), len(inputs.names)
    if mode == "batch":
        try:
            return predict_batched(transformer, x, timestep, inputs, override)
        except torch.OutOfMemoryError:
            if count == 1:
                raise
            log.warning("Not enough memory for %d guidance branches at once: they run one after another.", count)
            set_guidance_mode(transformer, "sequential")
            if inputs.kwargs.get("kv_cache") is not None:
                inputs.kwargs["kv_cache"].clear()  # each branch has its own cache from now on
        if x.device.type == "cuda":
            torch.cuda.empty_cache()  # tensors of the failed attempt

    def predict_branch(k: int) -> Prediction:
        own = {name: select_branch(value, k) for name, value in override.items()}
        return predict_batched(transformer, x, timestep, inputs.per_branch[k], own)

    if mode != "distributed":
        return _concatenate([predict_branch(k) for k in range(count)])
    import torch.distributed as dist

    # With more processes than branches, the last branch is evaluated more than once and all use the first result.
    rank, world_size = dist.get_rank(), dist.get_world_size()
    parts: list[Prediction] = []
    for first in range(0, count, world_size):
        own = predict_branch(min(first + rank, count - 1))
        parts += [part.to(x.device) for part in _all_gather(own.to("cpu"))]
    return _concatenate(parts[:count])


def predict_batched(
    transformer: Any, x: Tensor, timestep: int, inputs: BranchInputs, override: dict[str, Tensor | None]
) -> Prediction:
    """Predict all branches in one call of the transformer. Arguments as in `predict`."""
    count = inputs.image_latents.shape[0]
    noisy = x.to(inputs.image_latents).expand(count, -1, -1, -1, -1)
    expanded = {name: _expand_branches(value, inputs.image_latents, count) for name, value in override.items()}
    with cache_context(transformer, "+".join(inputs.names)):
        output = transformer(
            hidden_states=torch.cat([noisy, inputs.image_latents], dim=2),
            timestep=torch.full((count,), timestep, device=x.device, dtype=torch.long),
            **inputs.kwargs,
            **expanded,
        )
    return Prediction(output.sample, output.used_masks, output.masks)


def gather_block_runs(transformer: Any, own: list[bool], count: int) -> list[bool]:
    """Collect, in branch order, whether all blocks ran in each transformer call of the last prediction.

    Args:
        own: one entry per call in this process.
        count: number of branches.
    """
    if getattr(transformer, "guidance_mode", "batch") != "distributed":
        return own
    return [ran for calls in zip(*_all_gather(own), strict=True) for ran in calls][:count]


def _all_gather(own: Any) -> list[Any]:
    """Objects of all processes in rank order; tensors must be on the CPU."""
    import torch.distributed as dist

    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return parts


def _concatenate(parts: list[Prediction]) -> Prediction:
    return Prediction(
        torch.cat([part.sample for part in parts]),
        _cat([part.used_masks for part in parts], 0),
        _cat([part.masks for part in parts], 1),
    )


def _cat(parts: list[Tensor | None], axis: int) -> Tensor | None:
    present = [part for part in parts if part is not None]
    same_shape = len({part.shape for part in present}) == 1  # a step cache may skip layers of some branches only
    return torch.cat(present, dim=axis) if same_shape and len(present) == len(parts) else None


def _expand_branches(value: Tensor | None, like: Tensor, count: int) -> Tensor | None:
    """Expand [1, N, T, h, w] or [R, 1, N, T, h, w] along the batch axis."""
    if value is None:
        return None
    sizes = [-1] * value.ndim
    sizes[value.ndim - 5] = count
    return value.to(like).expand(*sizes)


def select_branch(value: Tensor | None, k: int) -> Tensor | None:
    """Entry `k` along the batch axis of [1 or K, N, T, h, w] or [R, 1 or K, N, T, h, w]."""
    if value is None or value.shape[axis := value.ndim - 5] == 1:
        return value
    return value.narrow(axis, k, 1)


def reset_step_cache(transformer: Any) -> None:
    """Clear the state of diffusers' step caches, as at the start of a run."""
    if hasattr(transformer, "_reset_stateful_cache"):
        transformer._reset_stateful_cache()  # as in the pipelines of diffusers; there is no public name


@contextmanager
def cache_context(transformer: Any, name: str) -> Iterator[None]:
    """Named context of diffusers' step caches, if this version of diffusers has them."""
    if not hasattr(transformer, "cache_context"):
        yield
        return
    with transformer.cache_context(name):
        yield
