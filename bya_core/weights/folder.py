"""A model in a folder of its own, laid out as the shipped toy one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bya_core.errors import InputError
from bya_core.weights.registry import MODELS

if TYPE_CHECKING:
    from bya_core.weights.bundle import ModelBundle


def load_folder(folder: Path) -> ModelBundle:
    """Load it on the CPU, under the folder's name. Raises InputError where files are missing."""
    from bya_core.toy.bundle import load_toy

    needs = MODELS["toy"].needs
    missing = [name for name in needs if not (folder / name).exists()]
    if missing:
        came = f"the model folder {folder} lacks {', '.join(missing)}"
        raise InputError(came, "there " + ", ".join(needs), "copy all files of the model into it")
    return replace(load_toy(folder), name=folder.name)
