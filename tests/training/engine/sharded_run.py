"""A run with FSDP2 on CPUs: `torchrun --nproc_per_node 2 sharded_run.py RECIPE DATA OUTPUT STEPS [PRECISION [STAGE]]`.

accelerate offers FSDP2 on GPUs only; `use_fsdp2` sets the plugin of the committed configuration on a CPU accelerator.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch.distributed.tensor import DTensor

from benchmarks.checkpoint_memory import use_fsdp2
from training.data.clip_folder import ClipFolder
from training.engine.build import build_model
from training.engine.distributed import build_accelerator
from training.engine.loop import train
from training.engine.recipe import load_recipe
from training.engine.settings import RunSettings


class ForwardCallback:
    """A forward pass of the whole model by all processes, as validation does."""

    every, tracker = 4, None

    def __call__(self, step, means, model):
        faces = model.encode_faces(torch.zeros(1, 2, 8), torch.zeros(1, 2, 5, 3, 8))
        output = model(torch.zeros(1, 2, 12, 4, 6), torch.zeros(1, 4, 8), torch.tensor([500]), face_tokens=faces)
        self.tracker.log({"power": float(output.sample.square().mean())}, step, "validation")


def main(
    recipe: str, data: str, output: str, steps: str, precision: Literal["no", "bf16"] = "no", number: str = "3"
) -> None:
    torch.set_num_threads(1)
    init = str(Path(recipe).parent / "init")
    settings = RunSettings(
        Path(output), logging_steps=1, checkpointing_steps=4, report_to=(), init=init, mixed_precision=precision
    )
    accelerator = build_accelerator(settings)
    use_fsdp2(accelerator)
    stages = load_recipe(recipe)
    stage = replace(stages.stages[int(number)], steps=int(steps))
    model = build_model(stages, int(number), settings, empty=not accelerator.is_main_process)
    train(model, ClipFolder(data), stage, settings, accelerator, [ForwardCallback()])
    assert all(isinstance(p, DTensor) for p in model.parameters())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main(*sys.argv[1:])
