"""The denoising loop, with progress callbacks; runs can be stopped and resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from bya_core.config import SamplingConfig
from bya_core.errors import Cancelled, InputError
from bya_core.progress import Progress, ProgressCallback
from bya_core.sampling import schedulers
from bya_core.sampling.acceleration import apply_preset, get_preset
from bya_core.sampling.cfg_parallel import reset_step_cache
from bya_core.sampling.conditions import Conditions
from bya_core.sampling.step_cache import GuidedPredictor, StepCacheState


@dataclass(frozen=True)
class StepInfo:
    """State after a denoising step; `Progress.info` of the callbacks.

    Args:
        step: number of completed steps, 1..total.
        total: steps of the run.
        x0: predicted clean latents [1, T, C, H, W], usable as a preview.
        masks: character masks applied in the fully conditioned branch [N, T, h, w]; None without faces.
        timestep: timestep of the step.
        latents: noisy latents after the step [1, T, C, H, W].
    """

    step: int
    total: int
    x0: Tensor
    masks: Tensor | None
    timestep: int
    latents: Tensor


StopCondition = Callable[[StepInfo], bool]
"""Called after each step; True ends the run early with partially denoised latents."""


@dataclass(frozen=True)
class DenoiseState:
    """State of an interrupted run. Passed to `denoise`, the run continues as if it had not been interrupted.

    Args:
        step: number of completed steps.
        total: steps of the whole run.
        latents: [1, T, C, H, W].
        previous_x0: predicted clean latents of the last step, for the second-order solver.
        generator: state of the random generator.
        step_cache: what a preset reuses from earlier steps; None = nothing.
    """

    step: int
    total: int
    latents: Tensor
    previous_x0: Tensor | None
    generator: Tensor
    step_cache: StepCacheState | None = None


@dataclass(frozen=True)
class DenoiseResult:
    """Result of a run.

    Args:
        latents: [1, T, C, H, W], clean if all steps were run.
        masks: character masks of the last step [N, T, h, w]; None without faces.
        state: state to resume from.
    """

    latents: Tensor
    masks: Tensor | None
    state: DenoiseState


@torch.no_grad()
def denoise(
    transformer: Any,
    scheduler: schedulers.Scheduler,
    conditions: Conditions,
    config: SamplingConfig,
    *,
    latents: Tensor | None = None,
    generator: Generator | None = None,
    callback: ProgressCallback | None = None,
    state: DenoiseState | None = None,
    stop_at: int | None = None,
    stop: StopCondition | None = None,
) -> DenoiseResult:
    """Denoise one clip.

    Random numbers are drawn on the CPU, so that a seed gives the same noise on every device. Latents are float32
    between steps, independent of the dtype of the transformer.

    Args:
        transformer: `BindYourAvatarTransformer3DModel`.
        scheduler: from `build_scheduler`.
        conditions: encoded conditions.
        config: steps, guidance scales, seed, preset.
        latents: initial noise [1, T, C, H, W]; None = drawn from the generator.
        generator: CPU generator; None = a new one seeded with `config.seed`.
        callback: called after each step with a `StepInfo` as `Progress.info`.
        state: state of an interrupted run with the same number of steps.
        stop_at: step after which to stop; None = run all steps.
        stop: see `StopCondition`.

    Raises:
        Cancelled: the callback cancelled the run.
        InputError: conditions or state do not match.
    """
    device = next(transformer.parameters()).device
    generator = generator or torch.Generator("cpu").manual_seed(config.seed)
    timesteps = schedulers.retrieve_timesteps(scheduler, config.steps)
    known = _known_latents(conditions, config.seed, device)
    state = state or _initial_state(conditions, latents, generator, config.steps)
    if state.total != config.steps:
        raise InputError(f"a state of a run of {state.total} steps", f"{config.steps} steps", "use the same number")
    generator.set_state(state.generator)
    x, x0 = state.latents.to(device, torch.float32), state.previous_x0
    x0 = None if x0 is None else x0.to(device)
    if state.step == 0 and known is not None and (skipped := _skipped(conditions, config.steps)):
        clean, noise, _ = known
        x = scheduler.add_noise(clean, noise, torch.tensor([timesteps[skipped]], device=device))
        state = replace(state, step=skipped)
        reset_step_cache(transformer)
    masks, completed = None, state.step
    last = config.steps if stop_at is None else min(stop_at, config.steps)
    if state.step == 0:
        reset_step_cache(transformer)
    acceleration = get_preset(config.preset)
    with apply_preset(transformer, acceleration) as monitor:
        predictor = GuidedPredictor(transformer, conditions, config, timesteps, acceleration, monitor)
        if state.step_cache is not None:
            predictor.resume(state.step_cache, state.step)
        for i in range(state.step, last):
            if known is not None:
                clean, noise, fixed = known
                noisy = scheduler.add_noise(clean, noise, torch.tensor([timesteps[i]], device=device))
                x = torch.where(fixed, noisy, x)
            velocity, masks = predictor.predict(x, i)
            x, x0 = schedulers.step(scheduler, velocity, x, timesteps, i, x0, generator)
            if known is not None:
                x0 = torch.where(fixed, clean, x0)
                x = torch.where(fixed, clean, x) if i + 1 == config.steps else x
            info = StepInfo(i + 1, config.steps, x0, masks, timesteps[i], x)
            if callback is not None and callback(Progress("Denoising", info.step, info.total, info)) is False:
                raise Cancelled(f"cancelled after step {i + 1} of {config.steps}")
            completed = i + 1
            if stop is not None and stop(info):
                break
        state = DenoiseState(completed, config.steps, x, x0, generator.get_state(), predictor.state)
    return DenoiseResult(x, masks, state)


def _initial_state(conditions: Conditions, latents: Tensor | None, generator: Generator, total: int) -> DenoiseState:
    shape = (1, *conditions.latent_shape)
    if latents is None:
        latents = torch.randn(shape, generator=generator)
    elif tuple(latents.shape) != shape:
        raise InputError(
            f"latents of shape {list(latents.shape)}", f"{list(shape)}", "draw them at the size of the video"
        )
    return DenoiseState(0, total, latents, None, generator.get_state())


def _skipped(conditions: Conditions, steps: int) -> int:
    """Number of steps that are not run."""
    return min(round(conditions.start * steps), steps - 1)


def _known_latents(conditions: Conditions, seed: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor] | None:
    """Clean latents [1, T, C, H, W], their noise and the fixed cells, bool [T, 1, H or 1, W or 1]; None without them.

    The noise depends on the seed alone, so that runs can be interrupted and resumed.
    """
    if conditions.known_latents is None or conditions.known_mask is None:
        return None
    latents = conditions.known_latents.to(device, torch.float32)
    noise = torch.randn(latents.shape, generator=Generator("cpu").manual_seed(seed)).to(device)
    fixed = conditions.known_mask.to(device)
    return latents, noise, fixed[:, None] if fixed.ndim == 3 else fixed[:, None, None, None]
