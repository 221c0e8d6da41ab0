r"""Train one of the three stages.

    python training/run_stage.py --stage 1 --recipe toy --data runs/toy/data --output runs/toy/stage1
    python training/run_stage.py --stage 2 --recipe toy --data runs/toy/data --output runs/toy/stage2 \
        --init runs/toy/stage1/final
    accelerate launch --config_file training/recipes/accelerate/fsdp2.yaml training/run_stage.py --stage 3 \
        --recipe cogvideox5b --data SHARDS --init runs/stage2/final --output runs/stage3 --gradient-checkpointing

An interrupted run resumes from its last checkpoint when started again with the same output folder. Before training:

    python training/run_stage.py --plan --stage 3 --recipe cogvideox5b --help      # memory, tokens and FLOPs of a stage
    python training/run_stage.py --print-config --stage 3 --recipe toy --set stage.3.optimizer.lr=1e-4
    python training/run_stage.py --dry-run 2 --stage 3 --recipe toy --data puppets --output runs/try
"""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if __package__ in (None, ""):  # started as a script: make the packages beside it importable
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bya_core.cli.parsing import parse
from bya_core.validation import Field, validated
from training.command_line import exit_after, run_command
from training.engine.settings import RecipeOptions, RunSettings

HELD_OUT_EVERY = 500  # steps

if TYPE_CHECKING:
    from training.engine.recipe import Recipe


@validated
class Arguments:
    """Train one of the three stages.

    Args:
        recipe: stage and recipe.
        data: folder of encoded clips or of shards, or puppets drawn on the fly ("puppets:n=1-4").
        run: options of the run.
        adapt: with --init, build the model of the recipe although it differs from the one in --init, and take over the
            weights that fit. Without it such a difference is an error.
        encoders: model whose encoders are used for shards; default for puppets: the toy model.
        buckets: lengths and sizes to train at, such as 49x480x720; default: the size of each clip.
        length_fractions: fraction of the batches by number of video frames, as "1 0.4 17 0.6", for encoded clips;
            default: in proportion to the data.
        in_memory: load all encoded clips at the start, for large batches.
        compile: compile the transformer blocks.
        skip_broken: skip and count unusable clips instead of ending with an error.
        held_out: share of the data that is not trained on but validated (loss, router IoU), before the first step,
            every --validate-every steps (500 if that is not given) and after the last.
        validate_every: steps between validations on held-out puppets (masks, binding, images), and one before the
            first and after the last step; 0 = never. With --held-out, those of the held-out data, and
            --validation-scenes 0 leaves out the puppets.
        describe_motion: describe the motion in the prompts of validation scenes.
        validation_scenes: number of validation scenes.
        validation_files: scene files to generate instead, for models that are not trained on puppets; of real faces,
            lip sync is measured.
        threads: CPU threads; 0 = all.
        plan: print parameters, memory, tokens and FLOPs of the stage and exit; nothing is loaded or trained. Needs
            --stage only; --plan --help lists its options.
        print_config: print the resolved recipe of the stage as YAML and exit. Needs --stage only.
        dry_run: load model and data, run this many steps, print their losses, and write nothing.
    """

    recipe: Annotated[RecipeOptions, tyro.conf.arg(name="")]
    data: Annotated[str, Field(min_length=1)]
    run: Annotated[RunSettings, tyro.conf.arg(name="")]
    adapt: bool = False
    encoders: str | None = None
    buckets: tuple[str, ...] = ()
    length_fractions: dict[int, float] = field(default_factory=dict)
    in_memory: bool = False
    compile: bool = False
    skip_broken: bool = False
    held_out: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    validate_every: Annotated[int, Field(ge=0)] = 0
    describe_motion: bool = False
    validation_scenes: Annotated[int, Field(ge=0)] = 6
    validation_files: tuple[Path, ...] = ()
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    plan: bool = False
    print_config: bool = False
    dry_run: Annotated[int | None, Field(ge=0)] = None


