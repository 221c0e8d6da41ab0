"""The weighted mean of weights that were trained from the same start: often better than either of them.

    python -m training.toy.average runs/a runs/b --output runs/mean --shares 0.5 0.5

Averaging fine-tuned weights: Wortsman et al., arXiv 2203.05482; with those they started from: arXiv 2109.01903.
"""

from __future__ import annotations

import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.atomic import AtomicFiles
from training.toy.assemble import WEIGHTS

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Arguments:
    """Average the weights of several folders.

    Args:
        folders: two or more, each with config.json and diffusion_pytorch_model.safetensors.
        output: folder for the mean; its config.json is the first one's. May be one of the folders.
        shares: part of each folder, adding up to 1; none = alike.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    output: Path
    shares: tuple[float, ...] = ()


def mean_of(weights: list[Weights], shares: tuple[float, ...]) -> Weights:
    """Tensor by tensor, in float32, kept in the first one's data type.

    Raises:
        InputError: weights of different models, or shares that do not fit.
    """
    if len(weights) < 2:
        raise InputError(f"{len(weights)} folder(s) to average", "at least two", "name another one")
    shares = shares or (1 / len(weights),) * len(weights)
    if len(shares) != len(weights) or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        came = f"shares {' '.join(f'{share:g}' for share in shares)} for {len(weights)} folders"
        raise InputError(came, "one for each, adding up to 1", "change them")
    shapes = [{name: tuple(tensor.shape) for name, tensor in given.items()} for given in weights]
    for number, other in enumerate(shapes[1:], 2):
        if odd := sorted(shapes[0].items() ^ other.items()):
            came = f"folder 1 and folder {number}, which differ in {odd[0][0]} {odd[0][1]}"
            raise InputError(came, "weights of one architecture", "check the folders")
    total: Weights = {}
    for name, first in weights[0].items():
        parts = (share * given[name].float() for share, given in zip(shares, weights, strict=True))
        total[name] = torch.stack(list(parts)).sum(dim=0).to(first.dtype)
    return total


def average(arguments: Arguments) -> None:
    """Read, average, write.

    Raises:
        InputError: a folder without weights, or as `mean_of`.
    """
    for folder in arguments.folders:
        if not (folder / WEIGHTS).is_file() or not (folder / "config.json").is_file():
            raise InputError(f"no {WEIGHTS} with config.json in {folder}", "a folder of weights", "check the path")
    mean = mean_of([load_file(folder / WEIGHTS) for folder in arguments.folders], arguments.shares)
    arguments.output.mkdir(parents=True, exist_ok=True)
    with AtomicFiles() as files:
        shutil.copyfile(arguments.folders[0] / "config.json", files.at(arguments.output / "config.json"))
        save_file(mean, files.at(arguments.output / WEIGHTS), {"format": "pt"})


if __name__ == "__main__":
    try:
        asked = tyro.cli(Arguments)
        average(asked)
        print(f"wrote the mean of {len(asked.folders)} to {asked.output}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
