"""The CogVideoX schedulers of diffusers behind one step function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler
from torch import Generator, Tensor

from bya_core.errors import InputError

Scheduler: TypeAlias = Any
"""CogVideoXDPMScheduler or CogVideoXDDIMScheduler, which are not fully typed."""

COGVIDEOX_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 1.0,
}
"""Noise schedule of CogVideoX-5b: scaled-linear betas rescaled to zero terminal SNR, velocity prediction."""


class SchedulerOutput(NamedTuple):
    """Latents of the next step and the predicted clean latents."""

    latents: Tensor
    x0: Tensor


def build_scheduler(kind: Literal["dpm", "ddim"] = "dpm", config: Mapping[str, Any] | None = None) -> Scheduler:
    """Create a scheduler; `config` overrides entries of `COGVIDEOX_SCHEDULE`.

    Private entries (with a leading underscore) of saved configurations are ignored.
    """
    entries = {**COGVIDEOX_SCHEDULE, **{k: v for k, v in (config or {}).items() if not k.startswith("_")}}
    if kind == "dpm":
        return CogVideoXDPMScheduler(**entries)
    if kind == "ddim":
        return CogVideoXDDIMScheduler(**entries)
    raise InputError(f"scheduler {kind!r}", '"dpm" or "ddim"', "choose one of them")


def retrieve_timesteps(scheduler: Scheduler, steps: int) -> list[int]:
    """Timesteps of a run in descending order.

    Raises:
        InputError: more steps than training timesteps.
    """
    limit = scheduler.config.num_train_timesteps
    if not 1 <= steps <= limit:
        raise InputError(f"{steps} sampling steps", f"1 to {limit}", "choose a number in this range")
    scheduler.set_timesteps(steps, device="cpu")
    return [int(t) for t in scheduler.timesteps]


def step(
    scheduler: Scheduler,
    velocity: Tensor,
    latents: Tensor,
    timesteps: list[int],
    index: int,
    previous_x0: Tensor | None,
    generator: Generator | None,
) -> SchedulerOutput:
    """One scheduler step at timesteps[index].

    Args:
        velocity, latents: [B, T, C, H, W].
        previous_x0: predicted clean latents of the previous step, for the second-order DPM solver.
    """
    second_order = isinstance(scheduler, CogVideoXDPMScheduler)
    if second_order:
        back = timesteps[index - 1] if index > 0 else None
        # The last step has to be first order. The scheduler detects it only if the number of steps divides that of the
        # training timesteps (not for 15 of 1000), and otherwise extrapolates without bound.
        older = previous_x0 if index + 1 < len(timesteps) else None
        result = scheduler.step(
            velocity, older, timesteps[index], back, latents, generator=generator, return_dict=False
        )
    else:
        result = scheduler.step(velocity, timesteps[index], latents, generator=generator, return_dict=False)
    latents, x0 = result[0], result[1]
    return SchedulerOutput(latents.to(torch.float32), x0.to(torch.float32))
