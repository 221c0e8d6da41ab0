"""Elapsed time, throughput and schedule of a run."""

from __future__ import annotations

import time

import torch
from accelerate import Accelerator

from training.engine.checkpointing import TrainerState
from training.engine.settings import RunSettings
from training.engine.stages import Stage

MIN_INTERVAL, MINUTES_PER_GB = 5.0, 2 / 3
"""Minutes between checkpoints: at least, and per GB of a checkpoint (at 0.5 GB/s, 5 % of the time is writing)."""


class RunTimer:
    """Tracks how much of a run is done. The clock of the main process is used by all processes.

    Args:
        stage: configuration of the stage.
        settings: options of the run.
        state: progress of the run, which is updated.
        checkpoint_size: bytes of a checkpoint.
    """

    def __init__(self, stage: Stage, settings: RunSettings, state: TrainerState, checkpoint_size: int = 0) -> None:
        self.stage, self.settings, self.state = stage, settings, state
        self.interval = settings.checkpointing_minutes or max(MIN_INTERVAL, checkpoint_size / 1e9 * MINUTES_PER_GB)
        self.started = time.monotonic() - 60 * state.minutes
        self.last_checkpoint = state.minutes
        self.last_log = self.start = (state.minutes, state.samples)

    @property
    def fraction_done(self) -> float:
        """Completed fraction of the run; 1 or more means finished."""
        if self.settings.max_minutes is not None:
            return self.state.minutes / self.settings.max_minutes
        return self.state.step / self.stage.steps

    def update(self, accelerator: Accelerator, samples: int) -> None:
        """Count one finished step."""
        now = torch.tensor([(time.monotonic() - self.started) / 60], dtype=torch.float32, device=accelerator.device)
        if accelerator.num_processes > 1:
            now = accelerator.reduce(now * accelerator.is_main_process, "sum")
        self.state.step += 1
        self.state.samples += samples
        self.state.minutes = float(now)

    def checkpoint_due(self) -> bool:
        """Whether a checkpoint should be written now."""
        if self.settings.checkpointing_steps is not None:
            return self.state.step % self.settings.checkpointing_steps == 0
        if self.state.minutes - self.last_checkpoint < self.interval:
            return False
        self.last_checkpoint = self.state.minutes
        return True

    def _samples_per_second(self, since: tuple[float, int]) -> float:
        minutes, samples = since
        return (self.state.samples - samples) / max(60 * (self.state.minutes - minutes), 1e-9)

    def log_values(self, step_metrics: dict[str, float], lr: float) -> dict[str, float]:
        """One log line: smoothed metrics, the loss of this step, throughput and remaining time."""
        throughput, self.last_log = self._samples_per_second(self.last_log), (self.state.minutes, self.state.samples)
        return {
            **self.state.averages,
            "step_loss": step_metrics["loss"],
            "lr": lr,
            "samples_per_second": round(throughput, 3),
            "skipped": self.state.skipped,
            "minutes": round(self.state.minutes, 3),
            "minutes_left": round(self.state.minutes * (1 / max(self.fraction_done, 1e-9) - 1), 2),
        }

    def summary(self) -> dict[str, float]:
        """Totals of the whole run; throughput since this start."""
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        return {
            "steps": self.state.step,
            "minutes": self.state.minutes,
            "samples": self.state.samples,
            "samples_per_second": self._samples_per_second(self.start),
            "skipped": self.state.skipped,
            "peak_gib": peak,
        }
