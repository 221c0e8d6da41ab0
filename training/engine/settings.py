"""Options of one training run. What is trained, and how it is scored, is in the recipe.

PyTorch is imported when a recipe is loaded, so that `--help` is fast.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from bya_core.validation import Field, validated
from training.command_line import OutputPath

if TYPE_CHECKING:
    from training.engine.recipe import Recipe

Assignments = tyro.conf.UseAppendAction[tuple[str, ...]]
log = logging.getLogger(__name__)


@validated
class RecipeOptions:
    """Print the recipe of one stage with all values, as YAML.

    Args:
        stage: 1 identity, 2 speech, 3 router.
        recipe: name in training/recipes, or a .yaml file.
        assignments: replace a value of the recipe, such as stage.3.optimizer.lr=1e-4, all_stages.batch_size=8 or
            model.router_dim=256; may be repeated.
        steps: number of training steps; replaces that of the recipe.
        batch_size: samples per step; replaces that of the recipe.
    """

    stage: Literal[1, 2, 3]
    recipe: str = "toy"
    assignments: Annotated[Assignments, tyro.conf.arg(name="set", metavar="KEY=VALUE")] = ()
    steps: Annotated[int | None, Field(ge=1)] = None
    batch_size: Annotated[int | None, Field(ge=1)] = None

    def load_recipe(self, check: bool = True) -> Recipe:
        """The recipe with the values of these options; `check` as in `training.engine.recipe.load_recipe`.

        Raises:
            InputError: an unknown recipe or key, or an invalid value.
        """
        log.info("loading PyTorch and recipe %s", self.recipe)
        from training.engine.recipe import load_recipe

        given = {"steps": self.steps, "batch_size": self.batch_size}
        options = [f"stage.{self.stage}.{name}={value}" for name, value in given.items() if value is not None]
        return load_recipe(self.recipe, (*self.assignments, *options), check)


@validated
class RunSettings:
    """Options of one run of one stage. An interrupted run resumes from the last checkpoint in `output`.

    Args:
        output: folder of the checkpoints, the log and the final weights; shared by all machines of the run.
        seed: random seed of data order, noise and dropout.
        max_minutes: stop after this time instead of after `stage.steps`. The learning rate then follows the clock, so
            only runs limited by steps are reproduced bit for bit after a restart.
        checkpointing_minutes: minutes between checkpoints; None = 5, or 40 seconds per GB of a checkpoint if that is
            longer, so that a large model does not spend its time on writing.
        checkpointing_steps: steps between checkpoints; replaces `checkpointing_minutes`.
        checkpoints_total_limit: number of checkpoints to keep.
        logging_steps: steps between log lines.
        mixed_precision: precision of the forward pass: "no" (float32), "bf16" or "fp16"; None uses the accelerate
            configuration. Trained weights are kept in float32 (with DeepSpeed: inside its optimizer). "bf16-weights"
            computes with bfloat16 copies of the weights, made once per step, without autocast.
        cast_frozen_weights: also store frozen matrices in that precision. Halves their memory; `final` stores them
            cast.
        gradient_accumulation_steps: micro-batches per process and step. Changes the memory, not the result: the global
            batch size is `stage.batch_size`.
        gradient_checkpointing: recompute block activations in the backward pass.
        batched_random: draw noise and dropout for whole micro-batches on the device, which is faster for large batches;
            they then depend on how the global batch is split.
        use_8bit_adam: keep the optimizer state in 8 bits (bitsandbytes).
        max_skipped_steps: end the run after this many consecutive steps with a non-finite loss or gradient.
        report_to: experiment trackers. `log.jsonl` is always written.
        tracker_project: project name for the experiment trackers.
        init: where the weights start: the `final` folder of a run, a folder of a model, or a model name such as toy;
            None = random weights. Recorded in checkpoints and in `final`.
        base: base model to start stage 1 from: a folder of CogVideoX-I2V or ConsisID in the layout of diffusers. The
            model is that of the recipe; what the base model lacks is newly initialized.
        allow_change: what may differ from the run that is resumed in `output`, such as data, lr or steps; everything
            else that changes the experiment is refused.
    """

    output: OutputPath
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    max_minutes: Annotated[float | None, Field(gt=0)] = None
    checkpointing_minutes: Annotated[float | None, Field(gt=0)] = None
    checkpointing_steps: Annotated[int | None, Field(ge=1)] = None
    checkpoints_total_limit: Annotated[int, Field(ge=1)] = 2
    logging_steps: Annotated[int, Field(ge=1)] = 25
    mixed_precision: Literal["no", "bf16", "fp16", "bf16-weights"] | None = None
    cast_frozen_weights: bool = False
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    gradient_checkpointing: bool = False
    batched_random: bool = False
    use_8bit_adam: bool = False
    max_skipped_steps: Annotated[int, Field(ge=1)] = 25
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    tracker_project: str = "bind-your-avatar"
    init: str | None = None
    base: str | None = None
    allow_change: tuple[str, ...] = ()
