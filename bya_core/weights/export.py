"""`convert`: any model into one file, or into the released files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from bya_core import __version__
from bya_core.errors import InputError
from bya_core.io.atomic import atomic_folder, atomic_write, check_output
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights.from_path import WIDTHS, Found, default_arguments, encoders_for, find
from bya_core.weights.known_files import OFFICIAL_SETTINGS
from bya_core.weights.loader import Shapes, assembled, empty, shapes_of
from bya_core.weights.registry import MODELS
from bya_core.weights.single_file import EIGHT_BITS, FORMAT, in_8_bits, write_single
from bya_core.weights.state_dict_adapter import LORA_FILE, MODULES, PROJECTION, RENAMED, to_released

RELEASED_CONFIG = (
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "out_channels",
    "flip_sin_to_cos",
    "freq_shift",
    "time_embed_dim",
    "text_embed_dim",
    "num_layers",
    "dropout",
    "attention_bias",
    "sample_width",
    "sample_height",
    "sample_frames",
    "patch_size",
    "temporal_compression_ratio",
    "max_text_seq_length",
    "activation_fn",
    "timestep_activation_fn",
    "norm_elementwise_affine",
    "norm_eps",
    "spatial_interpolation_scale",
    "temporal_interpolation_scale",
    "use_rotary_positional_embeddings",
    "use_learned_positional_embeddings",
    "is_train_face",
    "cross_attn_interval",
    "local_face_scale",
    "is_train_audio",
    "audio_attn_interval",
)
"""Settings that the released transformer has."""
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def convert(model: str | Path, out: Path, precision: str = "as-stored", *, encoders: str | None = None) -> list[str]:
    """Write one file; see `single_file` for what it holds.

    Args:
        model: whatever `from_path.find` finds.
        out: to write.
        precision: "as-stored", "bf16", "fp16", "fp32" or "fp8".
        encoders: model or folder whose encoders belong to it; None = as the model says, or found by its sizes.

    Returns:
        What to tell a person.

    Raises:
        InputError: no model, weights that do not fit, or an output that cannot be written.
    """
    out = check_output(out, (".safetensors",), "the model")
    found = find(model)
    recipe = found.recipe
    if out.absolute() in [source.absolute() for source in recipe.sources]:
        raise InputError(f"{out} is what is to be converted", "another file to write", "choose another name")
    shell = empty(lambda: BindYourAvatarTransformer3DModel(**recipe.arguments))
    shapes: Shapes = {name: tuple(value.shape) for name, value in shell.state_dict().items()}
    stored = _stored_dtypes(found)
    dtypes = {name: _wanted(name, shapes[name], stored[name], precision) for name in shapes if name in stored}
    belongs = encoders or found.encoders or encoders_for(recipe.arguments)
    metadata = {
        "bya_format": FORMAT,
        "made_by": f"bind-your-avatar {__version__}",
        "config": json.dumps(_arguments(shell)),
        "flavour": str(shell.config.flavour),
        "precision": precision if precision != "as-stored" else _common(dtypes),
        "encoders": belongs,
        "settings": json.dumps(found.settings or _settings(belongs)),
        "sources": json.dumps([_source(path) for path in recipe.sources]),
        "lora": f"{len(recipe.lora)} updates merged",
    }
    size = sum(shape.numel() * dtypes[name].itemsize for name, shape in _sizes(shapes).items() if name in dtypes)
    _room(out.absolute().parent, size)
    width = WIDTHS.get(precision)
    work = torch.float32 if precision == "fp8" else width  # rounded once, to 8 bits
    weights = assembled(shapes, recipe.files, dtype=work, lora=recipe.lora, widen=PROJECTION)
    with atomic_write(out) as temporary:
        written = write_single(temporary, weights, shapes, _complete(shapes, dtypes), metadata)
    told = [f"wrote {out} ({written / 1e9:.2f} GB, {metadata['precision']})"]
    if recipe.lora:
        told.append(f"merged {len(recipe.lora)} LoRA updates")
    return told


def to_released_folder(model: str | Path, out: Path, precision: str = "as-stored") -> list[str]:
    """Write the released layout; a LoRA that lies apart stays apart.

    The transformer is written weight by weight; speech, face and router modules (3 billion weights) are held in memory.

    Raises:
        InputError: a model that the released code could not load, or `out` is there already.
    """
    found = find(model)
    recipe = found.recipe
    if precision == "fp8":
        raise InputError("released files in fp8", "as-stored, bf16, fp16 or fp32", "choose one of them")
    if recipe.arguments.get("flavour", "official") != "official":
        came = f"{model} is of the flavour {recipe.arguments['flavour']}"
        raise InputError(came, "the flavour official, which the released code has", "use convert without --to released")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already", "a new or empty folder", "choose another name")
    shell = empty(lambda: BindYourAvatarTransformer3DModel(**recipe.arguments))
    shapes: Shapes = {name: tuple(value.shape) for name, value in shell.state_dict().items()}
    width = WIDTHS.get(precision)
    with atomic_folder(out) as unfinished:
        (unfinished / WEIGHTS).parent.mkdir()
        modules: dict[str, Tensor] = {}

        def base() -> Iterator[tuple[str, Tensor]]:
            for name, weight in assembled(shapes, recipe.files, dtype=width, widen=PROJECTION):
                if name.startswith(MODULES):
                    modules[name] = weight
                else:
                    yield name, weight

        kept = {name: shape for name, shape in shapes.items() if not name.startswith(MODULES)}
        stored = _stored_dtypes(found)
        dtypes = {n: _wanted(n, shapes[n], stored[n], precision) for n in kept if n in stored}
        write_single(unfinished / WEIGHTS, base(), kept, _complete(kept, dtypes), {})
        content = {file: weights for file, weights in to_released(modules).items() if file != "transformer"}
        for file, weights in content.items():
            (unfinished / file).parent.mkdir()
            torch.save(weights, unfinished / file)
        (unfinished / "transformer/config.json").write_text(json.dumps(_released_config(shell), indent=2) + "\n")
        if recipe.lora:
            path = unfinished / LORA_FILE
            path.parent.mkdir()
            save_file(_released_lora(recipe.lora, width), path)
    lora = f"{len(recipe.lora)} updates in {LORA_FILE}" if recipe.lora else "none apart (merged, or never one)"
    told = [f"wrote {out} ({', '.join([WEIGHTS, *content])})", f"LoRA: {lora}"]
    if beyond := _beyond_released(shell):
        told.append(f"the released code will not understand these settings of the model: {', '.join(beyond)}")
    return told


def _stored_dtypes(found: Found) -> dict[str, torch.dtype]:
    """Number format of every weight as it would be read; weights in 8 bits count as the bfloat16 they were made for."""
    dtypes: dict[str, torch.dtype] = {}
    _, owners = shapes_of(found.recipe.files)
    for file in found.recipe.files:
        with file.open() as stored:
            for name, tensor in stored.items():
                if owners[name] is file:
                    dtypes[name] = torch.bfloat16 if tensor.scale is not None else tensor.dtype
    return dtypes


def _wanted(name: str, shape: tuple[int, ...], stored: torch.dtype, precision: str) -> torch.dtype:
    if precision == "as-stored" or not stored.is_floating_point:
        return stored
    if precision == "fp8" and in_8_bits(name, shape):
        return EIGHT_BITS
    return WIDTHS[precision]


def _complete(shapes: Shapes, dtypes: Mapping[str, torch.dtype]) -> dict[str, torch.dtype]:
    """With something for weights that are missing; that they are is told when they are to be read."""
    return {name: dtypes.get(name, torch.float32) for name in shapes}


def _common(dtypes: Mapping[str, torch.dtype]) -> str:
    """The number format that most weights have."""
    names = {dtype: name for name, dtype in WIDTHS.items() if name != "fp8"}
    used = [names.get(dtype, "fp32") for dtype in dtypes.values()]
    return max(sorted(set(used)), key=used.count)


def _sizes(shapes: Shapes) -> dict[str, torch.Size]:
    return {name: torch.Size(shape) for name, shape in shapes.items()}


def _arguments(model: Any) -> dict[str, Any]:
    return {name: value for name, value in dict(model.config).items() if not name.startswith("_")}


def _settings(encoders: str) -> Any:
    """Native size and sampling of the model whose encoders are used."""
    if encoders == "official":
        return OFFICIAL_SETTINGS
    folder = MODELS[encoders].here if encoders in MODELS else Path(encoders)
    path = folder / "bundle.json"
    if not path.is_file():
        raise InputError(f"no bundle.json in {folder}", "a model whose encoders can be used", "name another --encoders")
    return json.loads(path.read_text(encoding="utf-8"))


def _source(path: Path) -> dict[str, Any]:
    return {"file": "/".join(path.parts[-2:]), "bytes": path.stat().st_size}


def _released_config(model: Any) -> dict[str, Any]:
    """config.json as the released code reads it; with those of our own settings that are not as it has them."""
    back = {ours: theirs for theirs, ours in RENAMED.items()}
    named = {back.get(name, name): value for name, value in _arguments(model).items()}
    told = {name: named[name] for name in RELEASED_CONFIG if name in named}
    return told | {"is_kps": False} | {name: named[name] for name in _beyond_released(model)}


def _beyond_released(model: Any) -> list[str]:
    """Settings that the released code does not have, and that differ from what it does."""
    unlike = {name: value for name, value in _arguments(model).items() if value != default_arguments()[name]}
    known = {*RELEASED_CONFIG, *RENAMED.values()}
    return sorted(name for name in unlike if name not in known)


def _released_lora(pairs: Mapping[str, tuple[Tensor, Tensor]], width: torch.dtype | None) -> dict[str, Tensor]:
    content = {}
    for name, (a, b) in pairs.items():
        module = name.removesuffix(".weight")
        for side, half in (("A", a), ("B", b)):
            content[f"transformer.{module}.lora_{side}.weight"] = half.to(width or half.dtype).contiguous()
    return content


def _room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise InputError(f"{free / 1e9:.1f} GB free in {folder}", f"{size / 1e9:.1f} GB", "choose another disk")
