"""Starting stage 1 from a base model: CogVideoX-I2V, or ConsisID, which has the face modules as well."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from bya_core.errors import InputError
from bya_core.weights.comparison import compare_weights, shorten
from bya_core.weights.state_dict_adapter import LEARNED_POSITIONS, PATCH_PROJECTION, POSITION_TABLE
from bya_core.weights.weight_files import WeightFile, read_shapes

log = logging.getLogger(__name__)


@torch.no_grad()
def load_base(model: nn.Module, folder: Path) -> list[str]:
    """Copy the weights of a base model into a newly initialized one; those it lacks stay as they are.

    Names are the same in CogVideoX, ConsisID and our transformer. The patch projection, which has 16 channels for each
    of noise, first frame and canvas, may have fewer in the base model: the others become zero.

    Args:
        model: the model of the recipe.
        folder: folder of a diffusers pipeline, or of its transformer.

    Returns:
        Names of the weights that the base model lacks.

    Raises:
        InputError: no such folder, or a base model of another architecture; the differences are listed.
    """
    inner = folder / "transformer"
    files = sorted((inner if inner.is_dir() else folder).glob("*.safetensors"))
    if not files:
        problem = f"no weights in --base {folder}"
        raise InputError(problem, "*.safetensors in it or in its folder transformer", "check the path")
    sources = [WeightFile(path) for path in files]
    state = model.state_dict()
    expected = {name: tuple(value.shape) for name, value in state.items()}
    shapes, owners = read_shapes(sources, expected, PATCH_PROJECTION)
    if POSITION_TABLE in shapes and POSITION_TABLE not in expected:
        problem = f"--base {folder} with a learned position table"
        raise InputError(problem, "a model with one", f"add --set model.{LEARNED_POSITIONS}=true")
    comparison = compare_weights(expected, shapes)
    if comparison.unexpected or comparison.misshapen:
        differences = [*comparison.unexpected]
        differences += [f"{n} {stored} instead of {ours}" for n, (stored, ours) in comparison.misshapen.items()]
        problem = f"--base {folder} does not match the model of the recipe in {len(differences)} weights"
        raise InputError(f"{problem} ({shorten(differences)})", "the same architecture", "change model in the recipe")
    for source in sources:
        with source.open() as stored:
            for name, tensor in stored.items():
                if owners[name] is source:
                    _copy(tensor.load(), state[name])
    missing = Counter(name.partition(".")[0] for name in comparison.missing)
    new = ", ".join(f"{part} ({count})" for part, count in missing.items()) or "none"
    log.info("--base: %d weights loaded; newly initialized: %s", len(shapes), new)
    return list(comparison.missing)


def _copy(stored: torch.Tensor, weight: torch.Tensor) -> None:
    """Copy a weight; input channels that are not stored become zero."""
    if stored.shape != weight.shape:
        weight.zero_()
        weight = weight[:, : stored.shape[1]]
    weight.copy_(stored)
