"""How the branches of guidance are computed: as one batch, one after the other, or one per process.

The three give the same prediction up to rounding. One batch reads the weights once a step and holds the activations of
all branches at once; in turns they are held for one branch at a time. With as many processes as there are branches each
computes one of them and all get every prediction, so that all go on with equal numbers.

Step caches of diffusers keep one state for each named context: what is computed by itself has a context of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.sampling.conditions import BranchInputs

log = logging.getLogger(__name__)

Way = Literal["batch", "sequential", "distributed"]


@dataclass(frozen=True)
class Prediction:
    """What the transformer says of all K branches, the fullest one last. Fields as in its own output.

    Args:
        sample: [K, T, C, H, W].
        used_masks: masks that acted in the last face layer [K, N, T, h, w]; None without faces.
        masks: the router's predictions [R, K, N, T, h, w]; None where no router ran, or not in the same layers for all.
    """

    sample: Tensor
    used_masks: Tensor | None
    masks: Tensor | None

    def to(self, device: torch.device | str) -> Prediction:
        """The same on another device."""
        parts = (None if part is None else part.to(device) for part in (self.used_masks, self.masks))
        return Prediction(self.sample.to(device), *parts)


Predict = Callable[[Any, Tensor, int, BranchInputs, dict[str, Tensor | None]], Prediction]
"""(transformer, x [1, T, C, H, W], timestep, inputs, forced masks and weight of this step) -> all branches."""


def set_guidance_mode(transformer: Any, way: Way) -> None:
    """From now on this transformer's branches of guidance are computed this way.

    Args:
        way: "batch" (where nothing is said; where the device has too little memory for it, in turns from then on),
            "sequential", or "distributed" (of a process group of torch that is there already; all of them denoise the same).

    Raises:
        InputError: another way.
    """
    if way not in get_args(Way):
        raise InputError(
            f"guidance computed in {way!r}", '"batch", "sequential" or "distributed"', "choose one of them"
        )
    transformer.guidance_mode = way


def predictor(transformer: Any) -> Predict:
    """The way that `set_guidance_mode` chose for this transformer."""
    ways: dict[str, Predict] = {
        "batch": predict_batched_if_possible,
        "sequential": predict_sequential,
        "distributed": predict_distributed,
    }
    return ways[getattr(transformer, "guidance_mode", "batch")]


def predict_batched_if_possible(
    transformer: Any, x: Tensor, timestep: int, inputs: BranchInputs, forced: dict[str, Tensor | None]
) -> Prediction:
    """As one batch; where memory runs out, in turns, then and from then on. See `Predict`."""
    if getattr(transformer, "guidance_mode", "batch") == "batch":
        try:
            return predict_batched(transformer, x, timestep, inputs, forced)
        except torch.OutOfMemoryError:
            if len(inputs.names) == 1:
                raise
            log.warning(
                "too little memory for %d versions of the video at once: one after the other", len(inputs.names)
            )
            set_guidance_mode(transformer, "sequential")
            if inputs.fixed.get("kv_cache") is not None:
                inputs.fixed["kv_cache"].clear()  # each branch has its own from now on
    if x.device.type == "cuda":
        torch.cuda.empty_cache()  # pieces of the failed attempt; once, as the next step begins in turns
    return predict_sequential(transformer, x, timestep, inputs, forced)


def predict_batched(
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


def predict_sequential(
    transformer: Any, x: Tensor, timestep: int, inputs: BranchInputs, forced: dict[str, Tensor | None]
) -> Prediction:
    """One call of the transformer for each branch. See `Predict`."""
    return _joined([_alone(k, transformer, x, timestep, inputs, forced) for k in range(len(inputs.names))])


def predict_distributed(
    transformer: Any, x: Tensor, timestep: int, inputs: BranchInputs, forced: dict[str, Tensor | None]
) -> Prediction:
    """Each process computes every so-many-th branch, and gets those of the others. See `Predict`.

    Where branches do not go round, the last one is computed more than once, and the first who did is believed: the
    predictions are the same numbers in every process.
    """
    import torch.distributed as dist

    count, rank, many = len(inputs.names), dist.get_rank(), dist.get_world_size()
    found: list[Prediction] = []
    for first in range(0, count, many):
        own = _alone(min(first + rank, count - 1), transformer, x, timestep, inputs, forced)
        found += [part.to(x.device) for part in _gathered(own.to("cpu"))]
    return _joined(found[:count])


def gather_block_runs(transformer: Any, own: list[bool], count: int) -> list[bool]:
    """What a watcher of this process's calls saw in the last prediction, in the order of the branches.

    Where one process computes all of them that is what it is given; where several share them, each saw its own.

    Args:
        own: one entry for each call of the transformer, in order.
        count: branches of the prediction.
    """
    if getattr(transformer, "guidance_mode", "batch") != "distributed":
        return own
    return [seen for calls in zip(*_gathered(own), strict=True) for seen in calls][:count]


def _gathered(own: Any) -> list[Any]:
    """What each process has there, in their order; tensors on the processor."""
    import torch.distributed as dist

    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return parts


def _alone(
    k: int, transformer: Any, x: Tensor, timestep: int, inputs: BranchInputs, forced: dict[str, Tensor | None]
) -> Prediction:
    """Branch `k` by itself."""
    own = {name: select_branch(value, k) for name, value in forced.items()}
    return predict_batched(transformer, x, timestep, inputs.apart[k], own)


def _joined(found: list[Prediction]) -> Prediction:
    return Prediction(
        torch.cat([one.sample for one in found]),
        _cat([one.used_masks for one in found], 0),
        _cat([one.masks for one in found], 1),
    )


def _cat(parts: list[Tensor | None], axis: int) -> Tensor | None:
    there = [part for part in parts if part is not None]
    alike = len({part.shape for part in there}) == 1  # a step cache may skip layers of one and not of another
    return torch.cat(there, dim=axis) if alike and len(there) == len(parts) else None


def _per_branch(value: Tensor | None, like: Tensor, count: int) -> Tensor | None:
    """Repeats [1, N, T, h, w] or [R, 1, N, T, h, w] along its batch axis."""
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
