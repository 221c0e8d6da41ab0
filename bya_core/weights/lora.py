"""Low-rank updates (LoRA): reading files of any trainer, and merging."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bya_core.config import LoraConfig
from bya_core.errors import InputError
from bya_core.io.files import existing_file, expand_user, read_json_object

log = logging.getLogger(__name__)

PREFIXES = ("base_model.model.", "transformer.", "module.", "diffusion_model.")
"""Prefixes added by wrappers: peft, diffusers pipelines, DeepSpeed or DDP, and ComfyUI."""
KOHYA_PREFIXES = ("lora_unet_", "lora_transformer_")
"""Prefixes of kohya's names, in which "_" replaces "."."""
ENTRY = re.compile(r"^(?P<module>.+?)[._]lora[._](?P<side>A|B|down|up)\b")
SIDES = {"A": "A", "down": "A", "B": "B", "up": "B"}
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
DIFFUSERS_METADATA = "lora_adapter_metadata"

Pairs: TypeAlias = dict[str, tuple[Tensor, Tensor]]
"""Weight name -> (A [r, in], B [out, r])."""
LoraSpec: TypeAlias = str | Path | tuple[str | Path, float]
"""A LoRA file: "file.safetensors", "file.safetensors:0.8", or (path, strength)."""


def strip_prefixes(name: str) -> str:
    """Weight name without the prefixes of wrappers, in whatever order they appear."""
    while True:
        stripped = name
        for prefix in PREFIXES:
            stripped = stripped.removeprefix(prefix)
        if stripped == name:
            return name
        name = stripped


def parse_lora(spec: LoraSpec) -> tuple[Path, float]:
    """File and strength of a LoRA; the strength defaults to 1.

    Raises:
        InputError: There is no such file, or the strength is out of range.
    """
    if isinstance(spec, tuple):
        path, strength = expand_user(spec[0], "the LoRA"), spec[1]
    else:
        path, strength = expand_user(spec, "the LoRA"), 1.0
        start, colon, end = str(spec).rpartition(":")
        if colon and not path.exists():
            file = expand_user(start, "the LoRA")
            try:
                path, strength = file, float(end)
            except ValueError as error:
                if file.exists():  # else the colon is part of the path
                    problem = f"strength {end!r} of the LoRA {file.name}"
                    raise InputError(problem, "a number, such as 0.8", "correct it") from error
    strength = LoraConfig(strength).strength
    if path.is_dir():
        path = path / (PEFT_WEIGHTS if (path / PEFT_CONFIG).is_file() else "pytorch_lora_weights.safetensors")
    return existing_file(path, "the LoRA"), strength


