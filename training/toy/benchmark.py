"""Throughput of training steps of the toy models on a CPU: stage 1 on stills, samples per second of CPU time.

    python -m training.toy.benchmark --json docs/results/reports/toy_training_speed.json

The CPU time of one thread is measured, so that other processes have little influence.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bya_core.io.atomic import write_json
from bya_core.models import compat
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.toy.bundle import load_toy_encoders
from training.command_line import OutputFile, run_command
from training.data.batches import as_float, trim_padding
from training.engine.distributed import ForwardWrapper
from training.engine.objective import StageLoss
from training.engine.optim import build_optimizers, select_trainable, unused_prefixes
from training.engine.recipe import load_recipe
from training.puppets.world import make_clip
from training.toy.clips import RESERVED_SEEDS, encode_clips


@dataclass(frozen=True)
class BenchmarkOptions:
    """Measure the throughput of training steps of the toy models.

    Args:
        json: JSON report.
        batch: stills per step.
        steps: measured steps, after one warm-up step.
        frames: video frames of a clip.
    """

    json: OutputFile = None
    batch: int = 64
    steps: int = 4
    frames: int = 1


@dataclass(frozen=True)
class Variant:
    """Settings of a training step.

    Args:
        recipe: recipe of model and stage.
        precision: as in `RunSettings.mixed_precision`.
        explicit_attention: compute short attention without torch's kernel.
        trim_text: trim the padding of the prompts.
        model: model arguments that replace those of the recipe.
    """

    recipe: str = "toy"
    precision: str = "bf16"
    explicit_attention: bool = True
    trim_text: bool = True
    model: tuple[tuple[str, Any], ...] = ()


VARIANTS = {
    "toy, as trained": Variant(explicit_attention=False, trim_text=False),
    "+ explicit attention": Variant(trim_text=False),
    "+ trimmed prompts": Variant(),
    "+ bfloat16 weights": Variant(precision="bf16-weights"),
    "+ exact GELU": Variant(precision="bf16-weights", model=(("activation_fn", "gelu"),)),
    "toy_wide": Variant("toy_wide", "bf16-weights"),
}


def samples_per_second(variant: Variant, batch: dict[str, Tensor], steps: int) -> float:
    """Samples per second of CPU time, for forward pass, backward pass and optimizers."""
    recipe = load_recipe(variant.recipe)
    stage = recipe.stages[1]
    torch.manual_seed(0)
    model = BindYourAvatarTransformer3DModel(**{**recipe.model, **dict(variant.model)})
    select_trainable(model, stage.trainable, unused_prefixes(stage))
    wrapper, optimizers = ForwardWrapper(model, variant.precision), build_optimizers(model, stage.optimizer)
    stage_loss = StageLoss(stage, 0, recipe.scheduler)
    if variant.trim_text:
        batch = {**batch, "text": trim_padding(batch["text"], 8)}
    limit, start = compat.MAX_EXPLICIT_LENGTH, 0.0
    compat.MAX_EXPLICIT_LENGTH = limit if variant.explicit_attention else 0
    try:
        for number in range(steps + 1):
            if number == 1:
                start = time.process_time()
            loss, _ = wrapper(lambda net, number=number: stage_loss(net, batch, number))
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    finally:
        compat.MAX_EXPLICIT_LENGTH = limit
    return steps * len(batch["latents"]) / (time.process_time() - start)


def main(options: BenchmarkOptions) -> None:
    """Measure all variants."""
    torch.set_num_threads(1)
    first = RESERVED_SEEDS.stop
    clips = [make_clip(first + k, 2, num_frames=options.frames) for k in range(options.batch)]
    batch = as_float(encode_clips(clips, load_toy_encoders(Path("bya_core/toy/weights"))))
    figures: dict[str, float] = {}
    for name, variant in VARIANTS.items():
        figures[name] = round(samples_per_second(variant, batch, options.steps), 1)
        print(f"{name:<24}{figures[name]:>8.1f} samples per second of one core", flush=True)
    if options.json is not None:
        settings = {"batch": options.batch, "frames": options.frames, "torch": torch.__version__, "cpu": _cpu_name()}
        report = {"settings": settings, "samples_per_core_second": figures}
        write_json(options.json, report, indent=1)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    amx = ", with AMX" if any("amx_bf16" in line for line in lines) else ""
    return (names[0] if names else platform.processor()) + amx


if __name__ == "__main__":
    run_command(main, BenchmarkOptions)
