"""Loading a model by name or path: registry entry, converted file, released folder, training run or bundle folder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bya_core.config import SamplingConfig
from bya_core.encoders.domains import CanvasLayout, Domain, canvas_layout
from bya_core.errors import InputError
from bya_core.io.files import read_json_object
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.scene.types import SceneDefaults
from bya_core.weights.bundle import ModelBundle, NativeSize
from bya_core.weights.cache import missing_files
from bya_core.weights.checkpoints import (
    RUN_LORA,
    adapter_source,
    checkpoint_source,
    is_checkpoint,
    read_adapter_record,
    read_model_record,
)
from bya_core.weights.comparison import shorten, weights_fingerprint
from bya_core.weights.components import OFFICIAL, RELEASE
from bya_core.weights.damaged import named_model
from bya_core.weights.lora import LoraSpec, add_pairs, merge_pairs_into, parse_lora, read_loras
from bya_core.weights.official import check_components, load_official, read_settings
from bya_core.weights.registry import MODELS, ModelEntry, find_model, find_path
from bya_core.weights.single_file import read_metadata
from bya_core.weights.state_dict_adapter import (
    TransformerSource,
    is_released_folder,
    map_transformer_name,
    released_source,
    transformer_source,
)
from bya_core.weights.weight_files import WeightFile, read_shapes

OFFICIAL_ENCODER_ARGUMENTS = {
    "text_embed_dim": 4096, "out_channels": 16, "lfe_id_dim": 1280, "lfe_vit_dim": 1024, "lfe_num_scale": 5,
    "audio_blocks": 12, "audio_channels": 768,
}  # fmt: skip
"""Arguments of the transformer that are determined by its encoders."""
COGVIDEOX_SIZE_UNIT, COGVIDEOX_TIME_FACTOR = 16, 4
"""Pixels per token and side (VAE 8, patch 2), and video frames per latent frame, of CogVideoX."""
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp8": torch.bfloat16}


@dataclass(frozen=True)
class ModelSource:
    """A model that was located but not loaded.

    Args:
        transformer: Files and arguments of the transformer.
        encoders: Name or folder of the model whose encoders it uses; `None` selects them by the transformer's sizes.
        settings: Native size, sampling and maximum characters; `None` uses those of that model.
        precision: Precision stated by a converted file; `None` keeps the stored dtypes.
        domain: What the model was trained on; `None` uses that of the encoders' model.
        canvas_layout: Layout of the conditioning canvas.
        training: Noise schedule and text encoder of the training, where they differ from those of the encoders' model.
    """

    transformer: TransformerSource
    encoders: str | None = None
    settings: Mapping[str, Any] | None = None
    precision: str | None = None
    domain: Domain | None = None
    canvas_layout: CanvasLayout = "released"
    training: Mapping[str, Any] = field(default_factory=dict)


@named_model
def load_bundle(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    components: Mapping[str, Any] | None = None,
    lora: Sequence[LoraSpec] = (),
) -> ModelBundle:
    """Load a model with its encoders.

    Args:
        name_or_path: Registry name, file written by `convert`, bundle folder, released folder, folder of a training
            run (`final` or a checkpoint), or name of one of `local_models`.
        dtype: Dtype of the weights; `None` uses the default of the model (toy model float32, official bfloat16).
        device: Target device; `None` selects the CPU.
        components: "text" or "codec", used instead of the model's own, whose files may then be missing.
        lora: LoRA files with strengths, merged into the weights.

    Raises:
        InputError: Unknown model, missing weights (with instructions to get them), or a LoRA that does not fit.
    """
    path = find_path(name_or_path)
    if path is None:
        bundle = _load_entry(find_model(str(name_or_path)), dtype, device, components or {})
    elif path.is_dir() and (path / "bundle.json").is_file() and not is_released_folder(path):
        bundle = replace(_load_bundle_folder(path), **(components or {}))
        bundle = _convert(bundle, dtype, device)
    else:
        bundle = _load_source(path, dtype, device, components or {})
    if lora:
        shapes = {name: tuple(value.shape) for name, value in bundle.transformer.state_dict().items()}
        pairs, names = read_loras(lora, shapes)
        merge_pairs_into(bundle.transformer, pairs)
        bundle = replace(bundle, name=f"{bundle.name} + {names}")
    return replace(bundle, weights=weights_fingerprint(bundle.transformer))


@named_model
def resolve(name_or_path: str | Path) -> ModelSource:
    """Locate a model without reading its weights.

    Raises:
        InputError: Nothing was found, or it is not a model.
    """
    path = find_path(name_or_path)
    if path is None:
        entry = find_model(str(name_or_path))
        path = entry.path
        check_components([component for component in entry.components if component is RELEASE], path)
    if path.is_file():
        return _single_file_source(path)
    if is_released_folder(path):
        return ModelSource(released_source(path), "official", read_settings(path), domain="photos")
    if (path / "bundle.json").is_file():
        is_entry = path.name in MODELS and MODELS[path.name].folder == path
        name = path.name if is_entry else str(path.absolute())
        bundle_source = _diffusers_source(path / "transformer")
        return replace(bundle_source, encoders=name, settings=_read_json(path / "bundle.json"))
    adapters = read_adapter_record(path)
    if is_checkpoint(path) or adapters is not None:
        record = adapters or read_model_record(path)
        source = adapter_source(path, record, init_source) if adapters else checkpoint_source(path, init_source)
        layout = canvas_layout((default_arguments() | source.arguments)["flavour"])
        return ModelSource(source, canvas_layout=layout, training=_training_settings(record))
    if (path / "config.json").is_file():
        run = _read_json(path / "run.json") if (path / "run.json").is_file() else {}
        return replace(_diffusers_source(path), training=_training_settings(run))
    expected = "a converted file, or a folder with bundle.json, config.json (training run) or the released layout"
    if (path / "checkpoints").is_dir():
        raise InputError(f"{path} is not a model", "a model", f"use {path / 'final'}, or one of {path / 'checkpoints'}")
    raise InputError(f"{path} is not a model", expected, "see the documentation on models")


def with_lora(source: ModelSource, lora: Sequence[LoraSpec]) -> ModelSource:
    """A model with the updates of LoRA files added. Raises `InputError` for one that does not fit."""
    if not lora:
        return source
    transformer = source.transformer
    shapes, _ = read_shapes(transformer.files)
    pairs, _ = read_loras(lora, shapes)
    paths = (*transformer.paths, *(parse_lora(spec)[0] for spec in lora))
    return replace(source, transformer=replace(transformer, lora=add_pairs(transformer.lora, pairs), paths=paths))


@named_model
def load_defaults(name_or_path: str | Path) -> SceneDefaults:
    """Values for fields that a scene file omits. Reads weights only if no settings file has them.

    Raises:
        InputError: Unknown model. (Missing weights are not an error.)
    """
    path = find_path(name_or_path)
    settings: Mapping[str, Any] | None = None
    if path is None:
        entry = find_model(str(name_or_path))
        if entry.components and entry.settings is not None:
            settings = read_settings(entry.path)
    elif path.is_file():
        metadata = read_metadata(path)
        settings = json.loads(metadata["settings"]) if metadata["encoders"] == "official" else None
    elif is_released_folder(path):
        settings = read_settings(path)
    if settings is None:
        return load_bundle(name_or_path).defaults
    native = NativeSize(**settings["native"])
    return SceneDefaults(
        height=native.height,
        width=native.width,
        max_frames=native.num_frames,
        size_unit=COGVIDEOX_SIZE_UNIT,
        time_factor=COGVIDEOX_TIME_FACTOR,
        sampling=SamplingConfig(**settings["sampling"]),
    )


def model_settings(path: Path, *parts: str) -> dict[str, Any]:
    """Read one of the JSON files of a bundle folder, or its equivalent for other kinds of models, without weights.

    Args:
        path: Folder or file accepted by `load_bundle`.
        parts: "bundle.json", or "transformer", "config.json", or "vae", "config.json".
    """
    file = path.joinpath(*parts)
    if path.is_dir() and not is_released_folder(path) and file.is_file():
        return _read_json(file)
    source = resolve(path)
    if parts[0] == "transformer":
        return default_arguments() | source.transformer.arguments
    if parts[0] == "bundle.json" and source.settings is not None:
        return dict(source.settings)
    if path.is_dir() and file.is_file():
        return _read_json(file)
    encoders = source.encoders or encoders_for(source.transformer.arguments)
    return _read_json(_encoder_folder(encoders).joinpath(*parts))


def encoders_for(arguments: Mapping[str, Any]) -> str:
    """Name of the model whose encoders match a transformer with these arguments.

    Raises:
        InputError: No registered model matches.
    """
    model = default_arguments() | dict(arguments)
    sizes = {name: model[name] for name in OFFICIAL_ENCODER_ARGUMENTS}
    if sizes == OFFICIAL_ENCODER_ARGUMENTS:
        return "official"
    toy = _read_json(MODELS["toy"].path / "transformer" / "config.json")
    if sizes.items() <= toy.items():
        return "toy"
    listed = ", ".join(f"{name} {value}" for name, value in sizes.items())
    problem = f"a transformer whose sizes match the encoders of no known model ({listed})"
    raise InputError(problem, "those of toy or official", "name its model: bya convert --encoders FOLDER")


def default_arguments() -> dict[str, Any]:
    """Default arguments of the transformer: the published configuration."""
    parameters = inspect.signature(BindYourAvatarTransformer3DModel.__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _load_entry(
    entry: ModelEntry, dtype: torch.dtype | None, device: torch.device | str | None, components: Mapping[str, Any]
) -> ModelBundle:
    """Load a model of the registry."""
    if entry.components:  # its loader reports missing files with source and license
        return entry.load(entry.path, dtype=dtype, device=device, components=components)
    if not entry.available:
        problem = f'the model "{entry.name}" is not complete in {entry.path}'
        raise InputError(problem, ", ".join(entry.missing or entry.required_files), entry.how_to_get)
    bundle = entry.load(entry.path)
    return _convert(replace(bundle, **components) if components else bundle, dtype, device)


def _load_bundle_folder(folder: Path) -> ModelBundle:
    """Load a folder with the layout of the toy model, under the folder's name."""
    entry = MODELS["toy"]
    missing = [name for name in entry.required_files if not (folder / name).exists()]
    if missing:
        problem = f"the model folder {folder} lacks {', '.join(missing)}"
        raise InputError(problem, ", ".join(entry.required_files), "copy all files of the model into it")
    return replace(entry.load(folder), name=folder.name)


