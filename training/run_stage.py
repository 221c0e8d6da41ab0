r"""Train one of the three stages.

    python training/run_stage.py --stage 1 --recipe tiny --data runs/tiny/data --output runs/tiny/stage1
    python training/run_stage.py --stage 2 --recipe tiny --data runs/tiny/data --output runs/tiny/stage2 \
        --init runs/tiny/stage1/final

A run that was stopped goes on from its checkpoint when started again with the same output folder.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

if __package__ in (None, ""):  # started as a file: let the packages beside it be found
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from training.dataset import ClipFolder
from training.loop import RunSettings, train
from training.stages import load_recipe


@dataclass(frozen=True)
class Arguments:
    """Train one of the three stages.

    Args:
        stage: 1 identity, 2 speech, 3 router.
        data: folder of encoded clips (see training/dataset.py).
        output: folder for checkpoints, log and final weights.
        recipe: name in training/recipes, or a .yaml file.
        init: folder of the weights to start from (the `final` folder of the stage before); none = from scratch.
        minutes: train for this long instead of the recipe's steps.
        seed: of data order, noise and drops.
        threads: processor threads; 0 = all.
        precision: of the forward pass; "no" = float32.
    """

    stage: Literal[1, 2, 3]
    data: Path
    output: Path
    recipe: str = "tiny"
    init: Path | None = None
    minutes: float | None = None
    seed: int = 0
    threads: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"


def main(arguments: Arguments) -> None:
    """Build or load the model and train it."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    recipe = load_recipe(arguments.recipe)
    torch.manual_seed(arguments.seed)
    if arguments.init is None:
        model = BindYourAvatarTransformer3DModel(**recipe.model)
    elif (arguments.init / "config.json").is_file():
        model = BindYourAvatarTransformer3DModel.from_pretrained(arguments.init)
    else:
        raise InputError(
            f"--init {arguments.init}", "a folder with config.json", "give the final folder of a stage"
        )
    settings = RunSettings(
        arguments.output, seed=arguments.seed, minutes=arguments.minutes, precision=arguments.precision
    )
    summary = train(model, ClipFolder(arguments.data), recipe.stages[arguments.stage], settings)
    print("  ".join(f"{name} {value:.4g}" for name, value in summary.items()))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        main(tyro.cli(Arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
