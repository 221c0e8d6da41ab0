"""Distributed execution through accelerate: one process, DDP, FSDP2 or DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    broadcast,
    broadcast_object_list,
)
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.func import functional_call

from bya_core.errors import InputError
from training.data.batches import Batch, Clips, as_float
from training.engine.settings import RunSettings
from training.engine.stages import Stage
from training.engine.trackers import available_trackers

HALF_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
BF16_WEIGHTS = "bf16-weights"
"""Value of `RunSettings.mixed_precision` that is not one of accelerate's."""


class ForwardWrapper(nn.Module):
    """A single `forward` through which everything is computed, as the distributed wrappers require.

    Args:
        model: the transformer.
        precision: "no", "bf16", "fp16" or "bf16-weights" (see `RunSettings.mixed_precision`).
    """

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.model, self.autocast_dtype = model, HALF_PRECISION.get(precision)
        # in a tuple, so that its parameters are not registered twice
        self._functional = (ForwardWrapper(model, "no"),) if precision == BF16_WEIGHTS else ()

    def forward(self, function: Callable[[nn.Module], Any]) -> Any:
        """Call `function` with the model, under autocast or with weights in bfloat16."""
        if self._functional:
            weights = {f"model.{name}": p.to(torch.bfloat16) for name, p in self.model.named_parameters()}
            return functional_call(self._functional[0], weights, (function,))
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, self.autocast_dtype) if self.autocast_dtype is not None else nullcontext():
            return function(self.model)


@dataclass(frozen=True)
class LocalBatch:
    """The samples of a global batch that belong to one process.

    Args:
        tensors: the samples, or a placeholder if the process got none.
        samples: number of samples; 0 for a placeholder.
        offset: index of the first sample in the global batch.
        global_size: number of samples in the global batch.
    """

    tensors: Batch
    samples: int
    offset: int
    global_size: int

    def micro_batch(self, index: int, count: int, device: torch.device) -> tuple[Batch, int, float]:
        """Tensors ready for the loss, index of the first sample in the global batch, and fraction of the global batch.

        Every micro-batch has at least one sample, as all processes take part in every step; a placeholder has weight 0.
        """
        first, last = index * self.samples // count, (index + 1) * self.samples // count
        rows = slice(first, last) if last > first else slice(0, 1)
        tensors = as_float({name: tensor[rows] for name, tensor in self.tensors.items()}, device)
        return tensors, self.offset + rows.start, (last - first) / self.global_size


def local_batches(accelerator: Accelerator, data: Clips, size: int, seed: int, start: int) -> Iterator[LocalBatch]:
    """The local part of every batch from number `start` on.

    Raises:
        InputError: a batch cannot be read.
    """
    rank, world_size = accelerator.process_index, accelerator.num_processes
    placeholder: Batch | None = None
    batches = data.batches(size, seed, start, rank, world_size)
    for number in count(start):
        try:
            tensors = next(batches)
        except InputError:
            raise
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
            problem = f"batch {number} cannot be read ({error})"
            raise InputError(problem, "intact shards", "repair or remove the shard, then resume the run") from error
        samples = len(tensors["latents"]) if tensors else 0
        global_size = samples
        if world_size > 1:
            global_size = int(accelerator.reduce(torch.tensor(samples, device=accelerator.device), "sum"))
        if samples:
            placeholder = tensors
        elif placeholder is None:
            placeholder = next(iter(data.batches(size, seed, start)))
        assert placeholder is not None
        yield LocalBatch(placeholder, samples, rank * global_size // world_size, global_size)


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizers: list[Any], settings: RunSettings
) -> tuple[nn.Module, list[Any]]:
    """The wrapped model with the weights of the main process, and its optimizers, as accelerate is configured.

    With FSDP2 the main process keeps the model on the CPU and sends its weights tensor by tensor, so that neither the
    host nor a device holds a full copy per process.
    """
    bf16_weights = settings.mixed_precision == BF16_WEIGHTS
    precision = BF16_WEIGHTS if bf16_weights else accelerator.mixed_precision
    if not accelerator.is_fsdp2:
        wrapper, *prepared = accelerator.prepare(ForwardWrapper(model, precision), *optimizers)
        _broadcast_buffers(wrapper)  # DeepSpeed sends parameters only
        return wrapper, prepared
    if precision in HALF_PRECISION:
        # Blocks compute in half precision; gradients are reduced, and losses returned, in float32.
        # Inputs are cast by autocast where an operation needs it: rotary tables and timesteps stay in float32.
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=HALF_PRECISION[precision], reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    main = accelerator.is_main_process
    weights = {name: p.detach() for name, p in model.named_parameters()} if main else {}
    wrapper, *prepared = accelerator.prepare(ForwardWrapper(model, precision), *optimizers)
    for name, p in accelerator.unwrap_model(wrapper).model.named_parameters():
        local = p.detach().to_local()
        full = weights.pop(name).to(local.device) if main else torch.empty(p.shape, dtype=p.dtype, device=local.device)
        local.copy_(distribute_tensor(full, p.device_mesh, p.placements).to_local())
    _broadcast_buffers(wrapper)
    return wrapper, prepared