def _load_source(
    path: Path, dtype: torch.dtype | None, device: torch.device | str | None, components: Mapping[str, Any]
) -> ModelBundle:
    """Load a transformer from `path` together with the encoders of a registered model."""
    source = resolve(path)
    encoders = source.encoders or encoders_for(source.transformer.arguments)
    official = encoders == "official"
    if official:
        needed = [c for c in OFFICIAL if c is not RELEASE and c.name not in components]
        complete = path.is_dir() and not any(missing_files(c, path) for c in needed if c.required)
        folder = path if complete else MODELS["official"].path
        check_components(needed, folder)  # before the transformer is read
    dtype = dtype if dtype is not None else PRECISIONS.get(source.precision or "")
    if official and dtype is None:
        dtype = torch.bfloat16
    transformer = source.transformer.build(dtype, "cpu" if device is None else device)
    if official:
        bundle = load_official(folder, dtype=dtype, device=device, transformer=transformer, components=components)
    else:
        bundle = MODELS["toy"].load(_encoder_folder(encoders), transformer=transformer, settings=source.training)
        bundle = _convert(replace(bundle, **components), None, device)
    if source.settings is not None:
        bundle = replace(
            bundle,
            native=NativeSize(**source.settings["native"]),
            sampling=SamplingConfig(**source.settings["sampling"]),
            max_characters=source.settings["max_characters"],
        )
    return replace(
        bundle,
        name=path.stem if path.is_file() else path.name,
        domain=source.domain or bundle.domain,
        canvas_layout=source.canvas_layout,
    )


