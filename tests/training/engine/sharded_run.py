"""A run with FSDP2 on CPUs: `torchrun --nproc_per_node 2 sharded_run.py RECIPE DATA OUTPUT STEPS [PRECISION [STAGE]]`.

accelerate offers FSDP2 on GPUs only, so the plugin of the committed configuration is set on a CPU accelerator here.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import yaml
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor

from training.data.clip_folder import ClipFolder
from training.engine.build import build_model
from training.engine.distributed import build_accelerator
from training.engine.loop import train
from training.engine.recipe import load_recipe
from training.engine.settings import RunSettings

CONFIG = Path(__file__).resolve().parents[3] / "training" / "recipes" / "accelerate" / "fsdp2.yaml"


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
    config = yaml.safe_load(CONFIG.read_text())["fsdp_config"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=config["fsdp_version"],
        auto_wrap_policy=config["fsdp_auto_wrap_policy"].lower(),
        transformer_cls_names_to_wrap=config["fsdp_transformer_layer_cls_to_wrap"].split(","),
        reshard_after_forward=config["fsdp_reshard_after_forward"],
        cpu_ram_efficient_loading=config["fsdp_cpu_ram_efficient_loading"],
        state_dict_type=config["fsdp_state_dict_type"],
    )
    for state in (accelerator.state._shared_state, PartialState._shared_state):
        state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    assert accelerator.is_fsdp2 and accelerator.distributed_type is DistributedType.FSDP
    stages = load_recipe(recipe)
    stage = replace(stages.stages[int(number)], steps=int(steps))
    model = build_model(stages, int(number), settings)
    train(model, ClipFolder(data), stage, settings, accelerator, ForwardCallback())
    assert all(isinstance(p, DTensor) for p in model.parameters())


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    main(*sys.argv[1:])