def main(arguments: Arguments) -> None:
    """Build or load the model and train it."""
    recipe, number, settings = arguments.recipe.load_recipe(), arguments.recipe.stage, arguments.run
    import torch

    from bya_core.encoders.domains import canvas_layout
    from bya_core.sampling.acceleration import compiled
    from training.data.dataset import open_data
    from training.engine.build import build_model
    from training.engine.distributed import build_accelerator
    from training.engine.held_out import HeldOut, hold_out
    from training.engine.loop import train

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    stage = recipe.stages[number]
    if arguments.dry_run is not None:
        print(config_text(recipe, number))
        settings = replace(settings, report_to=(), logging_steps=1)
    accelerator = build_accelerator(settings)
    if not accelerator.is_main_process:
        logging.getLogger().setLevel(logging.WARNING)
    model = build_model(recipe, number, settings, arguments.adapt, empty=not accelerator.is_main_process)
    config: Any = model.config
    clips = open_data(
        arguments.data,
        arguments.encoders,
        buckets=arguments.buckets,
        on_broken="skip" if arguments.skip_broken else "error",
        patch=config.patch_size,
        device=accelerator.device,
        canvas=canvas_layout(config.flavour),
        length_fractions=arguments.length_fractions,
        in_memory=arguments.in_memory,
        text_multiple=recipe.text_encoder.get("pad_to_multiple_of"),
    )
    callbacks: list[Any] = []
    if arguments.held_out:
        clips, held = hold_out(clips, arguments.held_out)
        callbacks.append(HeldOut(held, stage, arguments.validate_every or HELD_OUT_EVERY, recipe.scheduler))
    if arguments.validate_every and (arguments.validation_scenes or arguments.validation_files):
        callbacks.append(_validation(arguments, recipe))
    if arguments.dry_run is not None:
        callbacks = []
    with compiled(model) if arguments.compile else nullcontext():
        summary = train(model, clips, stage, settings, accelerator, callbacks, recipe, arguments.dry_run)
    if accelerator.is_main_process:
        print("  ".join(f"{name} {value:.4g}" for name, value in summary.items()))


def _validation(arguments: Arguments, recipe: Recipe) -> Any:
    """The validation on puppets or scene files, as a callback."""
    from bya_core.weights.registry import MODELS
    from training.benchmark.validation import Validation

    toy, scenes = MODELS["toy"], arguments.validation_files or arguments.validation_scenes
    bundle = arguments.encoders or toy.load(toy.path, settings=recipe.bundle_settings)
    return Validation(arguments.validate_every, scenes, bundle=bundle, describe_motion=arguments.describe_motion)


def config_text(recipe: Recipe, stage: int) -> str:
    """The resolved values of one stage as YAML, itself a recipe except for `number`."""
    from training.engine.model_config import model_arguments
    from training.engine.yaml_files import dump_yaml

    content = {"model": model_arguments(recipe.model), "stages": {stage: _plain(asdict(recipe.stages[stage]))}}
    return f"# {recipe.name}, stage {stage}\n" + dump_yaml(content | recipe.bundle_settings)


def _plain(value: Any) -> Any:
    """Nested values with lists instead of tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def print_config(words: list[str]) -> None:
    """Print the recipe for the options of a training run; options that are not part of it are only checked."""
    ignored: list[str] = []
    options: RecipeOptions = parse(RecipeOptions, [word for word in words if word != "--print-config"], unknown=ignored)
    check_options(ignored)
    print(config_text(options.load_recipe(), options.stage), end="")
    if ignored:
        print(f"# not part of the recipe: {' '.join(ignored)}")


def check_options(words: list[str]) -> None:
    """Raise InputError for words that are no options of a training run, or have invalid values."""
    parse(Arguments, ["--stage", "1", "--data", "puppets", "--output", "runs/x", *words])


if __name__ == "__main__":
    if "--plan" in sys.argv:
        from training.engine.plan import main as print_plan

        exit_after(lambda: print_plan(sys.argv[1:], check_options))
    elif "--print-config" in sys.argv:
        exit_after(lambda: print_config(sys.argv[1:]))
    else:
        run_command(main, Arguments)
