"""Intra-denoise router (paper sec. 3.3.1): watch the first steps of a run, hand over masks and the half-done run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bya_core.config import ProbeConfig
from bya_core.progress import ProgressTracker
from bya_core.routing.result import Routing
from bya_core.sampling import StepInfo, build_scheduler, denoise
from bya_core.sampling.prepared import Prepared
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle

LEFT_OUT = 0.1  # of the largest mask


def probe(prepared: Prepared, bundle: ModelBundle, tracker: ProgressTracker) -> Routing:
    """Denoise until the masks have settled, and stop there.

    `scene.routing.probe` says when that is. Going on from the result with its masks untouched is the same as never
    having stopped, and no step is taken twice. Where the masks leave somebody out, the noise of the next seed is tried:
    who has no place by then is not in the video.

    Raises:
        Cancelled: the watcher asked to stop.
    """
    scene = prepared.scene
    seed = scene.sampling.seed
    best = _probe(prepared, bundle, tracker, seed)
    if not layout_is_free(prepared):
        return best
    calls, left_out = best.calls, missing_characters(best.masks)
    for another in range(seed + 1, seed + scene.routing.probe.num_seeds):
        if not left_out:
            break
        found = _probe(prepared, bundle, tracker, another)
        calls, missing = calls + found.calls, missing_characters(found.masks)
        if len(missing) < len(left_out):
            best, left_out, seed = found, missing, another
    return replace(best, calls=calls, notices=(*best.notices, *_told(scene, left_out, seed)))


def _probe(prepared: Prepared, bundle: ModelBundle, tracker: ProgressTracker, seed: int) -> Routing:
    """One try, from the noise of `seed`."""
    scene = prepared.scene
    settling = MaskConvergence(scene.routing.probe)
    with tracker.stage("Predicting masks", scene.sampling.steps) as step:
        made = denoise(
            bundle.transformer,
            build_scheduler(scene.sampling.scheduler, bundle.scheduler_config),
            prepared.conditions,
            replace(scene.sampling, seed=seed),
            callback=step,
            stop_at=max_probe_steps(scene.routing.probe, scene.sampling.steps),
            stop=settling,
        )
    assert made.masks is not None  # a scene has at least one character
    # One call a step: the branches of guidance are one batch.
    return Routing.of("intra", made.masks, scene.matrix, strength=0.0, state=made.state, calls=made.state.step)


def layout_is_free(prepared: Prepared) -> bool:
    """Whether the model alone decides where people are."""
    conditions = prepared.conditions
    return (
        conditions.first_frame_latents is None and conditions.known_latents is None and conditions.mask_control is None
    )


def missing_characters(masks: Tensor) -> list[int]:
    """Characters whose mask [N, T, h, w] claims less than a tenth of what the largest claims (above one half).

    Nobody where all claim nothing: such a router says nothing about places.
    """
    area = (masks > 0.5).float().mean((1, 2, 3))
    return torch.nonzero(area < LEFT_OUT * area.max()).flatten().tolist()


def _told(scene: Scene, left_out: list[int], seed: int) -> Iterator[str]:
    """What a person should know of the tries."""
    if seed != scene.sampling.seed:
        yield f"Made with seed {seed}: seed {scene.sampling.seed} left somebody out of the picture."
    if left_out:
        names = ", ".join(scene.characters[n].name for n in left_out)
        yield f"No place in the picture was found for {names}: another seed, or a first frame, may help."


def max_probe_steps(config: ProbeConfig, total: int) -> int:
    """Steps after which a probe ends at the latest, of a run of `total` steps."""
    if config.steps is not None:
        return min(config.steps, total)
    return max(1, math.floor(config.max_fraction * total + 1e-9))  # 0.3 of 10 is 3, whatever floats say


@dataclass
class MaskConvergence:
    """Whether masks have come to rest: asked after each step, see `sampling.denoise.StopCondition`.

    Args:
        config: with a number of steps in it, they never do.
        change: mean absolute change of the masks [N, T, h, w] from the step before; None before there are two.
    """

    config: ProbeConfig
    change: float | None = None
    _last: Tensor | None = None

    def __call__(self, info: StepInfo) -> bool:
        if info.masks is not None and self._last is not None:
            self.change = float((info.masks.float() - self._last).abs().mean())
        self._last = None if info.masks is None else info.masks.float()
        return self.config.steps is None and self.change is not None and self.change < self.config.threshold
