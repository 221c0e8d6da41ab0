"""Intra-denoise router (paper sec. 3.3.1): watch the first steps of a run, hand over masks and the half-done run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from bya_core.checkpoints.bundle import ModelBundle
from bya_core.config import ProbeConfig
from bya_core.prepare import Prepared
from bya_core.progress import Work
from bya_core.routing.result import Routing
from bya_core.sampling import StepInfo, build_scheduler, denoise


def probe(prepared: Prepared, bundle: ModelBundle, work: Work) -> Routing:
    """Denoise until the masks have settled, and stop there.

    `scene.routing.probe` says when that is. Going on from the result with its masks untouched is the same as never
    having stopped, and no step is taken twice.

    Raises:
        Cancelled: the watcher asked to stop.
    """
    scene = prepared.scene
    settling = Settling(scene.routing.probe)
    with work.part("looking who is where", scene.sampling.steps) as step:
        made = denoise(
            bundle.transformer,
            build_scheduler(scene.sampling.scheduler, bundle.scheduler_config),
            prepared.conditions,
            scene.sampling,
            callback=step,
            stop_at=most_steps(scene.routing.probe, scene.sampling.steps),
            stop=settling,
        )
    assert made.masks is not None  # a scene has at least one character
    # One call a step: the branches of guidance are one batch.
    return Routing.of("intra", made.masks, scene.matrix, forced=False, state=made.state, calls=made.state.step)


def most_steps(config: ProbeConfig, total: int) -> int:
    """Steps after which a probe ends at the latest, of a run of `total` steps."""
    if config.steps is not None:
        return min(config.steps, total)
    return max(1, math.floor(config.most * total + 1e-9))  # 0.3 of 10 is 3, whatever floats say


@dataclass
class Settling:
    """Whether masks have come to rest: asked after each step, see `sampling.denoise.Stop`.

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
        return self.config.steps is None and self.change is not None and self.change < self.config.settled
