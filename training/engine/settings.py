"""How a stage is run (what it is stands in the recipe), and the clock of a run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator

from training.engine.checkpointing import Progress
from training.engine.stages import Stage


@dataclass(frozen=True)
class RunSettings:
    """One run of one stage. A run that was stopped or killed goes on from its last checkpoint in `output`.

    Args:
        output: folder of checkpoints, log and the final weights; where several machines take part, one they share.
        seed: of data order, noise and drops.
        minutes: stop after this time instead of after `stage.steps`. The learning rate then follows the clock, so only
            runs counted in steps come out the same, bit for bit, after a restart.
        save_every: minutes between checkpoints.
        save_steps: steps between checkpoints, in place of `save_every`.
        keep: checkpoints kept.
        log_every: steps between log lines.
        precision: of the forward pass: "no" (float32), "bf16", "fp16"; None = as accelerate's configuration says. What
            learns is kept in float32 (by DeepSpeed inside its optimiser).
        half_frozen: keep frozen matrices in that precision, too: half the memory; `final` then has them so.
        accumulation: slices that a process works through, one after the other, for one step. Changes the memory
            needed, not the result: the batch of a step stays `stage.batch`.
        gradient_checkpointing: compute the blocks again in the backward pass instead of keeping what they computed.
        eight_bit: optimiser state in 8 bits (bitsandbytes).
        patience: so many steps in a row without a finite loss and gradient end the run; single ones are skipped.
        tensorboard: write TensorBoard files.
        wandb: W&B project to report to, or None.
        init: what the model was made from, noted in checkpoints and `final`.
    """

    output: Path
    seed: int = 0
    minutes: float | None = None
    save_every: float = 5.0
    save_steps: int | None = None
    keep: int = 2
    log_every: int = 25
    precision: Literal["no", "bf16", "fp16"] | None = None
    half_frozen: bool = False
    accumulation: int = 1
    gradient_checkpointing: bool = False
    eight_bit: bool = False
    patience: int = 25
    tensorboard: bool = True
    wandb: str | None = None
    init: str | None = None


class Clock:
    """How much of a run is over; the main process's clock counts for all."""

    def __init__(self, stage: Stage, settings: RunSettings, progress: Progress) -> None:
        self.stage, self.settings = stage, settings
        self.spent = self.saved = progress.minutes
        self.steps, self.started = progress.step, time.monotonic() - 60 * progress.minutes
        self.rates = (progress.minutes, progress.samples)
        self.first = (progress.minutes, progress.samples)

    def passed(self) -> float:
        """Share of the run that is over."""
        if self.settings.minutes is not None:
            return self.spent / self.settings.minutes
        return self.steps / self.stage.steps

    def over(self) -> bool:
        """Whether it is."""
        return self.passed() >= 1.0

    def tick(self, accelerator: Accelerator, progress: Progress, samples: int) -> None:
        """A step was done."""
        now = torch.tensor([(time.monotonic() - self.started) / 60], dtype=torch.float32, device=accelerator.device)
        if accelerator.num_processes > 1:
            now = accelerator.reduce(now * accelerator.is_main_process, "sum")
        self.spent, self.steps = float(now), progress.step + 1
        progress.step, progress.minutes, progress.samples = self.steps, self.spent, progress.samples + samples

    def time_to_save(self, progress: Progress) -> bool:
        """Whether a checkpoint is due."""
        if self.settings.save_steps is not None:
            return progress.step % self.settings.save_steps == 0
        if self.spent - self.saved < self.settings.save_every:
            return False
        self.saved = self.spent
        return True

    def figures(self, progress: Progress, measured: dict[str, float], lr: float) -> dict[str, float]:
        """A log line: smoothed losses and gradient norm, the loss of this very step, speed and what is left."""
        minutes, samples = self.rates
        speed = (progress.samples - samples) / max(60 * (self.spent - minutes), 1e-9)
        self.rates = (self.spent, progress.samples)
        left = self.spent * (1 / max(self.passed(), 1e-9) - 1)
        return {
            **progress.means,
            "loss_now": measured["loss"],
            "lr": lr,
            "samples_per_second": round(speed, 3),
            "skipped": progress.skipped,
            "minutes": round(self.spent, 3),
            "minutes_left": round(left, 2),
        }

    def summary(self, progress: Progress) -> dict[str, float]:
        """What the whole run took."""
        minutes, samples = self.first
        speed = (progress.samples - samples) / max(60 * (self.spent - minutes), 1e-9)
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        return {
            "steps": progress.step,
            "minutes": progress.minutes,
            "samples": progress.samples,
            "samples_per_second": speed,
            "skipped": progress.skipped,
            "peak_gib": peak,
        }
