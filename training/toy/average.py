"""Weighted average of weights fine-tuned from the same initialization ("model soup"), which often improves on each.

    python -m training.toy.average runs/a runs/b --output runs/mean --weights 0.5 0.5

Averaging fine-tuned weights: Wortsman et al., arXiv 2203.05482; with those they started from: arXiv 2109.01903.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.atomic import AtomicFiles
from training.command_line import OutputPath, run_command
from training.toy.assemble import WEIGHTS

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Arguments:
    """Average the weights of several folders.

    Args:
        folders: two or more, each with config.json and diffusion_pytorch_model.safetensors.
        output: output folder, with the config.json of the first one.
        weights: weight of each folder, adding up to 1; default: equal weights.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    output: OutputPath
    weights: tuple[float, ...] = ()


def weighted_average(states: list[StateDict], weights: tuple[float, ...]) -> StateDict:
    """Average tensors in float32, in the dtype of the first state dict.

    Raises:
        InputError: state dicts of different models, or invalid weights.
    """
    if len(states) < 2:
        raise InputError(f"{len(states)} folder(s) to average", "at least two", "add another one")
    weights = weights or (1 / len(states),) * len(states)
    if len(weights) != len(states) or not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
        problem = f"weights {' '.join(f'{weight:g}' for weight in weights)} for {len(states)} folders"
        raise InputError(problem, "one per folder, adding up to 1", "change them")
    shapes = [{name: tuple(tensor.shape) for name, tensor in state.items()} for state in states]
    for number, other in enumerate(shapes[1:], 2):
        if differences := sorted(shapes[0].items() ^ other.items()):
            problem = f"folder 1 and folder {number}, which differ in {differences[0][0]} {differences[0][1]}"
            raise InputError(problem, "weights of one architecture", "check the folders")
    average: StateDict = {}
    for name, first in states[0].items():
        terms = [weight * state[name].float() for weight, state in zip(weights, states, strict=True)]
        average[name] = torch.stack(terms).sum(dim=0).to(first.dtype)
    return average


def average(arguments: Arguments) -> None:
    """Average the weights of several folders.

    Raises:
        InputError: a folder without weights, or as in `weighted_average`.
    """
    for folder in arguments.folders:
        if not (folder / WEIGHTS).is_file() or not (folder / "config.json").is_file():
            raise InputError(f"no {WEIGHTS} with config.json in {folder}", "a folder of weights", "check the path")
    mean = weighted_average([load_file(folder / WEIGHTS) for folder in arguments.folders], arguments.weights)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with AtomicFiles() as files:
        shutil.copyfile(arguments.folders[0] / "config.json", files.at(arguments.output / "config.json"))
        save_file(mean, files.at(arguments.output / WEIGHTS), {"format": "pt"})


if __name__ == "__main__":
    run_command(average, Arguments)
