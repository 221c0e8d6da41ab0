"""`bya convert`: write any model as a single file or in the released layout."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bya_core import __version__
from bya_core.errors import InputError
from bya_core.io.atomic import atomic_folder, atomic_write, check_disk_space
from bya_core.io.files import read_json_object
from bya_core.io.outputs import check_folder, check_output
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights.components import OFFICIAL_SETTINGS
from bya_core.weights.damaged import model_errors
from bya_core.weights.loader import PRECISIONS, ModelSource, default_arguments, encoders_for, resolve, with_lora
from bya_core.weights.lora import LoraSpec, read_loras
from bya_core.weights.registry import MODELS, find_model, find_path
from bya_core.weights.single_file import FORMAT, FP8, is_stored_in_fp8, write_single_file
from bya_core.weights.state_dict_adapter import (
    LORA_FILE,
    MODULES,
    PATCH_PROJECTION,
    RENAMED_ARGUMENTS,
    to_released,
)
from bya_core.weights.weight_files import Shapes, build_empty, iter_weights, read_shapes

RELEASED_ARGUMENTS = (
    "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "flip_sin_to_cos", "freq_shift",
    "time_embed_dim", "text_embed_dim", "num_layers", "dropout", "attention_bias", "sample_width", "sample_height",
    "sample_frames", "patch_size", "temporal_compression_ratio", "max_text_seq_length", "activation_fn",
    "timestep_activation_fn", "norm_elementwise_affine", "norm_eps", "spatial_interpolation_scale",
    "temporal_interpolation_scale", "use_rotary_positional_embeddings", "use_learned_positional_embeddings",
    "is_train_face", "cross_attn_interval", "local_face_scale", "is_train_audio", "audio_attn_interval",
)  # fmt: skip
"""Arguments of the released transformer."""
TRANSFORMER_FILE = "transformer/diffusion_pytorch_model.safetensors"


def convert(
    model: str | Path,
    out: Path,
    precision: str = "as-stored",
    *,
    encoders: str | None = None,
    lora: Sequence[LoraSpec] = (),
) -> list[str]:
    """Write a single-file checkpoint, see `single_file`.

    Args:
        model: Anything that `loader.resolve` accepts.
        out: Output file.
        precision: "as-stored", "bf16", "fp16", "fp32" or "fp8".
        encoders: Model or folder whose encoders it uses; `None` uses those stated by the model, or selects them by its
            sizes.
        lora: LoRA files with strengths, merged into the weights.

    Returns:
        Messages for the user.

    Raises:
        InputError: No such model, weights that do not match, or an output that cannot be written.
    """
    if encoders is not None and find_path(encoders) is None:
        find_model(encoders)
    model_source = with_lora(resolve(model), lora)
    source = model_source.transformer
    out = check_output(out, (".safetensors",), "the model")
    shell, shapes = _build_shell(source.arguments)
    stored = _stored_dtypes(model_source)
    dtypes = {name: _output_dtype(name, shapes[name], stored[name], precision) for name in shapes if name in stored}
    encoders = encoders or model_source.encoders or encoders_for(source.arguments)
    metadata = {
        "bya_format": FORMAT,
        "made_by": f"bind-your-avatar {__version__}",
        "config": json.dumps(_arguments(shell)),
        "flavour": str(shell.config.flavour),
        "precision": precision if precision != "as-stored" else _most_common(dtypes),
        "encoders": encoders,
        "domain": model_source.domain or ("photos" if encoders == "official" else "puppets"),
        "canvas_layout": model_source.canvas_layout,
        "settings": json.dumps({**(model_source.settings or _encoder_settings(encoders)), **model_source.training}),
        "sources": json.dumps([{"file": "/".join(p.parts[-2:]), "bytes": p.stat().st_size} for p in source.paths]),
        "lora": f"{len(source.lora)} updates merged",
    }
    size = sum(math.prod(shape) * dtypes[name].itemsize for name, shape in shapes.items() if name in dtypes)
    check_disk_space(out.absolute().parent, size, "the model", "choose another disk")
    # float8 weights are rounded once, from float32
    dtype = torch.float32 if precision == "fp8" else PRECISIONS.get(precision)
    weights = iter_weights(
        shapes, source.files, dtype=dtype, lora=source.lora, widen=PATCH_PROJECTION, never_read=source.never_read
    )
    with atomic_write(out) as temporary:
        written = write_single_file(temporary, weights, shapes, _fill_missing(shapes, dtypes), metadata)
    messages = [f"wrote {out} ({written / 1e9:.2f} GB, {metadata['precision']})"]
    if source.lora:
        messages.append(f"merged {len(source.lora)} LoRA updates")
    return messages


def convert_to_released(
    model: str | Path, out: Path, precision: str = "as-stored", *, lora: Sequence[LoraSpec] = ()
) -> list[str]:
    """Write the released layout. The LoRA of a model stays separate.

    The transformer is written weight by weight; audio, face and router modules (3 billion weights) are held in memory.

    Args:
        model: Anything that `loader.resolve` accepts.
        out: Output folder, new or empty.
        precision: "as-stored", "bf16", "fp16" or "fp32".
        lora: LoRA files with strengths, merged into the weights.

    Returns:
        Messages for the user.

    Raises:
        InputError: A model that the released code cannot load, or an output folder that is not empty.
    """
    model_source = resolve(model)
    source = model_source.transformer
    if precision == "fp8":
        raise InputError("released files in fp8", "as-stored, bf16, fp16 or fp32", "choose one of them")
    flavour = source.arguments.get("flavour", "official")
    if flavour != "official":
        expected = "the flavour official of the released code"
        raise InputError(f"{model} has the flavour {flavour}", expected, "use convert without --to released")
    check_folder(out, "the model")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} already exists", "a new or empty folder", "choose another name")
    shell, shapes = _build_shell(source.arguments)
    merged, _ = read_loras(lora, shapes)
    dtype = PRECISIONS.get(precision)
    with atomic_folder(out) as partial:
        (partial / TRANSFORMER_FILE).parent.mkdir()
        modules: dict[str, Tensor] = {}

        def base_weights() -> Iterator[tuple[str, Tensor]]:
            for name, weight in iter_weights(
                shapes, source.files, dtype=dtype, lora=merged, widen=PATCH_PROJECTION, never_read=source.never_read
            ):
                if name.startswith(MODULES):
                    modules[name] = weight
                else:
                    yield name, weight

        base = {name: shape for name, shape in shapes.items() if not name.startswith(MODULES)}
        stored = _stored_dtypes(model_source)
        dtypes = {name: _output_dtype(name, base[name], stored[name], precision) for name in base if name in stored}
        write_single_file(partial / TRANSFORMER_FILE, base_weights(), base, _fill_missing(base, dtypes), {})
        contents = {file: weights for file, weights in to_released(modules).items() if file != "transformer"}
        for file, weights in contents.items():
            (partial / file).parent.mkdir()
            torch.save(weights, partial / file)
        (partial / "transformer/config.json").write_text(json.dumps(_released_config(shell), indent=2) + "\n")
        if source.lora:
            path = partial / LORA_FILE
            path.parent.mkdir()
            save_file(_released_lora(source.lora, dtype), path)
    separate = f"{len(source.lora)} updates in {LORA_FILE}" if source.lora else "no separate LoRA"
    messages = [f"wrote {out} ({', '.join([TRANSFORMER_FILE, *contents])})", f"LoRA: {separate}"]
    if merged:
        messages.append(f"merged {len(merged)} LoRA updates")
    if unsupported := _unsupported_arguments(shell):
        messages.append(f"the released code does not support these arguments of the model: {', '.join(unsupported)}")
    return messages


def _build_shell(arguments: Mapping[str, Any]) -> tuple[Any, Shapes]:
    """The transformer without weights, and the shapes of its state dict."""
    with model_errors("a model with this configuration"):
        shell = build_empty(lambda: BindYourAvatarTransformer3DModel(**arguments))
    return shell, {name: tuple(value.shape) for name, value in shell.state_dict().items()}


def _stored_dtypes(source: ModelSource) -> dict[str, torch.dtype]:
    """Dtype of every weight after reading; float8 weights count as bfloat16."""
    dtypes: dict[str, torch.dtype] = {}
    _, owners = read_shapes(source.transformer.files)
    for file in source.transformer.files:
        with file.open() as stored:
            for name, tensor in stored.items():
                if owners[name] is file:
                    dtypes[name] = torch.bfloat16 if tensor.scale is not None else tensor.dtype
    return dtypes


def _output_dtype(name: str, shape: tuple[int, ...], stored: torch.dtype, precision: str) -> torch.dtype:
    if precision == "as-stored" or not stored.is_floating_point:
        return stored
    if precision == "fp8" and is_stored_in_fp8(name, shape):
        return FP8
    return PRECISIONS[precision]


def _fill_missing(shapes: Shapes, dtypes: Mapping[str, torch.dtype]) -> dict[str, torch.dtype]:
    """A dtype for missing weights too; `iter_weights` reports them."""
    return {name: dtypes.get(name, torch.float32) for name in shapes}


def _most_common(dtypes: Mapping[str, torch.dtype]) -> str:
    """Name of the most common dtype."""
    names = {dtype: name for name, dtype in PRECISIONS.items() if name != "fp8"}
    used = [names.get(dtype, "fp32") for dtype in dtypes.values()]
    return max(sorted(set(used)), key=used.count)


def _arguments(model: Any) -> dict[str, Any]:
    return {name: value for name, value in dict(model.config).items() if not name.startswith("_")}


def _encoder_settings(encoders: str) -> Any:
    """Native size and sampling of the model whose encoders are used."""
    if encoders == "official":
        return OFFICIAL_SETTINGS
    folder = MODELS[encoders].path if encoders in MODELS else Path(encoders)
    path = folder / "bundle.json"
    if not path.is_file():
        raise InputError(f"no bundle.json in {folder}", "a model with encoders", "name another one with --encoders")
    return read_json_object(path, "the configuration")


def _released_config(model: Any) -> dict[str, Any]:
    """config.json of the released code, plus those of our arguments that differ from its behavior."""
    released_names = {ours: theirs for theirs, ours in RENAMED_ARGUMENTS.items()}
    named = {released_names.get(name, name): value for name, value in _arguments(model).items()}
    config = {name: named[name] for name in RELEASED_ARGUMENTS if name in named}
    return config | {"is_kps": False} | {name: named[name] for name in _unsupported_arguments(model)}


def _unsupported_arguments(model: Any) -> list[str]:
    """Arguments that the released code does not have and that differ from its behavior."""
    defaults = default_arguments()
    known = {*RELEASED_ARGUMENTS, *RENAMED_ARGUMENTS.values()}
    return sorted(n for n, value in _arguments(model).items() if value != defaults[n] and n not in known)


def _released_lora(pairs: Mapping[str, tuple[Tensor, Tensor]], dtype: torch.dtype | None) -> dict[str, Tensor]:
    content = {}
    for name, (a, b) in pairs.items():
        module = name.removesuffix(".weight")
        for side, half in (("A", a), ("B", b)):
            content[f"transformer.{module}.lora_{side}.weight"] = half.to(dtype or half.dtype).contiguous()
    return content
