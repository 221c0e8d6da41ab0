"""The denoising loop: one function from noise to latents, that can be watched, stopped and resumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
    """What a caller sees after each step.

    Args:
        step: steps done so far, 1..total.
        total: steps of the run.
        x0: clean latents as believed now [1, T, C, H, W]: a preview.
        masks: character masks used in this step [N, T, h, w], of the fully conditioned branch; None without faces.
        timestep: of this step.
        latents: still noisy latents after this step [1, T, C, H, W].
    """

    step: int
    total: int
    x0: Tensor
    masks: Tensor | None
    timestep: int
    latents: Tensor


StopCondition = Callable[[StepInfo], bool]
"""Asked after each step, after the callback; True ends the run there, half-done, without an error."""


@dataclass(frozen=True)
class DenoiseState:
    """A half-done run: give it back to `denoise` to go on as if it had never stopped.

    Args:
        step: steps done.
        total: steps of the whole run.
        latents: [1, T, C, H, W].
        previous_x0: clean latents of the last step, for the second-order solver.
        generator: state of the random generator.
        reused: what a preset of speed takes over from earlier steps; None = nothing.
    """

    step: int
    total: int
    latents: Tensor
    previous_x0: Tensor | None
    generator: Tensor
    reused: StepCacheState | None = None


@dataclass(frozen=True)
class DenoiseResult:
    """What a run ends with.

    Args:
        latents: [1, T, C, H, W], clean if the run was complete.
        masks: character masks of the last step [N, T, h, w]; None without faces.
        state: where it stands, for going on.
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

    All random numbers come from one CPU generator, so that a seed gives the same noise on every device. The
    latents stay float32 between steps whatever the transformer computes in.

    Args:
        transformer: `BindYourAvatarTransformer3DModel`.
        scheduler: from `build_scheduler`.
        conditions: see `Conditions`.
        config: steps, scales, seed.
        latents: initial noise [1, T, C, H, W]; None = drawn from the generator.
        generator: CPU generator; None = a new one with `config.seed`.
        callback: called after each step; `Progress.info` is a `StepInfo`.
        state: of an earlier, unfinished run with the same number of steps.
        stop_at: end after this many steps in all; None = to the end.
        stop: see `StopCondition`; never needed to end at `stop_at`.

    Raises:
        Cancelled: the callback asked for it.
        InputError: conditions that do not fit together.
    """
    device = next(transformer.parameters()).device
    generator = generator or torch.Generator("cpu").manual_seed(config.seed)
    timesteps = schedulers.schedule(scheduler, config.steps)
    state = state or _start(conditions, latents, generator, config.steps)
    if state.total != config.steps:
        raise InputError(f"a state of a run of {state.total} steps", f"{config.steps} steps", "use the same number")
    generator.set_state(state.generator)
    x, x0 = state.latents.to(device, torch.float32), state.previous_x0
    x0 = None if x0 is None else x0.to(device)
    known = _KnownFrames.of(conditions, config.seed, device)
    masks, done = None, state.step
    last = config.steps if stop_at is None else min(stop_at, config.steps)
    if state.step == 0:
        reset_step_cache(transformer)
    speed = get_preset(config.preset)
    with apply_preset(transformer, speed) as watched:
        steps = GuidedPredictor(transformer, conditions, config, timesteps, speed, watched)
        if state.reused is not None:
            steps.go_on(state.reused, state.step)
        for i in range(state.step, last):
            x = known.noised(x, scheduler, timesteps[i])
            velocity, masks = steps.predict(x, i)
            x, x0 = schedulers.step(scheduler, velocity, x, timesteps, i, x0, generator)
            x, x0 = (known.clean(x) if i + 1 == config.steps else x), known.clean(x0)
            info = StepInfo(i + 1, config.steps, x0, masks, timesteps[i], x)
            if callback is not None and callback(Progress("Denoising", info.step, info.total, info)) is False:
                raise Cancelled(f"stopped after step {i + 1} of {config.steps}")
            done = i + 1
            if stop is not None and stop(info):
                break
        state = DenoiseState(done, config.steps, x, x0, generator.get_state(), steps.reused)
    return DenoiseResult(x, masks, state)


def _start(conditions: Conditions, latents: Tensor | None, generator: Generator, total: int) -> DenoiseState:
    shape = (1, *conditions.latent_shape)
    if latents is None:
        latents = torch.randn(shape, generator=generator)
    elif tuple(latents.shape) != shape:
        raise InputError(f"latents of shape {tuple(latents.shape)}", f"{shape}", "draw them for this video's size")
    return DenoiseState(0, total, latents, None, generator.get_state())


@dataclass(frozen=True)
class _KnownFrames:
    """Latent frames that are done already: at each step they carry the noise of that step and nothing else changes.

    Their noise is always the same and comes from the seed alone, so that a run can stop and go on.

    Args:
        latents: clean [1, T, C, H, W]; None = there are none.
        noise: same shape.
        frames: bool [T, 1, 1, 1].
    """

    latents: Tensor | None = None
    noise: Tensor | None = None
    frames: Tensor | None = None

    @classmethod
    def of(cls, conditions: Conditions, seed: int, device: torch.device) -> _KnownFrames:
        if conditions.known_latents is None or conditions.known_mask is None:
            return cls()
        latents = conditions.known_latents.to(device, torch.float32)
        noise = torch.randn(latents.shape, generator=Generator("cpu").manual_seed(seed)).to(device)
        return cls(latents, noise, conditions.known_mask.to(device)[:, None, None, None])

    def noised(self, x: Tensor, scheduler: schedulers.Scheduler, timestep: int) -> Tensor:
        if self.latents is None or self.noise is None or self.frames is None:
            return x
        noisy = scheduler.add_noise(self.latents, self.noise, torch.tensor([timestep], device=x.device))
        return torch.where(self.frames, noisy, x)

    def clean(self, x: Tensor) -> Tensor:
        return x if self.latents is None or self.frames is None else torch.where(self.frames, self.latents, x)
