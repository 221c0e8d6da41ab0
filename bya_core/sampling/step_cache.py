"""What each step of a run computes under a preset of speed, and what it takes over from the steps before.

Nothing is left out while the router's masks still change: blocks are skipped, and masks frozen, only where these stand
still, and both begin anew where masks that a person gave begin or end to act.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bya_core.config import SamplingConfig
from bya_core.masks import blend_masks
from bya_core.sampling.acceleration import Acceleration, BlockMonitor
from bya_core.sampling.cfg_parallel import (
    Prediction,
    gather_block_runs,
    predict_batched,
    predictor,
    reset_step_cache,
    select_branch,
)
from bya_core.sampling.conditions import BranchInputs, Conditions, build_branch_inputs
from bya_core.sampling.guidance import Branch, branches, combine


@dataclass(frozen=True)
class FullStep:
    """The last step in which all blocks ran: what is added in skipped steps can be computed from it again.

    Args:
        branches: names of the branches of guidance that were computed together, joined by "+".
        step: its number, from 0.
        latents: what went into it [1, T, C, H, W].
    """

    branches: str
    step: int
    latents: Tensor


@dataclass(frozen=True)
class StepCacheState:
    """What later steps take over from earlier ones; part of a half-done run.

    Args:
        masks: of the router, where it last predicted, for each face layer [R, K, N, T, h, w]; None = not yet.
        settled: masks stand still, as far as they were seen.
        ran: one for what is computed together; empty where no block is ever skipped.
    """

    masks: Tensor | None = None
    settled: bool = False
    ran: tuple[FullStep, ...] = ()


class GuidedPredictor:
    """One run: given latents and the number of a step, the guided prediction of it.

    Args:
        transformer: with the preset apply_preset.
        conditions: of the run.
        config: of the run.
        timesteps: one for each step.
        speed: the preset.
        watched: see `bya_core.sampling.acceleration.apply_preset`.
    """

    def __init__(
        self,
        transformer: Any,
        conditions: Conditions,
        config: SamplingConfig,
        timesteps: list[int],
        speed: Acceleration,
        watched: BlockMonitor,
    ) -> None:
        parameter = next(transformer.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._transformer, self._conditions, self._config = transformer, conditions, config
        self._timesteps, self._speed, self._watched = timesteps, speed, watched
        self._predict = predictor(transformer)
        self._laid_out: dict[tuple[Branch, ...], BranchInputs] = {}
        self._router: Tensor | None = None
        self._settled = False
        self._ran: dict[str, FullStep] = {}
        self._masks: Tensor | None = None

    @property
    def reused(self) -> StepCacheState | None:
        """To go on from; None where nothing is taken over from step to step."""
        if not self._watching:
            return None
        return StepCacheState(self._router, self._settled, tuple(self._ran.values()))

    @property
    def _watching(self) -> bool:
        return self._watched.caching or self._speed.router.freeze

    def predict(self, x: Tensor, step: int) -> tuple[Tensor, Tensor | None]:
        """Latents [1, T, C, H, W] -> guided prediction, same shape, and the character masks [N, T, h, w] that acted
        in the fullest branch; in a step whose blocks were skipped, those of the last that ran."""
        used, inputs = self._branches(step)
        if self._watching and step > 0 and not self._same_masks_given(step - 1, step):
            self._router, self._settled = None, False
        together = "+".join(inputs.names)
        self._ran = {name: ran for name, ran in self._ran.items() if name in (together, *inputs.names)}
        if self._watched.caching and not self._may_skip(step):
            reset_step_cache(self._transformer)
        self._watched.begin()
        found = self._predict(self._transformer, x, self._timesteps[step], inputs, self._forced(step, inputs.names))
        runs = [True]
        if self._watched.caching:
            runs = gather_block_runs(self._transformer, self._watched.runs, len(inputs.names))
        if self._watching:
            self._remember(found, runs, inputs.names, FullStep(together, step, x))
        if runs[-1]:
            self._masks = None if found.used_masks is None else found.used_masks[-1]
        return combine(found.sample, used), self._masks

    def go_on(self, reused: StepCacheState, step: int) -> None:
        """Take over what an earlier part of this run left, before step number `step`.

        What skipped steps add is computed again from the last step that ran: a call more, in place of hundreds of
        megabytes in the state, and with the conditions as they are now.
        """
        self._settled = reused.settled
        self._router = None if reused.masks is None else reused.masks.to(self._device)
        if not self._watched.caching or not self._settled:
            return
        names = self._branches(step)[1].names
        for ran in reused.ran:
            _, inputs = self._branches(ran.step)
            if not self._same_masks_given(ran.step, step):
                continue
            latents, timestep = ran.latents.to(self._device), self._timesteps[ran.step]
            forced = self._forced(ran.step, inputs.names)
            if ran.branches == "+".join(inputs.names) == "+".join(names):
                found = self._predict(self._transformer, latents, timestep, inputs, forced)
            elif ran.branches in names and ran.branches in inputs.names:
                one = inputs.names.index(ran.branches)
                given = {name: select_branch(value, one) for name, value in forced.items()}
                found = predict_batched(self._transformer, latents, timestep, inputs.apart[one], given)
            else:
                continue
            self._ran[ran.branches] = replace(ran, latents=latents)
            self._masks = None if found.used_masks is None else found.used_masks[-1]

    def _branches(self, step: int) -> tuple[tuple[Branch, ...], BranchInputs]:
        """The branches of guidance that are computed in a step, and what they are given."""
        config, (start, end) = self._config, self._speed.guidance_interval
        used = branches(config.guidance_scale, config.audio_guidance_scale, self._conditions.has_speech)
        if not start <= step / config.steps < end:
            used = (replace(used[-1], weight=1.0),)
        if used not in self._laid_out:
            made = build_branch_inputs(
                self._conditions,
                used,
                drop_identity=config.drop_identity,
                device=self._device,
                dtype=self._dtype,
            )
            self._laid_out[used] = replace(made, fixed={**made.fixed, **self._speed.arguments})
        return used, self._laid_out[used]

    def _forced(self, step: int, names: tuple[str, ...]) -> dict[str, Tensor | None]:
        """Masks that a person gave, or the router's as they were frozen, drawn towards them."""
        given = self._conditions.mask_override(step, self._config.steps)
        decided = given["mask_override"] is not None and given["mask_override_strength"] is None
        router = self._router
        frozen = self._speed.router.freeze and self._settled
        if decided or not frozen or router is None or router.shape[1] < len(names):
            return given
        masks = blend_masks(router[:, -len(names) :], given["mask_override"], given["mask_override_strength"])
        return {"mask_override": masks, "mask_override_strength": None}

    def _same_masks_given(self, before: int, step: int) -> bool:
        """Whether a person's masks act alike in two steps."""
        total = self._config.steps
        one, other = (self._conditions.mask_override(k, total) for k in (before, step))
        return all(_equal(one[name], other[name]) for name in one)

    def _may_skip(self, step: int) -> bool:
        """Whether First-Block Cache may decide about this step."""
        last = min((ran.step for ran in self._ran.values()), default=-1)
        return self._settled and step - last <= self._speed.max_skipped

    def _remember(self, found: Prediction, runs: list[bool], names: tuple[str, ...], ran: FullStep) -> None:
        before = min((one.step for one in self._ran.values()), default=ran.step - 1)
        if self._watched.caching:
            apart = len(runs) == len(names) > 1
            for name, whole in zip(names if apart else (ran.branches,), runs, strict=False):
                if whole:
                    self._ran[name] = replace(ran, branches=name)
        if not all(runs):
            return
        if found.masks is None:  # all masks are given, or frozen
            self._settled = True
            return
        masks = self._for_face_layers(found.masks)
        tenths = 10 * (ran.step - before) / self._config.steps
        self._settled = self._router is not None and self._change(self._router, masks) < self._speed.settled * tenths
        self._router = masks

    def _for_face_layers(self, predicted: Tensor) -> Tensor:
        """[R, ...] of the layers whose router predicted -> [face layers, ...]: a layer takes over the latest before."""
        layers, every = self._transformer.schedule.face_layers, self._speed.router.every
        latest = [min(layer // every, len(predicted) - 1) for layer in range(layers)]
        return predicted[latest]

    @staticmethod
    def _change(before: Tensor, now: Tensor) -> float:
        """How much of the masks [R, K, N, T, h, w] of the fullest branch changed, as a share of what they cover."""
        before, now = before[:, -1].float(), now[:, -1].float()
        return float((now - before).abs().sum() / torch.maximum(before.sum(), now.sum()).clamp_min(1e-6))


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or torch.equal(one, other)
