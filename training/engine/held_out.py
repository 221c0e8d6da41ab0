"""Validation on a held-out share of the training data.

The clips are chosen by a hash of their names, so that the same ones are held out after a restart. Loss terms and the
IoU of the router's own masks are computed with all conditions, without teacher masks, and with the same noise every
time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from bya_core.errors import InputError
from training.data.batches import Batch, Clips, as_float
from training.engine.objective import StageLoss
from training.engine.stages import ConditionDropout, Stage
from training.engine.teacher_forcing import TeacherConfig

MAX_BATCHES = 8


class HeldOut:
    """Evaluates a model on held-out clips; a callback of the training loop.

    Args:
        clips: the held-out clips.
        stage: the stage that is trained.
        every: steps between evaluations.
        scheduler: entries of the noise schedule, see `StageLoss`.
        tracker: receives the metrics, named "held_out_loss", "held_out_router_iou" and so on.
    """

    at_ends = True

    def __init__(
        self, clips: Clips, stage: Stage, every: int, scheduler: Mapping[str, Any] | None = None, tracker: Any = None
    ) -> None:
        self.every, self.tracker, self._batches = every, tracker, list[Batch]()
        self.clips, self.size = clips, stage.batch_size
        neutral = replace(
            stage,
            condition_dropout=ConditionDropout(reference=0.0, first_frame=0.0, speech=0.0),
            teacher=TeacherConfig(noise_std=0.0, token_dropout=0.0),
            scheduled_sampling=1.0 if stage.router else 0.0,
            scheduled_sampling_warmup=0,
            mask_loss_probability=0.0,
            emphasis_weight=0.0,
            timestep_bias=1.0,
        )
        self.loss = StageLoss(neutral, 0, scheduler)

    def __call__(self, step: int, means: Mapping[str, float], model: nn.Module) -> dict[str, float]:
        """Evaluate the model; its mode and the random states are unchanged."""
        if not self._batches:
            count = min(MAX_BATCHES, math.ceil(self.clips.clips / self.size))
            self._batches = list(islice(self.clips.batches(min(self.size, self.clips.clips), 0), count))
        sums, samples, training = dict[str, float](), 0, model.training
        device = next(model.parameters()).device
        model.eval()
        try:
            with torch.no_grad():
                for number, batch in enumerate(self._batches):
                    total, terms = self.loss(model, as_float(batch, device), number)
                    size = len(batch["latents"])
                    samples += size
                    for name, value in {"loss": total, **terms}.items():
                        sums[name] = sums.get(name, 0.0) + size * float(value)
        finally:
            model.train(training)
        metrics = {f"held_out_{name}": value / samples for name, value in sums.items()}
        if self.tracker is not None:
            self.tracker.log(metrics, step, "validation")
        return metrics


def hold_out(clips: Any, fraction: float) -> tuple[Clips, Clips]:
    """Split a source of clips into the ones to train on and the ones to evaluate.

    Args:
        clips: `ClipFolder` or `EncodedClips`.
        fraction: share of the clips to hold out; at least one.

    Raises:
        InputError: fewer than two clips.
    """
    names = clips.names()
    if len(names) < 2:
        raise InputError(f"--held-out {fraction:g} of {len(names)} clips", "two clips or more", "use more data")
    count = min(len(names) - 1, max(1, round(fraction * len(names))))
    held = set(sorted(names, key=_hash)[:count])
    return clips.subset(set(names) - held, fraction), clips.subset(held, fraction)


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
