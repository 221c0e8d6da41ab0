"""How the branches of guidance are computed: as one batch, one after the other, or one per process.

The three give the same prediction up to rounding. One batch is quickest on one device and holds the activations of all
branches at once; in turns they are held for one branch at a time; with as many processes as there are branches each
process computes one of them, and all processes get all predictions, so that every process goes on with equal numbers.

Step caches of diffusers keep one state for each named context: what is computed by itself has a context of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.sampling.conditions import BranchInputs

Way = Literal["batch", "turns"]


@dataclass(frozen=True)
class Prediction:
    """What the transformer says of all K branches, the fullest one last. Fields as in its own output.

    Args:
        sample: [K, T, C, H, W].
        used_masks: masks that acted in the last face layer [K, N, T, h, w]; None without faces.
        masks: the router's predictions [R, K, N, T, h, w]; None where no router ran.
    """

    sample: Tensor
    used_masks: Tensor | None
    masks: Tensor | None


Predict = Callable[[Any, Tensor, int, BranchInputs, dict[str, Tensor | None]], Prediction]
"""(transformer, x [1, T, C, H, W], timestep, inputs, forced masks and weight of this step) -> all branches."""


def compute_branches(transformer: Any, way: Way) -> None:
    """From now on this transformer's branches of guidance are computed this way.

    Args:
        way: "batch" (where nothing is said) or "turns".

    Raises:
        InputError: another way.
    """
    if way not in get_args(Way):
        raise InputError(f"guidance computed in {way!r}", '"batch" or "turns"', "choose one of them")
    transformer.guidance_way = way


def predictor(transformer: Any) -> Predict:
    """The way that `compute_branches` chose for this transformer."""
    return in_turns if getattr(transformer, "guidance_way", "batch") == "turns" else in_one_batch


def in_one_batch(
    transformer: Any, x: Tensor, timestep: int, inputs: BranchInputs, forced: dict[str, Tensor | None]
) -> Prediction:
    """One call of the transformer on all branches. See `Predict`."""
    count = inputs.images.shape[0]
    noisy = x.to(inputs.images).expand(count, -1, -1, -1, -1)
    placed = {name: _per_branch(value, inputs.images, count) for name, value in forced.items()}
    with cache_context(transformer, "+".join(inputs.names)):
        output = transformer(
            hidden_states=torch.cat([noisy, inputs.images], dim=2),
            timestep=torch.full((count,), timestep, device=x.device, dtype=torch.long),
            **inputs.fixed,
            **placed,
        )
    return Prediction(output.sample, output.used_masks, output.masks)


def in_turns(
    transformer: Any, x: Tensor, timestep: int, inputs: BranchInputs, forced: dict[str, Tensor | None]
) -> Prediction:
    """One call of the transformer for each branch. See `Predict`."""
    found = [
        in_one_batch(transformer, x, timestep, one, {name: _of_branch(value, k) for name, value in forced.items()})
        for k, one in enumerate(inputs.apart)
    ]
    return _joined(found)


def _joined(found: list[Prediction]) -> Prediction:
    return Prediction(
        torch.cat([one.sample for one in found]),
        _cat([one.used_masks for one in found], 0),
        _cat([one.masks for one in found], 1),
    )


def _cat(parts: list[Tensor | None], axis: int) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there, dim=axis) if len(there) == len(parts) else None


def _per_branch(value: Tensor | None, like: Tensor, count: int) -> Tensor | None:
    """Repeats [1, N, T, h, w] or [R, 1, N, T, h, w] along its batch axis."""
    if value is None:
        return None
    sizes = [-1] * value.ndim
    sizes[value.ndim - 5] = count
    return value.to(like).expand(*sizes)


def _of_branch(value: Tensor | None, k: int) -> Tensor | None:
    """Entry `k` along the batch axis of [1 or K, N, T, h, w] or [R, 1 or K, N, T, h, w]."""
    if value is None or value.shape[axis := value.ndim - 5] == 1:
        return value
    return value.narrow(axis, k, 1)


def forget_cached_steps(transformer: Any) -> None:
    """Step caches forget what they keep of earlier calls, as at the start of a run."""
    if hasattr(transformer, "_reset_stateful_cache"):
        transformer._reset_stateful_cache()  # as diffusers' own pipelines do; there is no public name for it


@contextmanager
def cache_context(transformer: Any, name: str) -> Iterator[None]:
    """Step caches of diffusers keep one state per named context.

    Args:
        transformer: what is called inside.
        name: of the context.
    """
    if not hasattr(transformer, "cache_context"):
        yield
        return
    with transformer.cache_context(name):
        yield
