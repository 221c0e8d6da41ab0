"""A model from where it lies: a converted file, released files, the folder of a training run, a bundle."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bya_core.config import SamplingConfig
from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.scene.types import SceneDefaults
from bya_core.toy.bundle import load_toy
from bya_core.weights.bundle import ModelBundle, NativeSize
from bya_core.weights.download_record import missing_files
from bya_core.weights.folder import load_folder
from bya_core.weights.known_files import OFFICIAL, RELEASE, Part
from bya_core.weights.loader import WeightFile
from bya_core.weights.official import complain_about_missing, load_official, read_settings
from bya_core.weights.registry import MODELS, find_model, find_path, load_bundle
from bya_core.weights.single_file import read_about
from bya_core.weights.state_dict_adapter import Recipe, is_released, ours, recipe, released_recipe

RUN_LORA = "pytorch_lora_weights.safetensors"
"""Where a training run leaves its LoRA, beside the weights and with scale 1."""
MEETS = (
    "text_embed_dim",
    "out_channels",
    "lfe_id_dim",
    "lfe_vit_dim",
    "lfe_num_scale",
    "audio_blocks",
    "audio_channels",
)
"""Arguments of the transformer that its encoders decide."""
OFFICIAL_MEETS = (4096, 16, 1280, 1024, 5, 12, 768)
COGVIDEOX_UNIT, COGVIDEOX_TIME = 16, 4
"""Pixels per token and side (codec 8, patch 2), and video frames per latent frame, of the CogVideoX family."""
WIDTHS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": torch.bfloat16}


@dataclass(frozen=True)
class Found:
    """A transformer that can be put together, and what belongs to it.

    Args:
        recipe: how.
        encoders: name or folder of the model whose encoders it needs; None = not known, found by its sizes.
        settings: native size, sampling, most characters; None = those of that model.
        precision: as a converted file says; None = as stored.
    """

    recipe: Recipe
    encoders: str | None = None
    settings: Mapping[str, Any] | None = None
    precision: str | None = None


def find(name_or_path: str | Path) -> Found:
    """What lies there; weights are not read.

    Raises:
        InputError: nothing, or nothing that is a model.
    """
    path = find_path(name_or_path)
    if path is None:
        entry = find_model(str(name_or_path))
        path = entry.here
        if entry.parts:
            complain_about_missing([part for part in entry.parts if part is RELEASE], path)
    if path.is_file():
        return _single(path)
    if is_released(path):
        return Found(released_recipe(path), "official", read_settings(path))
    if (path / "bundle.json").is_file():
        name = path.name if MODELS.get(path.name) and MODELS[path.name].folder == path else str(path.absolute())
        return Found(_diffusers(path / "transformer"), name, _json(path / "bundle.json"))
    if (path / "config.json").is_file():
        return Found(_diffusers(path))
    came = f"{path} is no model"
    expected = "a converted file, or a folder with bundle.json, config.json (training run) or the released layout"
    raise InputError(came, expected, "see docs/how-to/released-weights.md")


def load_path(
    path: Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    given: Mapping[str, Any] | None = None,
) -> ModelBundle:
    """The bundle of what lies at `path`, under its name; arguments as in `registry.load_bundle`."""
    if path.is_dir() and (path / "bundle.json").is_file() and not is_released(path):
        bundle = replace(load_folder(path), **(given or {}))
        if dtype is not None:
            bundle.transformer.to(dtype)
        return bundle if device is None else bundle.to(device)
    found = find(path)
    encoders = found.encoders or encoders_for(found.recipe.arguments)
    if encoders == "official":
        needed = [part for part in OFFICIAL if part is not RELEASE and part.name not in (given or {})]
        folder = path if path.is_dir() and _whole(needed, path) else MODELS["official"].here
        complain_about_missing(needed, folder)  # before the long work
    width = dtype if dtype is not None else WIDTHS.get(found.precision or "")
    if encoders == "official" and width is None:
        width = torch.bfloat16
    transformer = found.recipe.build(width, "cpu" if device is None else device)
    if encoders == "official":
        bundle = load_official(folder, dtype=width, device=device, transformer=transformer, given=given)
    else:
        bundle = replace(load_toy(_bundle_folder(encoders), transformer), **(given or {}))
        bundle = bundle if device is None else bundle.to(device)
    settings = found.settings
    if settings is not None:
        bundle = replace(
            bundle,
            native=NativeSize(**settings["native"]),
            sampling=SamplingConfig(**settings["sampling"]),
            max_characters=settings["max_characters"],
        )
    return replace(bundle, name=path.stem if path.is_file() else path.name)


def load_defaults(name_or_path: str | Path) -> SceneDefaults:
    """What a scene file may leave out for that model; weights are read only where no file tells it.

    Raises:
        InputError: no such model. (That weights are missing is no error here.)
    """
    path = find_path(name_or_path)
    settings: Mapping[str, Any] | None = None
    if path is None:
        entry = find_model(str(name_or_path))
        if entry.parts and entry.settings is not None:
            settings = read_settings(entry.here)
    elif path.is_file():
        about = read_about(path)
        settings = json.loads(about["settings"]) if about["encoders"] == "official" else None
    elif is_released(path):
        settings = read_settings(path)
    if settings is None:
        return load_bundle(name_or_path).defaults
    native = NativeSize(**settings["native"])
    return SceneDefaults(
        height=native.height,
        width=native.width,
        max_frames=native.num_frames,
        size_unit=COGVIDEOX_UNIT,
        time_factor=COGVIDEOX_TIME,
        sampling=SamplingConfig(**settings["sampling"]),
    )


def model_settings(path: Path, *parts: str) -> dict[str, Any]:
    """One of the JSON files of a bundle folder, or what stands in its place in any other model; nothing is loaded.

    Args:
        path: a folder or file that `load_bundle` takes.
        parts: "bundle.json", or "transformer" and "config.json", or "vae" and "config.json".
    """
    if path.is_dir() and not is_released(path) and path.joinpath(*parts).is_file():
        return _json(path.joinpath(*parts))
    found = find(path)
    if parts[0] == "transformer":
        return default_arguments() | found.recipe.arguments
    if parts[0] == "bundle.json" and found.settings is not None:
        return dict(found.settings)
    if path.is_dir() and path.joinpath(*parts).is_file():
        return _json(path.joinpath(*parts))
    encoders = found.encoders or encoders_for(found.recipe.arguments)
    return _json(_bundle_folder(encoders).joinpath(*parts))


def encoders_for(arguments: Mapping[str, Any]) -> str:
    """Name of the model whose encoders give what a transformer of these arguments takes.

    Raises:
        InputError: none of the registry.
    """
    model = default_arguments() | dict(arguments)
    wanted = tuple(model[name] for name in MEETS)
    if wanted == OFFICIAL_MEETS:
        return "official"
    toy = _json(MODELS["toy"].here / "transformer" / "config.json")
    if wanted == tuple(toy[name] for name in MEETS):
        return "toy"
    came = "a transformer whose sizes fit the encoders of no known model"
    pairs = ", ".join(f"{name} {value}" for name, value in zip(MEETS, wanted, strict=True))
    raise InputError(f"{came} ({pairs})", "those of toy or official", "name its model: convert --encoders FOLDER")


def default_arguments() -> dict[str, Any]:
    """What the transformer takes where nothing is said: the published sizes."""
    parameters = inspect.signature(BindYourAvatarTransformer3DModel.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _whole(parts: Sequence[Part], folder: Path) -> bool:
    return not any(missing_files(part, folder) for part in parts if part.needed)


def _bundle_folder(encoders: str) -> Path:
    folder = MODELS[encoders].here if encoders in MODELS else Path(encoders)
    if not (folder / "bundle.json").is_file():
        came = f"the encoders of this model are those of {folder}, where there is no bundle.json"
        raise InputError(came, "a bundle folder", "convert it again with --encoders")
    return folder


def _single(path: Path) -> Found:
    about = read_about(path)
    built = Recipe(json.loads(about["config"]), (WeightFile(path),), {}, (path,))
    return Found(built, about["encoders"], json.loads(about["settings"]), about["precision"])


def _diffusers(folder: Path) -> Recipe:
    """Weights beside a config.json of our transformer, with the LoRA of a training run where there is one."""
    if not (folder / "config.json").is_file():
        raise InputError(f"no config.json in {folder}", "the arguments of the transformer", "copy the whole folder")
    arguments = {name: value for name, value in _json(folder / "config.json").items() if not name.startswith("_")}
    shards = [WeightFile(p, rename=ours) for p in sorted(folder.glob("*.safetensors")) if p.name != RUN_LORA]
    if not shards:
        raise InputError(f"no weights in {folder}", "*.safetensors beside config.json", "copy the whole folder")
    return recipe(arguments, shards, [], folder / RUN_LORA)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