def read_lora(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Pairs:
    """The updates of a LoRA file for a model. Names of kohya, diffusers, peft and ComfyUI are understood.

    B includes alpha / rank where an alpha is stated: in entries "NAME.alpha", in diffusers' metadata, or in peft's
    adapter_config.json beside the file.

    Args:
        path: safetensors file.
        shapes: Name and shape of each weight of the model.

    Raises:
        InputError: Not a LoRA file, one that fits no weight of the model, or one with other shapes.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            content = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        problem = f"the LoRA {path} cannot be read ({error})"
        raise InputError(problem, "a safetensors file", "download or convert it again") from error
    names = {name.removesuffix(".weight").replace(".", "_"): name for name in shapes}
    pairs = lora_pairs(content, names, _adapter_config(path, metadata))
    fitting = {name: pair for name, pair in pairs.items() if name in shapes}
    if not fitting:
        first = next(iter(pairs), "no entries").removesuffix(".weight")
        problem = f"the LoRA {path.name} fits none of the weights of this model (it is for {first})"
        raise InputError(problem, "a LoRA made for this model or its base", "choose another LoRA or another model")
    for name, (a, b) in fitting.items():
        check_lora_shape(name, a, b, tuple(shapes[name]))
    if len(fitting) < len(pairs):
        unknown = next(name for name in pairs if name not in shapes).removesuffix(".weight")
        text = "the LoRA %s: %d of %d updates are for weights that this model does not have, such as %s"
        log.warning(text, path.name, len(pairs) - len(fitting), len(pairs), unknown)
    return fitting


def lora_pairs(
    lora: Mapping[str, Tensor], kohya_names: Mapping[str, str] | None = None, config: Mapping[str, Any] | None = None
) -> Pairs:
    """Group the entries of a LoRA file: weight name -> (A [r, in], B [out, r]), alpha / rank multiplied into B.

    Args:
        lora: Entries of the file.
        kohya_names: Module name with "_" for "." -> weight name.
        config: peft's configuration (`lora_alpha`, `alpha_pattern`, `use_rslora`), for files without entries of alpha.

    Raises:
        InputError: An entry is not a LoRA entry, or a pair is incomplete.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for key, value in lora.items():
        if key.endswith(".alpha"):
            alphas[_weight_name(key.removesuffix(".alpha"), kohya_names)] = float(value)
            continue
        found = ENTRY.match(key)
        if found is None:
            expected = "entries named ...lora_A... and ...lora_B..., or ...lora_down... and ...lora_up..."
            raise InputError(f"LoRA entry {key!r}", expected, "use a LoRA file")
        halves.setdefault(_weight_name(found["module"], kohya_names), {})[SIDES[found["side"]]] = value
    pairs: Pairs = {}
    for name, pair in halves.items():
        if len(pair) < 2:
            raise InputError(f"an incomplete LoRA pair for {name!r}", "lora_A and lora_B", "use the complete file")
        a, b = pair["A"], pair["B"]
        if a.ndim != 2 or b.ndim != 2:
            problem = f"a LoRA for {name!r} with {max(a.ndim, b.ndim)} axes"
            raise InputError(problem, "updates of linear layers", "use a LoRA without convolutions")
        scale = alphas[name] / len(a) if name in alphas else _config_scale(name, len(a), config or {})
        pairs[name] = (a, b if scale == 1.0 else b.float() * scale)
    return pairs


def add_pairs(first: Mapping[str, tuple[Tensor, Tensor]], second: Mapping[str, tuple[Tensor, Tensor]]) -> Pairs:
    """The sum of two sets of updates: pairs of one weight are concatenated along the rank."""
    total = dict(first)
    for name, (a, b) in second.items():
        if name in total:
            a0, b0 = total[name]
            a, b = torch.cat([a0.float(), a.float()]), torch.cat([b0.float(), b.float()], dim=1)
        total[name] = (a, b)
    return total


def read_loras(specs: Iterable[LoraSpec], shapes: Mapping[str, tuple[int, ...]]) -> tuple[Pairs, str]:
    """The sum of several LoRA files at their strengths, and a text such as "style:0.8" for the name of the model."""
    total: Pairs = {}
    names = []
    for spec in specs:
        path, strength = parse_lora(spec)
        pairs = {name: (a, b.float() * strength) for name, (a, b) in read_lora(path, shapes).items()}
        total = add_pairs(total, pairs)
        names.append(f"{path.stem}:{strength:g}")
        log.info("LoRA %s: %d updates at strength %g", path.name, len(pairs), strength)
    return total, " + ".join(names)


def check_lora_shape(name: str, a: Tensor, b: Tensor, shape: tuple[int, ...] | None) -> None:
    """Raise `InputError` if a LoRA pair does not match its weight of that shape (`None`: no such weight)."""
    update = (b.shape[0], a.shape[1])
    if shape != update or b.shape[1] != a.shape[0]:
        expected = f"the shape of the model {shape}" if shape else "a weight of the model"
        raise InputError(f"a LoRA for {name!r} of shape {update}", expected, "use a LoRA made for this model")


@torch.no_grad()
def merge_pairs_into(model: torch.nn.Module, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> int:
    """Add B A to the weights of a model, in float32 and in place.

    The released files contain no alpha: rank equals alpha, so the correct scale is 1. (The released inference code
    requests 1 / rank, but that call has no effect.)

    Args:
        model: Model to change.
        pairs: From `lora_pairs`.

    Returns:
        Number of weights that were changed.

    Raises:
        InputError: A weight does not exist or has another shape.
    """
    weights = model.state_dict()
    for name, (a, b) in pairs.items():
        check_lora_shape(name, a, b, tuple(weights[name].shape) if name in weights else None)
    for name, (a, b) in pairs.items():
        weight = weights[name]
        weight.copy_(weight.float() + (b.float() @ a.float()).to(weight.device))
    return len(pairs)


def _weight_name(module: str, kohya_names: Mapping[str, str] | None) -> str:
    for prefix in KOHYA_PREFIXES:
        if module.startswith(prefix):
            flat = module.removeprefix(prefix)
            return (kohya_names or {}).get(flat, f"{flat}.weight")
    return strip_prefixes(module).replace(".processor.", ".") + ".weight"


def _adapter_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """peft's configuration of a file, from its metadata (diffusers) or beside it (peft), else empty."""
    if DIFFUSERS_METADATA in metadata:
        try:
            found = json.loads(metadata[DIFFUSERS_METADATA])
            return {name.removeprefix("transformer."): value for name, value in found.items()}
        except (ValueError, AttributeError) as error:
            problem = f"the LoRA {path} with unreadable metadata ({error})"
            raise InputError(problem, "the JSON of diffusers", "save it again") from error
    beside = path.with_name(PEFT_CONFIG)
    return (
        read_json_object(beside, "the LoRA's configuration") if path.name == PEFT_WEIGHTS and beside.is_file() else {}
    )


def _config_scale(name: str, rank: int, config: Mapping[str, Any]) -> float:
    alpha = config.get("lora_alpha")
    module = name.removesuffix(".weight")
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if module == pattern or module.endswith("." + pattern):
            alpha = value
    if alpha is None:
        return 1.0
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
