"""The training loop of all stages.

Every process takes its part of the same global batch number k, so neither the number of processes nor gradient
accumulation changes what is learned at step k, and a restart continues with batch k. DDP, FSDP2 and DeepSpeed are
configured through accelerate: `accelerate launch --config_file training/recipes/accelerate/NAME.yaml`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.fsdp import FSDPModule

from bya_core.errors import InputError
from bya_core.io.atomic import write_json
from bya_core.io.outputs import check_replaceable
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights.comparison import weights_fingerprint
from training.data.batches import Clips
from training.engine.checkpointing import (
    Checkpoints,
    TrainerState,
    TrainingObjects,
    checkpoint_size,
    fingerprint,
    shared_atomic_folder,
)
from training.engine.distributed import (
    HALF_PRECISION,
    LocalBatch,
    build_accelerator,
    check_configuration,
    clip_gradients,
    local_batches,
    prepare,
    share_dtypes,
)
from training.engine.lora import add_lora, has_lora, write_model
from training.engine.objective import StageLoss
from training.engine.optim import build_optimizers, learning_rate, select_trainable, set_precision, unused_prefixes
from training.engine.recipe import Recipe
from training.engine.record import (
    check_record,
    describe_model,
    describe_run,
    describe_start,
    flatten,
    lock_run,
    write_record,
)
from training.engine.settings import RunSettings
from training.engine.stages import Stage
from training.engine.timer import RunTimer
from training.engine.trackers import MetricLog

log = logging.getLogger(__name__)


def train(
    model: BindYourAvatarTransformer3DModel,
    data: Clips,
    stage: Stage,
    settings: RunSettings,
    accelerator: Accelerator | None = None,
    callbacks: Sequence[Callable[[int, dict[str, float], nn.Module], Any]] = (),
    recipe: Recipe | None = None,
    dry_run: int | None = None,
) -> dict[str, float]:
    """Train one stage, resuming from the latest checkpoint in `settings.output` if there is one.

    Writes `final/` (see training/engine/lora.py; averaged weights if the stage has an EMA) and `summary.json`.

    Args:
        model: the transformer to train.
        data: source of batches.
        stage: configuration of the stage.
        settings: options of the run.
        accelerator: from `build_accelerator`; None = build one.
        callbacks: each is called as (step, averages, model) every `callback.every` steps (default `logging_steps`) in
            all processes, with the averaged weights in the model; also before the first and after the last step if its
            `at_ends` is true. If it has an attribute `tracker` that is None, it is set to the `MetricLog` of the run.
        recipe: recipe of the model, for its noise schedule; recorded in `final/run.json`.
        dry_run: stop after this many steps and write nothing.

    Returns:
        Final metrics: steps, minutes, samples per second, skipped steps and clips, smoothed losses.

    Raises:
        InputError: incompatible settings, a checkpoint of another run, a full disk, or no finite loss in
            `max_skipped_steps` steps. The latest checkpoint is kept in any case.
    """
    accelerator = accelerator or build_accelerator(settings)
    check_configuration(stage, settings, accelerator)
    with nullcontext() if dry_run is not None else lock_run(settings.output, accelerator):
        return _train(model, data, stage, settings, accelerator, callbacks, recipe, dry_run)


def _train(
    model: BindYourAvatarTransformer3DModel,
    data: Clips,
    stage: Stage,
    settings: RunSettings,
    accelerator: Accelerator,
    callbacks: Sequence[Callable[[int, dict[str, float], nn.Module], Any]],
    recipe: Recipe | None,
    dry_run: int | None,
) -> dict[str, float]:
    """`train` while the folder is locked."""
    output, main = settings.output, accelerator.is_main_process
    check_replaceable(output / "final")
    if stage.lora is not None and not has_lora(model):
        add_lora(model, stage.lora)
    select_trainable(model, stage.trainable, unused_prefixes(stage))
    set_precision(model, HALF_PRECISION.get(accelerator.mixed_precision) if settings.cast_frozen_weights else None)
    precision = settings.mixed_precision or accelerator.mixed_precision
    resolved = replace(settings, mixed_precision=precision)  # type: ignore[arg-type]
    share_dtypes(accelerator, model)
    run_record: dict[str, Any] = {}
    identity: dict[str, Any] = {}
    changed: dict[str, tuple[Any, Any]] = {}
    if main:  # the other processes may not have the weights yet
        run_record = describe_run(model, weights_fingerprint(model), stage, resolved, data, recipe)
        if dry_run is None:
            changed = check_record(output, run_record, settings.allow_change)
        identity = {"stage": stage.number, "seed": settings.seed, "frozen": fingerprint(model), "init": settings.init}
        identity |= {"base": settings.base, "model": describe_model(model, stage, settings, recipe)}
    identity = broadcast_object_list([identity])[0]
    if settings.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    model.train()
    if not accelerator.is_fsdp2:  # which places module by module
        model.to(accelerator.device)
    optimizers = build_optimizers(model, stage.optimizer, settings.use_8bit_adam)
    wrapper, optimizers = prepare(accelerator, model, optimizers, settings)
    model = accelerator.unwrap_model(wrapper).model
    parameters = [p for p in model.parameters() if p.requires_grad]
    decay = stage.optimizer.ema_decay
    ema = EMAModel(parameters, decay=decay, use_ema_warmup=False) if decay else None

    run = TrainingObjects(accelerator, model, optimizers, ema, identity)
    checkpoints = Checkpoints(output, settings.checkpoints_total_limit)
    set_seed(settings.seed, device_specific=True)
    state = checkpoints.resume(run, settings.allow_change) if dry_run is None else TrainerState()
    batches = local_batches(accelerator, data, stage.batch_size, settings.seed, state.step)
    loss = StageLoss(stage, settings.seed, recipe.scheduler if recipe is not None else None, settings.batched_random)
    timer = RunTimer(stage, settings, state, checkpoint_size(run))
    log.info(
        "stage %d from step %d: %d clips, %.2f M trainable parameters, %d processes (%s)",
        stage.number,
        state.step,
        data.clips,
        sum(p.numel() for p in parameters) / 1e6,
        accelerator.num_processes,
        accelerator.distributed_type.value,
    )
    consecutive_skips, last_saved = 0, state.step
    if timer.fraction_done >= 1.0:
        log.info("the run in %s is complete; its final weights are written again", output)
    text = ""
    if dry_run is None and main:
        text = write_record(output, run_record, describe_start(accelerator, state.step), changed)
    folder, project = output if dry_run is None else None, settings.tracker_project
    with closing(MetricLog(folder, accelerator, state.step, project, flatten(run_record), text)) as tracker:
        for callback in callbacks:
            if getattr(callback, "tracker", tracker) is None:
                callback.tracker = tracker  # type: ignore[attr-defined]
            if state.step == 0 and getattr(callback, "at_ends", False):
                run_callback(wrapper, callback, state, ema, parameters)
        while timer.fraction_done < 1.0 and (dry_run is None or state.step < dry_run):
            lr = learning_rate(stage.optimizer, state.step, timer.fraction_done)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = lr
            batch = next(batches)
            metrics = train_step(accelerator, wrapper, parameters, optimizers, stage, loss, batch, state.step)
            timer.update(accelerator, batch.global_size)
            if metrics.pop("updated"):
                consecutive_skips = 0
                if ema is not None:
                    ema.step(parameters)
                for name, value in metrics.items():
                    state.averages[name] = 0.98 * state.averages.get(name, value) + 0.02 * value
            else:
                state.skipped, consecutive_skips = state.skipped + 1, consecutive_skips + 1
                log.warning("step %d skipped (%d so far): %s", state.step, state.skipped, metrics)
                if consecutive_skips >= settings.max_skipped_steps:
                    problem = f"no finite loss or gradient in the last {consecutive_skips} steps (step {state.step})"
                    hint = "lower the learning rate or check the data; a restart resumes from the last checkpoint"
                    raise InputError(problem, "finite values", hint)
            if state.step % settings.logging_steps == 0:
                tracker.log(timer.log_values(metrics, lr), state.step)
            for callback in callbacks:
                last = timer.fraction_done >= 1.0 and getattr(callback, "at_ends", False)
                if last or state.step % getattr(callback, "every", settings.logging_steps) == 0:
                    run_callback(wrapper, callback, state, ema, parameters)
            if dry_run is None and timer.checkpoint_due():
                checkpoints.save(run, state)
                last_saved = state.step
        if dry_run is not None:
            return {**timer.summary(), **state.averages}
        if last_saved < state.step:
            checkpoints.save(run, state)

    if ema is not None:
        ema.copy_to(parameters)
    info = {"stage": asdict(stage), "steps": state.step, "init": settings.init, "trained": list(run.trainable())}
    info["model"] = identity["model"]
    adapters_alone = settings.init is not None and all(".lora_" in name for name in run.trainable())
    info |= recipe.bundle_settings if recipe is not None else {}
    with shared_atomic_folder(output / "final", accelerator, "the final weights", checkpoints) as folder:
        write_model(folder, model, model.state_dict(), stage.lora, info, adapters_alone, main)
    skipped_clips = list(getattr(data, "skipped", ()))
    summary = {**timer.summary(), "broken_clips": len(skipped_clips), **state.averages}
    if main:
        report: dict[str, Any] = {"stage": asdict(stage), "settings": asdict(settings), "measured": summary}
        report |= {"processes": accelerator.num_processes, "skipped_clips": skipped_clips}
        write_json(output / "summary.json", report, indent=1)
    accelerator.wait_for_everyone()
    return summary


def train_step(
    accelerator: Accelerator,
    wrapper: nn.Module,
    parameters: list[nn.Parameter],
    optimizers: list[Any],
    stage: Stage,
    loss: StageLoss,
    batch: LocalBatch,
    step: int,
) -> dict[str, float]:
    """One update of the weights from one global batch, of which this process has a part.

    Returns:
        Losses of the global batch, the gradient norm, and "updated": 0 if a value was not finite, in which case the
        weights are unchanged.
    """
    count, finite = accelerator.gradient_accumulation_steps, False
    sums: dict[str, Any] = {}
    for k in range(count):
        tensors, offset, weight = batch.micro_batch(k, count, accelerator.device)
        with accelerator.accumulate(wrapper):
            total, terms = wrapper(
                lambda net, tensors=tensors, offset=offset: loss(net, tensors, step, offset, batch.global_size)
            )
            # accelerate averages over micro-batches and processes; the weights turn that into a mean over samples.
            accelerator.backward(total * (weight * count * accelerator.num_processes))
            for name, value in {"loss": total, **terms}.items():
                sums[name] = sums.get(name, 0.0) + weight * value.detach().float()
            if accelerator.sync_gradients:
                norm = clip_gradients(accelerator, parameters, stage.optimizer.max_grad_norm)
                finite = bool(torch.isfinite(norm))
                if finite or accelerator.scaler is not None:  # the gradient scaler of fp16 has to see overflows
                    for optimizer in optimizers:
                        optimizer.step()
                for optimizer in optimizers:
                    optimizer.zero_grad()
    losses = accelerator.reduce(torch.stack(list(sums.values())), "sum").tolist()
    finite = finite and all(map(math.isfinite, losses))
    return {**dict(zip(sums, losses, strict=True)), "grad_norm": float(norm), "updated": float(finite)}


def run_callback(
    wrapper: nn.Module,
    callback: Callable[..., Any],
    state: TrainerState,
    ema: EMAModel | None,
    parameters: list[nn.Parameter],
) -> None:
    """Call `callback` with the averaged weights in the model; weights and random states are restored afterwards."""
    if ema is not None:
        ema.store(parameters)
        ema.copy_to(parameters)
    with torch.random.fork_rng(), torch.no_grad():
        wrapper(lambda net: callback(state.step, dict(state.averages), net))
    if isinstance(wrapper, FSDPModule):
        wrapper.reshard()  # otherwise done by a backward pass
    if ema is not None:
        ema.restore(parameters)
