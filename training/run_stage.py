r"""Train one of the three stages.

    python training/run_stage.py --stage 1 --recipe toy --data runs/toy/data --output runs/toy/stage1
    python training/run_stage.py --stage 2 --recipe toy --data runs/toy/data --output runs/toy/stage2 \
        --init runs/toy/stage1/final
    accelerate launch --config_file training/recipes/accelerate/fsdp2.yaml training/run_stage.py --stage 3 \
        --recipe cogvideox5b --data SHARDS --init runs/stage2/final --output runs/stage3 --gradient-checkpointing

An interrupted run resumes from its last checkpoint when started again with the same output folder. To print the memory,
tokens and FLOPs that a stage needs, without loading weights or training:

    python training/run_stage.py --plan --stage 3 --recipe cogvideox5b --help
"""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

if __package__ in (None, ""):  # started as a script: make the packages beside it importable
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bya_core.encoders.domains import canvas_layout
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.sampling.acceleration import compiled
from bya_core.weights.registry import MODELS
from training.command_line import exit_after, run_command
from training.data.dataset import open_data
from training.engine.distributed import build_accelerator
from training.engine.loop import train
from training.engine.lora import add_adapters, load_model
from training.engine.recipe import Recipe, load_recipe
from training.engine.settings import RunSettings


@dataclass(frozen=True)
class Arguments:
    """Train one of the three stages.

    Args:
        stage: 1 identity, 2 speech, 3 router.
        data: folder of encoded clips or of shards, or puppets drawn on the fly ("puppets:n=1-4").
        run: options of the run.
        recipe: name in training/recipes, or a .yaml file.
        steps: number of training steps; replaces that of the recipe.
        batch_size: samples per step; replaces that of the recipe.
        encoders: model whose encoders are used for shards; default for puppets: the toy model.
        buckets: lengths and sizes to train at, such as 49x480x720; default: the size of each clip.
        length_fractions: fraction of the batches by number of video frames, as "1 0.4 17 0.6", for encoded clips;
            default: in proportion to the data.
        in_memory: load all encoded clips at the start, for large batches.
        compile: compile the transformer blocks.
        skip_broken: skip and count unusable clips instead of ending with an error.
        validate_every: steps between validations on held-out puppets (masks, binding, images); 0 = never.
        describe_motion: describe the motion in the prompts of validation scenes.
        validation_scenes: number of validation scenes.
        validation_files: scene files to generate instead, for models that are not trained on puppets.
        threads: CPU threads; 0 = all.
    """

    stage: Literal[1, 2, 3]
    data: str
    run: Annotated[RunSettings, tyro.conf.arg(name="")]
    recipe: str = "toy"
    steps: int | None = None
    batch_size: int | None = None
    encoders: str | None = None
    buckets: tuple[str, ...] = ()
    length_fractions: dict[int, float] = field(default_factory=dict)
    in_memory: bool = False
    compile: bool = False
    skip_broken: bool = False
    validate_every: int = 0
    describe_motion: bool = False
    validation_scenes: int = 6
    validation_files: tuple[Path, ...] = ()
    threads: int = 0


def main(arguments: Arguments) -> None:
    """Build or load the model and train it."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe, settings = load_recipe(arguments.recipe), arguments.run
    stage = recipe.stages[arguments.stage]
    if arguments.steps is not None:
        stage = replace(stage, steps=arguments.steps)
    if arguments.batch_size is not None:
        stage = replace(stage, batch_size=arguments.batch_size)
    accelerator = build_accelerator(settings)
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    model = build_model(recipe, arguments.stage, settings)
    clips = open_data(
        arguments.data,
        arguments.encoders,
        buckets=arguments.buckets,
        on_broken="skip" if arguments.skip_broken else "error",
        patch=model.config.patch_size,
        device=accelerator.device,
        canvas=canvas_layout(model.config.flavour),
        length_fractions=arguments.length_fractions,
        in_memory=arguments.in_memory,
        text_multiple=recipe.text_encoder.get("pad_to_multiple_of"),
    )
    callback: Any = None
    if arguments.validate_every:
        from training.benchmark.validation import Validation

        toy, scenes = MODELS["toy"], arguments.validation_files or arguments.validation_scenes
        bundle = arguments.encoders or toy.load(toy.path, settings=recipe.bundle_settings)
        callback = Validation(
            arguments.validate_every, scenes, bundle=bundle, describe_motion=arguments.describe_motion
        )
    with compiled(model) if arguments.compile else nullcontext():
        summary = train(model, clips, stage, settings, accelerator, callback, recipe)
    if accelerator.is_main_process:
        print("  ".join(f"{name} {value:.4g}" for name, value in summary.items()))


def build_model(recipe: Recipe, stage: int, settings: RunSettings) -> BindYourAvatarTransformer3DModel:
    """The model in `--init`, or a newly initialized one; identical in all processes."""
    lora = recipe.stages[stage].lora
    torch.manual_seed(settings.seed)
    if settings.init is not None:
        return load_model(Path(settings.init), lora)
    return add_adapters(BindYourAvatarTransformer3DModel(**recipe.model), {}, lora)


if __name__ == "__main__":
    if "--plan" in sys.argv:
        from training.engine.plan import main as print_plan

        exit_after(lambda: print_plan(sys.argv[1:]))
    else:
        run_command(main, Arguments)
