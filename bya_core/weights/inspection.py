"""Inspection of a model's files without loading their weights."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bya_core.errors import InputError
from bya_core.io.files import read_json_object
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights.cache import missing_files
from bya_core.weights.comparison import WeightComparison, compare_weights
from bya_core.weights.components import OFFICIAL, RELEASE
from bya_core.weights.damaged import named_model
from bya_core.weights.loader import encoders_for, resolve
from bya_core.weights.lora import check_lora_shape
from bya_core.weights.registry import MODELS
from bya_core.weights.state_dict_adapter import NEVER_READ, PATCH_PROJECTION
from bya_core.weights.weight_files import WeightFile, read_shapes

BUNDLE_FILES = (
    "face.safetensors", "speech.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
)  # fmt: skip
BUNDLE_OPTIONAL = ("voice_face.safetensors",)


@dataclass(frozen=True)
class Inspection:
    """What loading a model would do.

    Args:
        path: Folder or file.
        parameters: Number of parameters of the transformer.
        files: Files of the transformer with their sizes in bytes.
        flavour: Flavour of the transformer.
        comparison: Weights of the files compared with those of the model.
        zeroed: Missing weights that no computation reads; they become zero.
        ignored: Unexpected entries of released files; they are ignored.
        lora: Number of LoRA updates that are merged.
        errors: What prevents loading, one sentence each.
        encoders: Model that provides the encoders.
        missing_components: Required components of that model -> files that are missing.
    """

    path: str
    parameters: int
    files: dict[str, int]
    flavour: str
    comparison: WeightComparison
    zeroed: tuple[str, ...]
    ignored: tuple[str, ...]
    lora: int
    errors: tuple[str, ...]
    encoders: str
    missing_components: dict[str, list[str]]

    @property
    def loads(self) -> bool:
        """Whether the model can be loaded."""
        return not self.errors and not self.missing_components

    def as_json(self) -> dict[str, Any]:
        """The inspection as JSON types."""
        return {"loads": self.loads, **asdict(self)}


@named_model
def inspect_model(name_or_path: str | Path) -> Inspection:
    """Compare the files of a model with the model that they describe, reading names and shapes only.

    Args:
        name_or_path: Anything that `loader.resolve` accepts.

    Raises:
        InputError: Not a model, or a file that cannot be read at all.
    """
    located = resolve(name_or_path)
    source = located.transformer
    with torch.device("meta"):
        weights = BindYourAvatarTransformer3DModel(**source.arguments).state_dict()
    expected = {name: tuple(weight.shape) for name, weight in weights.items()}
    given, _ = read_shapes(source.files, expected, PATCH_PROJECTION)
    comparison = compare_weights(expected, given)
    errors = [*_errors(comparison.tolerate(NEVER_READ) if source.released else comparison)]
    if (folder := Path(name_or_path) / "bundle.json").is_file():
        errors += _bundle_errors(folder.parent)
    for name, (a, b) in source.lora.items():
        try:
            check_lora_shape(name, a, b, expected.get(name))
        except InputError as error:
            errors.append(str(error))
    encoders = located.encoders
    if encoders is None:
        try:
            encoders = encoders_for(source.arguments)
        except InputError as error:
            errors.append(str(error))
    return Inspection(
        path=str(name_or_path),
        parameters=sum(math.prod(shape) for shape in expected.values()),
        files={str(path): path.stat().st_size for path in source.paths},
        flavour=str(source.arguments.get("flavour", "official")),
        comparison=comparison,
        zeroed=tuple(n for n in comparison.missing if n.startswith(NEVER_READ)) if source.released else (),
        ignored=comparison.unexpected if source.released else (),
        lora=len(source.lora),
        errors=tuple(errors),
        encoders=encoders or "unknown",
        missing_components=_missing_components(Path(name_or_path)) if encoders == "official" else {},
    )


def _errors(comparison: WeightComparison) -> list[str]:
    try:
        comparison.check()
    except InputError as error:
        return [str(error)]
    return []


def _bundle_errors(folder: Path) -> list[str]:
    """What is missing or damaged of the encoders of a folder with bundle.json."""
    errors = []
    for name in (*BUNDLE_FILES, *(name for name in BUNDLE_OPTIONAL if (folder / name).exists())):
        try:
            if name.endswith(".json"):
                read_json_object(folder / name, "the configuration")
                continue
            with WeightFile(folder / name).open():
                pass
        except InputError as error:
            errors.append(str(error))
    return errors


def _missing_components(path: Path) -> dict[str, list[str]]:
    """Missing files of the encoders, in the model's own folder or that of the model `official`."""
    required = [component for component in OFFICIAL if component.required and component is not RELEASE]
    folders = [folder for folder in (path, MODELS["official"].path) if folder.is_dir()] or [MODELS["official"].path]
    missing = [{c.name: files for c in required if (files := missing_files(c, folder))} for folder in folders]
    return min(missing, key=len)
