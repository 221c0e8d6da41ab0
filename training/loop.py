"""The training loop of all stages: one step of `Stage` on a batch, and everything around it that must not get lost."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import nn

from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from training.dataset import ClipFolder, as_float
from training.optimisers import build_optimisers, rate, select_trainable
from training.stage_loss import StageLoss
from training.stages import Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """One run of one stage.

    Args:
        output: folder of checkpoints, log and the final weights.
        seed: of data order, noise and drops.
        minutes: stop after this time (the learning rate decays over it); None = after `stage.steps`.
        save_every: minutes between checkpoints.
        log_every: steps between log lines.
        precision: "no" (float32), "bf16" or "fp16" of the forward pass.
    """

    output: Path
    seed: int = 0
    minutes: float | None = None
    save_every: float = 5.0
    log_every: int = 25
    precision: Literal["no", "bf16", "fp16"] = "no"


def train(
    model: BindYourAvatarTransformer3DModel,
    data: ClipFolder,
    stage: Stage,
    settings: RunSettings,
    accelerator: Accelerator | None = None,
    watch: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Train one stage; resumes from `settings.output/checkpoint` if there is one.

    The final (averaged) weights are written to `settings.output/final` in diffusers' layout.

    Returns:
        What was measured at the end: steps, minutes and the last means of all losses.

    Raises:
        InputError: a stage with LoRA, or several processes; neither is built yet.
    """
    accelerator = accelerator or Accelerator(
        cpu=not torch.cuda.is_available(), mixed_precision=settings.precision
    )
    if stage.lora is not None:
        came = f"stage {stage.number} with LoRA of rank {stage.lora.rank}"
        raise InputError(came, "none: this loop does not train adapters yet", "set lora: null in the recipe")
    if accelerator.num_processes > 1:
        came = f"{accelerator.num_processes} processes"
        raise InputError(came, "one: this loop does not share the data out yet", "start it without accelerate launch")
    settings.output.mkdir(parents=True, exist_ok=True)
    select_trainable(model, stage.trainable)
    model.to(accelerator.device).train()
    optimisers = build_optimisers(model, stage.optimiser)
    learned = [p for p in model.parameters() if p.requires_grad]
    ema = EMAModel(learned, decay=stage.optimiser.ema, use_ema_warmup=False) if stage.optimiser.ema else None
    prepared, *optimisers = accelerator.prepare(model, *optimisers)
    loss_of = StageLoss(stage, settings.seed)
    state = _resume(settings.output, accelerator.unwrap_model(prepared), optimisers, ema)
    step, spent = int(state["step"]), float(state["minutes"])
    means: dict[str, float] = dict(state["means"])
    batches = data.batches(stage.batch, settings.seed, start=step)
    started = saved = time.monotonic()
    log.info(
        "stage %d from step %d: %d clips, %.2f M weights learn",
        stage.number,
        step,
        data.clips,
        sum(p.numel() for p in learned) / 1e6,
    )

    def minutes() -> float:
        return spent + (time.monotonic() - started) / 60

    def passed() -> float:
        return minutes() / settings.minutes if settings.minutes is not None else step / stage.steps

    with (settings.output / "log.jsonl").open("a") as record:
        while passed() < 1.0:
            now = rate(stage.optimiser, step, passed())
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = now
                optimiser.zero_grad()
            with accelerator.autocast():
                total, parts = loss_of(prepared, as_float(next(batches), accelerator.device), step)
            if not torch.isfinite(total):
                raise FloatingPointError(
                    f"the loss of step {step} is {float(total)}; the last checkpoint is kept"
                )
            accelerator.backward(total)
            accelerator.clip_grad_norm_(learned, stage.optimiser.clip)
            for optimiser in optimisers:
                optimiser.step()
            step += 1
            if ema is not None:
                ema.decay = min(stage.optimiser.ema, (1 + step) / (10 + step))
                ema.step(learned)
            for name, value in {"loss": total, **parts}.items():
                means[name] = 0.98 * means.get(name, float(value.detach())) + 0.02 * float(value.detach())
            if step % settings.log_every == 0:
                line = {
                    "step": step,
                    "minutes": round(minutes(), 2),
                    "lr": now,
                    **{k: round(v, 4) for k, v in means.items()},
                }
                record.write(json.dumps(line) + "\n")
                record.flush()
                log.info("%s", "  ".join(f"{k} {v:.4g}" for k, v in line.items()))
                if watch is not None:
                    watch(step, means)
            if time.monotonic() - saved > 60 * settings.save_every and accelerator.is_main_process:
                saved = time.monotonic()
                _save(
                    settings.output,
                    accelerator.unwrap_model(prepared),
                    optimisers,
                    ema,
                    step,
                    minutes(),
                    means,
                )
    model = accelerator.unwrap_model(prepared)
    if accelerator.is_main_process:
        _save(settings.output, model, optimisers, ema, step, minutes(), means)
        if ema is not None:
            ema.copy_to(learned)
        model.save_pretrained(settings.output / "final")
    summary = {"steps": step, "minutes": minutes(), **means}
    (settings.output / "summary.json").write_text(
        json.dumps({"stage": asdict(stage), "measured": summary}, indent=1, default=str)
    )
    return summary


def _save(
    output: Path,
    model: nn.Module,
    optimisers: list,
    ema: EMAModel | None,
    step: int,
    minutes: float,
    means: dict[str, float],
) -> None:
    """Written beside the old checkpoint, then renamed over it: a killed run always leaves one whole checkpoint."""
    target, fresh, old = output / "checkpoint", output / "checkpoint.new", output / "checkpoint.old"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    torch.save(
        {
            "model": model.state_dict(),
            "optimisers": [o.state_dict() for o in optimisers],
            "ema": ema.state_dict() if ema is not None else None,
        },
        fresh / "state.pt",
    )
    (fresh / "progress.json").write_text(json.dumps({"step": step, "minutes": minutes, "means": means}))
    if target.exists():
        os.replace(target, old)
    os.replace(fresh, target)
    shutil.rmtree(old, ignore_errors=True)


def _resume(output: Path, model: nn.Module, optimisers: list, ema: EMAModel | None) -> dict:
    """Load the last whole checkpoint into model, optimisers and average; returns its progress."""
    folder = next(
        (f for f in (output / "checkpoint", output / "checkpoint.old") if (f / "progress.json").is_file()),
        None,
    )
    if folder is None:
        return {"step": 0, "minutes": 0.0, "means": {}}
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    if ema is not None and state["ema"] is not None:
        ema.load_state_dict(state["ema"])
    return json.loads((folder / "progress.json").read_text())
