"""How a run is spread over devices: what accelerate does, told what it has to know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, GradientAccumulationPlugin
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from bya_core.errors import InputError
from training.data.dataset import Batch, Clips, as_float
from training.engine.settings import RunSettings
from training.engine.stages import Stage

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


class OneDoor(nn.Module):
    """The model behind one `forward`, which is all that the wrappers for several devices watch over.

    Args:
        model: the transformer.
        precision: "no", "bf16" or "fp16".
    """

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.model, self.working = model, PRECISIONS.get(precision)

    def forward(self, work: Callable[[nn.Module], Any]) -> Any:
        """Whatever `work` does with the model."""
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, self.working) if self.working is not None else nullcontext():
            return work(self.model)


@dataclass(frozen=True)
class Part:
    """The part of a batch that belongs to one process.

    Args:
        tensors: its samples; where the process got none, a stand-in.
        samples: how many of them count: all, or none of a stand-in.
        offset: number of the first one in the whole batch.
        whole: samples of the whole batch.
    """

    tensors: Batch
    samples: int
    offset: int
    whole: int

    def slice(self, number: int, slices: int, device: torch.device) -> tuple[Batch, int, float]:
        """(samples ready for the loss, number of the first in the whole batch, share of the whole batch).

        Every slice has a sample, as all processes take all steps together; one without a share counts nothing.
        """
        first, last = number * self.samples // slices, (number + 1) * self.samples // slices
        taken = slice(first, last) if last > first else slice(0, 1)
        piece = as_float({name: tensor[taken] for name, tensor in self.tensors.items()}, device)
        return piece, self.offset + taken.start, (last - first) / self.whole


def batch_parts(accelerator: Accelerator, data: Clips, size: int, seed: int, start: int) -> Iterator[Part]:
    """This process's part of every batch from number `start` on.

    Raises:
        InputError: a batch that cannot be read.
    """
    rank, processes = accelerator.process_index, accelerator.num_processes
    stand_in: Batch | None = None
    drawn = data.batches(size, seed, start=start, part=(rank, processes))
    for number in count(start):
        try:
            tensors = next(drawn)
        except InputError:
            raise
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
            came = f"batch {number} of the data, which cannot be read ({error})"
            raise InputError(came, "whole shards", "repair or remove the shard; the run goes on from there") from error
        samples = len(tensors["latents"]) if tensors else 0
        whole = samples
        if processes > 1:
            whole = int(accelerator.reduce(torch.tensor(samples, device=accelerator.device), "sum"))
        if samples:
            stand_in = tensors
        elif stand_in is None:
            stand_in = next(iter(data.batches(size, seed, start=start)))
        yield Part(tensors if samples else stand_in, samples, rank * whole // processes, whole)  # type: ignore[arg-type]


def spread(accelerator: Accelerator, model: nn.Module, optimisers: list[Any]) -> tuple[nn.Module, list[Any]]:
    """The model behind its door and its optimisers, as accelerate's configuration wants them spread."""
    precision = accelerator.mixed_precision
    if accelerator.is_fsdp2 and precision in PRECISIONS:
        # Blocks work in half precision; gradients are added up, and losses come out, in float32.
        policy = MixedPrecisionPolicy(param_dtype=PRECISIONS[precision], reduce_dtype=torch.float32)
        accelerator.state.fsdp_plugin.mixed_precision_policy = policy
    door, *ready = accelerator.prepare(OneDoor(model, precision), *optimisers)
    return door, ready


def clip_gradients(accelerator: Accelerator, learned: list[nn.Parameter], limit: float) -> Tensor:
    """Scale all gradients to a norm of at most `limit`; returns the norm before (0 where DeepSpeed keeps it)."""
    if not any(isinstance(p.grad, DTensor) for p in learned):
        norm = accelerator.clip_grad_norm_(learned, limit)
        return torch.zeros(()) if norm is None else torch.as_tensor(norm)
    # On the shards themselves: lists of distributed tensors are slow to dispatch.
    accelerator.unscale_gradients()
    shards = [p.grad.to_local() for p in learned if isinstance(p.grad, DTensor)]
    norm = accelerator.reduce(torch.nn.utils.get_total_norm(shards).square(), "sum").sqrt()
    torch._foreach_mul_(shards, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def build_accelerator(settings: RunSettings) -> Accelerator:
    """accelerate with this run's precision and accumulation; the rest is as it was launched."""
    plugin = GradientAccumulationPlugin(num_steps=settings.accumulation, sync_with_dataloader=False)
    # A step may leave weights out: single frames have no voices of later latent frames to join.
    replicas = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=settings.precision,
        gradient_accumulation_plugin=plugin,
        kwargs_handlers=[replicas],
    )


def check(stage: Stage, settings: RunSettings, accelerator: Accelerator) -> None:
    """Refuse what does not go together, before anything is written."""
    if settings.accumulation < 1 or settings.accumulation * accelerator.num_processes > stage.batch:
        came = f"{accelerator.num_processes} processes x {settings.accumulation} slices for a batch of {stage.batch}"
        raise InputError(came, "at least one sample each", "use fewer")
    kind = accelerator.distributed_type
    alone = {DistributedType.DEEPSPEED: "DeepSpeed", DistributedType.FSDP: "FSDP2"}.get(kind)
    if stage.optimiser.name == "muon" and (alone or accelerator.mixed_precision == "fp16"):
        raise InputError(f"Muon with {alone or 'fp16'}", "adamw there", "change optimiser.name in the recipe")
    if settings.eight_bit and alone:
        raise InputError(f"an 8-bit optimiser with {alone}", "one or the other", "leave one of them out")
    if kind is DistributedType.DEEPSPEED:
        if stage.optimiser.ema:
            raise InputError("averaged weights with DeepSpeed", "ema: 0", "change the recipe, or train with FSDP2")
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        per_slice = max(1, stage.batch // (accelerator.num_processes * settings.accumulation))
        config["train_micro_batch_size_per_gpu"] = per_slice
        config["gradient_accumulation_steps"] = settings.accumulation
        config["gradient_clipping"] = stage.optimiser.clip
