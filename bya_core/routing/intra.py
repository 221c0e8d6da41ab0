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
    """Denoise until the masks have settled. Going on from the result is the same as never having stopped."""
    scene = prepared.scene
    watch = _Settling(scene.routing.probe)
    most = watch.config.steps or max(1, math.floor(watch.config.most * scene.sampling.steps))
    scheduler = build_scheduler(scene.sampling.scheduler, bundle.scheduler_config)
    with work.part("looking who is where", scene.sampling.steps) as step:

        def callback(info: StepInfo) -> None:
            watch(info)
            step(info)

        made = denoise(
            bundle.transformer, scheduler, prepared.conditions, scene.sampling, callback=callback, stop_at=most
        )
    assert made.masks is not None  # a scene has at least one character
    return Routing.of(
        "intra", made.masks, scene.matrix, forced=False, state=made.state, calls=made.state.step
    )


@dataclass
class _Settling:
    """How much the masks change from step to step."""

    config: ProbeConfig
    last: Tensor | None = None
    change: float = math.inf

    def __call__(self, info: StepInfo) -> None:
        if self.last is not None and info.masks is not None:
            self.change = float((info.masks - self.last).abs().mean())
        self.last = info.masks

    @property
    def settled(self) -> bool:
        return self.change < self.config.settled