def _broadcast_buffers(module: nn.Module) -> None:
    """Overwrite the buffers of other processes with those of the main process."""
    for buffer in module.buffers():
        broadcast(buffer)


def share_dtypes(accelerator: Accelerator, model: nn.Module) -> None:
    """Give empty weights of other processes the dtypes of those of the main process."""
    dtypes = broadcast_object_list([[p.dtype for p in model.parameters()]])[0]
    for p, dtype in zip(model.parameters(), dtypes, strict=True):
        if p.dtype != dtype:
            p.data = torch.empty(p.shape, dtype=dtype)


def clip_gradients(accelerator: Accelerator, parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Clip the gradient norm; returns the norm before clipping (0 with DeepSpeed, which clips by itself)."""
    if not any(isinstance(p.grad, DTensor) for p in parameters):
        norm = accelerator.clip_grad_norm_(parameters, max_norm)
        return torch.zeros(()) if norm is None else torch.as_tensor(norm)
    # On the local shards: dispatching lists of distributed tensors is slow.
    accelerator.unscale_gradients()
    shards = [p.grad.to_local() for p in parameters if isinstance(p.grad, DTensor)]
    norm = accelerator.reduce(torch.nn.utils.get_total_norm(shards).square(), "sum").sqrt()
    torch._foreach_mul_(shards, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


def build_accelerator(settings: RunSettings) -> Accelerator:
    """An accelerator with the precision, accumulation and trackers of the run; the rest comes from the launcher."""
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no" if settings.mixed_precision == BF16_WEIGHTS else settings.mixed_precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=settings.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=available_trackers(settings.report_to) or None,
        project_config=ProjectConfiguration(
            project_dir=str(settings.output), logging_dir=str(settings.output / "tensorboard")
        ),
        # Clips of a single frame leave some weights of the speech projection unused.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def check_configuration(stage: Stage, settings: RunSettings, accelerator: Accelerator) -> None:
    """Reject incompatible settings before anything is written.

    Raises:
        InputError: settings that exclude each other.
    """
    micro_batches = settings.gradient_accumulation_steps
    if micro_batches < 1 or micro_batches * accelerator.num_processes > stage.batch_size:
        problem = (
            f"{accelerator.num_processes} processes x {micro_batches} micro-batches for a batch of {stage.batch_size}"
        )
        raise InputError(problem, "at least one sample each", "use fewer")
    kind = accelerator.distributed_type
    sharded = {DistributedType.DEEPSPEED: "DeepSpeed", DistributedType.FSDP: "FSDP2"}.get(kind)
    if stage.optimizer.name == "muon" and (sharded or accelerator.mixed_precision == "fp16"):
        raise InputError(f"Muon with {sharded or 'fp16'}", "AdamW", "change optimizer.name in the recipe")
    if settings.mixed_precision == BF16_WEIGHTS and sharded:
        raise InputError(f"--mixed-precision {BF16_WEIGHTS} with {sharded}", '"bf16"', "change one of them")
    if settings.use_8bit_adam and sharded:
        raise InputError(f"--use-8bit-adam with {sharded}", "one of them", "remove one")
    if kind is DistributedType.DEEPSPEED:
        if stage.optimizer.ema_decay:
            raise InputError("ema_decay with DeepSpeed", "ema_decay: 0", "change the recipe, or train with FSDP2")
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        micro_batch_size = max(1, stage.batch_size // (accelerator.num_processes * micro_batches))
        config["train_micro_batch_size_per_gpu"] = micro_batch_size
        config["gradient_accumulation_steps"] = micro_batches
        config["gradient_clipping"] = stage.optimizer.max_grad_norm
