"""The training loop of all stages: one step of a stage's loss, and everything around it that must not get lost.

Every process draws the same whole batch number k and takes its slices of it; so neither the number of processes nor
the accumulation changes what is learned at step k, and a restart goes on with batch k. One device, several processes,
FSDP2 or DeepSpeed is accelerate's matter: `accelerate launch --config_file training/recipes/accelerate/NAME.yaml`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.fsdp import FSDPModule

from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from training.data.dataset import Clips
from training.engine.checkpointing import Checkpoints, Progress, Trained, fingerprint, whole
from training.engine.distributed import PRECISIONS, Part, batch_parts, build_accelerator, check, clip_gradients, spread
from training.engine.lora import add_lora, has_lora, write_model
from training.engine.objective import StageLoss
from training.engine.optim import build_optimisers, idle_parts, rate, select_trainable, set_precision
from training.engine.settings import Clock, RunSettings
from training.engine.stages import Stage
from training.engine.trackers import Tracker
from training.engine.whole_folder import written_whole

log = logging.getLogger(__name__)


def train(
    model: BindYourAvatarTransformer3DModel,
    data: Clips,
    stage: Stage,
    settings: RunSettings,
    accelerator: Accelerator | None = None,
    watch: Callable[[int, dict[str, float], nn.Module], Any] | None = None,
) -> dict[str, float]:
    """Train one stage, from the last checkpoint in `settings.output` if there is one.

    Writes `final/` (see training/engine/lora.py; the averaged weights where the stage keeps some) and `summary.json`.

    Args:
        watch: called as (step, means, model) every `watch.every` steps (`log_every` if it has no such thing), in all
            processes, with the averaged weights in the model. If it has a `tracker` that is None, it gets the run's.

    Returns:
        Figures of the end: steps, minutes, samples per second, skipped steps and clips, last means of all losses.

    Raises:
        InputError: settings that do not go together, a checkpoint of another run, a full disk, or no finite loss in
            `patience` steps. The last checkpoint is kept in any case.
    """
    accelerator = accelerator or build_accelerator(settings)
    check(stage, settings, accelerator)
    output, main = settings.output, accelerator.is_main_process
    if stage.lora is not None and not has_lora(model):
        add_lora(model, stage.lora)
    select_trainable(model, stage.trainable, idle_parts(stage))
    set_precision(model, PRECISIONS.get(accelerator.mixed_precision) if settings.half_frozen else None)
    started_with = {"stage": stage.number, "seed": settings.seed, "frozen": fingerprint(model), "init": settings.init}
    if settings.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    model.to(accelerator.device).train()
    door, optimisers = spread(accelerator, model, build_optimisers(model, stage.optimiser, settings.eight_bit))
    model = accelerator.unwrap_model(door).model
    learned = [p for p in model.parameters() if p.requires_grad]
    ema = EMAModel(learned, decay=stage.optimiser.ema, use_ema_warmup=False) if stage.optimiser.ema else None

    run = Trained(accelerator, model, optimisers, ema, started_with)
    checkpoints = Checkpoints(output, settings.keep)
    set_seed(settings.seed, device_specific=True)
    progress = checkpoints.resume(run)
    parts = batch_parts(accelerator, data, stage.batch, settings.seed, progress.step)
    loss_of, clock = StageLoss(stage, settings.seed), Clock(stage, settings, progress)
    count = sum(p.numel() for p in learned) / 1e6
    told = f"{count:.2f} M weights learn, {accelerator.num_processes} processes ({accelerator.distributed_type.value})"
    log.info("stage %d from step %d: %d clips, %s", stage.number, progress.step, data.clips, told)
    in_a_row, saved = 0, progress.step

    with Tracker(
        output,
        progress.step,
        active=main,
        tensorboard=settings.tensorboard,
        wandb=settings.wandb,
        config={**asdict(stage), **asdict(settings)},
    ) as tracker:
        if getattr(watch, "tracker", tracker) is None:
            watch.tracker = tracker  # type: ignore[union-attr]
        while not clock.over():
            lr = rate(stage.optimiser, progress.step, clock.passed())
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = lr
            part = next(parts)
            measured = one_step(accelerator, door, learned, optimisers, stage, loss_of, part, progress.step)
            clock.tick(accelerator, progress, part.whole)
            if measured.pop("taken"):
                in_a_row = 0
                if ema is not None:
                    ema.step(learned)
                for name, value in measured.items():
                    progress.means[name] = 0.98 * progress.means.get(name, value) + 0.02 * value
            else:
                progress.skipped, in_a_row = progress.skipped + 1, in_a_row + 1
                log.warning("step %d skipped (%d so far): %s", progress.step, progress.skipped, measured)
                if in_a_row >= settings.patience:
                    came = f"no finite loss or gradient in the last {in_a_row} steps (now step {progress.step})"
                    do = "lower the learning rate or look at the data; a new start goes on from the last checkpoint"
                    raise InputError(came, "finite numbers", do)
            if progress.step % settings.log_every == 0:
                tracker.line(clock.figures(progress, measured, lr), progress.step)
            if watch is not None and progress.step % getattr(watch, "every", settings.log_every) == 0:
                look(door, watch, progress, ema, learned)
            if clock.time_to_save(progress):
                checkpoints.save(run, progress)
                saved = progress.step
        if saved < progress.step:
            checkpoints.save(run, progress)

    if ema is not None:
        ema.copy_to(learned)
    state = {name: whole(value) for name, value in model.state_dict().items()}
    about = {"stage": asdict(stage), "steps": progress.step, "init": settings.init, "trained": list(run.learned())}
    with written_whole(output / "final", accelerator, "the final weights", checkpoints.all()[-1:]) as folder:
        if main:
            write_model(folder, model, state, stage.lora, about)
    summary = {**clock.summary(progress), "broken_clips": len(getattr(data, "skipped", ())), **progress.means}
    if main:
        described: dict[str, Any] = {"stage": asdict(stage), "settings": asdict(settings), "measured": summary}
        described |= {"processes": accelerator.num_processes, "skipped_clips": list(getattr(data, "skipped", ()))}
        (output / "summary.json").write_text(json.dumps(described, indent=1, default=str))
    accelerator.wait_for_everyone()
    return summary


def one_step(
    accelerator: Accelerator,
    door: nn.Module,
    learned: list[nn.Parameter],
    optimisers: list[Any],
    stage: Stage,
    loss_of: StageLoss,
    part: Part,
    step: int,
) -> dict[str, float]:
    """One change of the weights by one whole batch, of which this process has a part.

    Returns:
        Losses of the whole batch, the gradient's norm, and "taken": 0 where something was not finite, so that nothing
        was changed.
    """
    slices, finite = accelerator.gradient_accumulation_steps, False
    sums: dict[str, Any] = {}
    for k in range(slices):
        piece, offset, weight = part.slice(k, slices, accelerator.device)
        with accelerator.accumulate(door):
            total, terms = door(lambda net, piece=piece, offset=offset: loss_of(net, piece, step, offset, part.whole))
            # accelerate takes the mean over slices and processes; the weights make it the mean over samples.
            accelerator.backward(total * (weight * slices * accelerator.num_processes))
            for name, value in {"loss": total, **terms}.items():
                sums[name] = sums.get(name, 0.0) + weight * value.detach().float()
            if accelerator.sync_gradients:
                norm = clip_gradients(accelerator, learned, stage.optimiser.clip)
                finite = bool(torch.isfinite(norm))
                if finite or accelerator.scaler is not None:  # the loss scale of fp16 has to see what overflowed
                    for optimiser in optimisers:
                        optimiser.step()
                for optimiser in optimisers:
                    optimiser.zero_grad()
    losses = accelerator.reduce(torch.stack(list(sums.values())), "sum").tolist()
    finite = finite and all(map(math.isfinite, losses))
    return {**dict(zip(sums, losses, strict=True)), "grad_norm": float(norm), "taken": float(finite)}


def look(
    door: nn.Module, watch: Callable[..., Any], progress: Progress, ema: EMAModel | None, learned: list[nn.Parameter]
) -> None:
    """Call `watch` with the averaged weights in the model; weights and random states are as before afterwards."""
    if ema is not None:
        ema.store(learned)
        ema.copy_to(learned)
    with torch.random.fork_rng(), torch.no_grad():
        door(lambda net: watch(progress.step, dict(progress.means), net))
    if isinstance(door, FSDPModule):
        door.reshard()  # otherwise a backward pass does it
    if ema is not None:
        ema.restore(learned)