def _convert(bundle: ModelBundle, dtype: torch.dtype | None, device: torch.device | str | None) -> ModelBundle:
    if dtype is not None:
        bundle.transformer.to(dtype)
    return bundle if device is None else bundle.to(device)


def _encoder_folder(encoders: str) -> Path:
    folder = MODELS[encoders].path if encoders in MODELS else Path(encoders)
    if not (folder / "bundle.json").is_file():
        problem = f"the encoders of this model are expected in {folder}, which has no bundle.json"
        raise InputError(problem, "a bundle folder", "convert it again with --encoders")
    return folder


def _single_file_source(path: Path) -> ModelSource:
    metadata = read_metadata(path)
    source = TransformerSource(json.loads(metadata["config"]), (WeightFile(path),), {}, (path,))
    return ModelSource(
        source,
        encoders=metadata["encoders"],
        settings=json.loads(metadata["settings"]),
        precision=metadata["precision"],
        domain=metadata["domain"],  # type: ignore[arg-type]
        canvas_layout=metadata["canvas_layout"],  # type: ignore[arg-type]
        training=_training_settings(json.loads(metadata["settings"])),
    )


def _diffusers_source(folder: Path) -> ModelSource:
    """Weights next to a config.json of our transformer, with the LoRA of a training run if there is one.

    The canvas layout is that of the training of its flavour.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"no config.json in {folder}", "the arguments of the transformer", "copy the complete folder")
    arguments = {name: value for name, value in _read_json(folder / "config.json").items() if not name.startswith("_")}
    if unknown := sorted(arguments.keys() - default_arguments().keys()):
        problem = f"{folder / 'config.json'} with arguments that this transformer does not have ({shorten(unknown)})"
        raise InputError(problem, "a transformer of this project", "choose the folder of its transformer")
    files = [path for path in sorted(folder.glob("*.safetensors")) if path.name != RUN_LORA]
    if not files:
        raise InputError(f"no weights in {folder}", "*.safetensors next to config.json", "copy the complete folder")
    shards = [WeightFile(path, rename=map_transformer_name) for path in files]
    layout = canvas_layout((default_arguments() | arguments)["flavour"])
    return ModelSource(transformer_source(arguments, shards, [], folder / RUN_LORA), canvas_layout=layout)


def init_source(folder: Path) -> TransformerSource:
    """Source of the model that a run started from."""
    inner = folder / "transformer"
    if (inner / "config.json").is_file() and not is_released_folder(folder):
        return _diffusers_source(inner).transformer
    return resolve(folder).transformer


def _training_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("scheduler", "text_encoder") if settings.get(name)}


def _read_json(path: Path) -> dict[str, Any]:
    return read_json_object(path, "the configuration")
