"""Options of one training run. What is trained, and how it is scored, is in the recipe."""

from __future__ import annotations

from typing import Literal

from bya_core.validation import validated
from training.command_line import OutputPath


@validated
class RunSettings:
    """Options of one run of one stage. An interrupted run resumes from the last checkpoint in `output`.

    Args:
        output: folder of the checkpoints, the log and the final weights; shared by all machines of the run.
        seed: random seed of data order, noise and dropout.
        max_minutes: stop after this time instead of after `stage.steps`. The learning rate then follows the clock, so
            only runs limited by steps are reproduced bit for bit after a restart.
        checkpointing_minutes: minutes between checkpoints.
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
        init: folder of the initial weights; recorded in checkpoints and in `final`.
    """

    output: OutputPath
    seed: int = 0
    max_minutes: float | None = None
    checkpointing_minutes: float = 5.0
    checkpointing_steps: int | None = None
    checkpoints_total_limit: int = 2
    logging_steps: int = 25
    mixed_precision: Literal["no", "bf16", "fp16", "bf16-weights"] | None = None
    cast_frozen_weights: bool = False
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    batched_random: bool = False
    use_8bit_adam: bool = False
    max_skipped_steps: int = 25
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    tracker_project: str = "bind-your-avatar"
    init: str | None = None
