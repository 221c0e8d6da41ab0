"""Guided prediction of each step under a preset, reusing results of earlier steps where the preset allows it.

Blocks are skipped and masks frozen only after the router's masks have converged. Both start over at steps where given
masks start or stop acting.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bya_core.config import SamplingConfig
from bya_core.masks import blend_masks
from bya_core.sampling.acceleration import Acceleration, BlockMonitor
from bya_core.sampling.cfg_parallel import (
    Prediction,
    gather_block_runs,
    predict,
    predict_batched,
    reset_step_cache,
    select_branch,
)
from bya_core.sampling.conditions import BranchInputs, Conditions, build_branch_inputs
from bya_core.sampling.guidance import Branch, apply_guidance, guidance_branches


@dataclass(frozen=True)
class FullStep:
    """The last step in which all blocks ran. The cached residuals can be recomputed from it.

    Args:
        branches: names of the guidance branches that were computed together, joined by "+".
        step: its index, from 0.
        latents: its input [1, T, C, H, W].
    """

    branches: str
    step: int
    latents: Tensor


@dataclass(frozen=True)
class StepCacheState:
    """What later steps reuse from earlier ones; part of the state of an interrupted run.

    Args:
        masks: most recent router predictions for each face layer [R, K, N, T, h, w]; None = none yet.
        converged: whether the masks have converged.
        full_steps: one for each group of branches computed together; empty if blocks are never skipped.
    """

    masks: Tensor | None = None
    converged: bool = False
    full_steps: tuple[FullStep, ...] = ()


@dataclass(eq=False)
class GuidedPredictor:
    """Predicts the guided velocity for latents at a given step of one run.

    Args:
        transformer: with the preset applied.
        conditions: of the run.
        config: of the run.
        timesteps: one per step.
        acceleration: the preset.
        monitor: see `bya_core.sampling.acceleration.apply_preset`.
    """

    transformer: Any
    conditions: Conditions
    config: SamplingConfig
    timesteps: list[int]
    acceleration: Acceleration
    monitor: BlockMonitor
    _inputs: dict[tuple[Branch, ...], BranchInputs] = field(default_factory=dict, init=False)
    _full_steps: dict[str, FullStep] = field(default_factory=dict, init=False)
    _router_masks: Tensor | None = field(default=None, init=False)
    _used_masks: Tensor | None = field(default=None, init=False)
    _converged: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        parameter = next(self.transformer.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    @property
    def state(self) -> StepCacheState | None:
        """State to resume from; None if the preset reuses nothing."""
        if not self._reuses:
            return None
        return StepCacheState(self._router_masks, self._converged, tuple(self._full_steps.values()))

    @property
    def _reuses(self) -> bool:
        return self.monitor.caching or self.acceleration.router.freeze

    def predict(self, x: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        """Predict the guided velocity of one step.

        Args:
            x: latents [1, T, C, H, W].
            step: index of the step, from 0.

        Returns:
            Velocity [1, T, C, H, W] and the character masks [N, T, h, w] applied in the fully conditioned branch; in
            a step with skipped blocks, those of the last full step.
        """
        branches, inputs = self._branches(step)
        if self._reuses and step > 0 and not self._same_override(step - 1, step):
            self._router_masks, self._converged = None, False
        together = "+".join(inputs.names)
        names = (together, *inputs.names)
        self._full_steps = {name: full for name, full in self._full_steps.items() if name in names}
        if self.monitor.caching and not self._may_skip(step):
            reset_step_cache(self.transformer)
        self.monitor.runs.clear()
        override = self._mask_override(step, inputs.names)
        prediction = predict(self.transformer, x, self.timesteps[step], inputs, override)
        runs = [True]
        if self.monitor.caching:
            runs = gather_block_runs(self.transformer, self.monitor.runs, len(inputs.names))
        if self._reuses:
            self._update(prediction, runs, inputs.names, FullStep(together, step, x))
        if runs[-1]:
            self._used_masks = None if prediction.used_masks is None else prediction.used_masks[-1]
        return apply_guidance(prediction.sample, branches), self._used_masks

    def resume(self, state: StepCacheState, step: int) -> None:
        """Restore the state of an interrupted run before step `step`.

        Cached residuals are recomputed from the last full step with the current conditions: one more call, instead of
        hundreds of megabytes in the state.
        """
        self._converged = state.converged
        self._router_masks = None if state.masks is None else state.masks.to(self._device)
        if not self.monitor.caching or not self._converged:
            return
        names = self._branches(step)[1].names
        for full in state.full_steps:
            _, inputs = self._branches(full.step)
            if not self._same_override(full.step, step):
                continue
            latents, timestep = full.latents.to(self._device), self.timesteps[full.step]
            override = self._mask_override(full.step, inputs.names)
            if full.branches == "+".join(inputs.names) == "+".join(names):
                prediction = predict(self.transformer, latents, timestep, inputs, override)
            elif full.branches in names and full.branches in inputs.names:
                k = inputs.names.index(full.branches)
                own = {name: select_branch(value, k) for name, value in override.items()}
                prediction = predict_batched(self.transformer, latents, timestep, inputs.per_branch[k], own)
            else:
                continue
            self._full_steps[full.branches] = replace(full, latents=latents)
            self._used_masks = None if prediction.used_masks is None else prediction.used_masks[-1]

    def _branches(self, step: int) -> tuple[tuple[Branch, ...], BranchInputs]:
        """Guidance branches of a step and their inputs."""
        config, (start, end) = self.config, self.acceleration.guidance_interval
        branches = guidance_branches(config.guidance_scale, config.audio_guidance_scale, self.conditions.has_speech)
        if not start <= step / config.steps < end:
            branches = (replace(branches[-1], weight=1.0),)
        if branches not in self._inputs:
            inputs = build_branch_inputs(
                self.conditions, branches, drop_identity=config.drop_identity, device=self._device, dtype=self._dtype
            )
            self._inputs[branches] = replace(inputs, kwargs={**inputs.kwargs, **self.acceleration.arguments})
        return branches, self._inputs[branches]

    def _mask_override(self, step: int, names: tuple[str, ...]) -> dict[str, Tensor | None]:
        """Given masks of a step, or frozen router masks blended with them."""
        given = self.conditions.mask_override(step, self.config.steps)
        masks, strength, router = given["mask_override"], given["mask_override_strength"], self._router_masks
        frozen = self.acceleration.router.freeze and self._converged
        if (masks is not None and strength is None) or not frozen or router is None or router.shape[1] < len(names):
            return given
        blended = blend_masks(router[:, -len(names) :], masks, strength)
        return {"mask_override": blended, "mask_override_strength": None}

    def _same_override(self, step: int, other: int) -> bool:
        """Whether the given masks are the same in two steps."""
        total = self.config.steps
        one, two = (self.conditions.mask_override(k, total) for k in (step, other))
        return all(_equal(one[name], two[name]) for name in one)

    def _may_skip(self, step: int) -> bool:
        """Whether First-Block Cache may skip blocks in this step."""
        last = min((full.step for full in self._full_steps.values()), default=-1)
        return self._converged and step - last <= self.acceleration.max_skipped

    def _update(self, prediction: Prediction, runs: list[bool], names: tuple[str, ...], full: FullStep) -> None:
        """Record full steps and check the convergence of the masks."""
        previous = min((other.step for other in self._full_steps.values()), default=full.step - 1)
        if self.monitor.caching:
            separate = len(runs) == len(names) > 1
            for name, ran in zip(names if separate else (full.branches,), runs, strict=False):
                if ran:
                    self._full_steps[name] = replace(full, branches=name)
        if not all(runs):
            return
        if prediction.masks is None:  # all masks are given or frozen
            self._converged = True
            return
        masks, before = self._for_face_layers(prediction.masks), self._router_masks
        tenths = 10 * (full.step - previous) / self.config.steps
        threshold = self.acceleration.mask_change * tenths
        self._converged = before is not None and _relative_change(before, masks) < threshold
        self._router_masks = masks

    def _for_face_layers(self, predicted: Tensor) -> Tensor:
        """Repeat the predictions [R, ...] of the router layers for the face layers that reuse them."""
        layers, every = self.transformer.schedule.face_layers, self.acceleration.router.every
        latest = [min(layer // every, len(predicted) - 1) for layer in range(layers)]
        return predicted[latest]


def _relative_change(before: Tensor, now: Tensor) -> float:
    """Change of the masks [R, K, N, T, h, w] of the fully conditioned branch, relative to their sum."""
    before, now = before[:, -1].float(), now[:, -1].float()
    return float((now - before).abs().sum() / torch.maximum(before.sum(), now.sum()).clamp_min(1e-6))


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))
