"""LoRA (peft) on the transformer; loading and saving models with separate adapters.

The `final/` folder of a run contains

    config.json                               arguments of the transformer, in diffusers format
    diffusion_pytorch_model*.safetensors      all weights without the adapters (with an index if sharded)
    pytorch_lora_weights.safetensors          the adapters in the released format, if the stage has any
    run.json                                  stage, steps, trained parameters, and rank, alpha, targets of the adapters

A run that trained adapters alone writes no other weights: run.json then names the model that it started from.

Adapters are not merged, because the next stage continues to train them and because merging into bfloat16 weights would
round them. To load such a folder, add B A to each weight with scale 1: alpha / rank is already part of B.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from huggingface_hub import split_torch_state_dict_into_shards
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights.checkpoints import RUN_FILE, RUN_LORA, adapter_source, locate_init, read_adapter_record
from bya_core.weights.loader import init_source
from bya_core.weights.lora import lora_pairs, merge_pairs_into
from bya_core.weights.state_dict_adapter import AUDIO_FILE, load_released
from training.engine.stages import Lora
from training.engine.tensor_files import full_tensor, shared_failure, write_tensors

LORA_FILE = RUN_LORA
log = logging.getLogger(__name__)
PREFIX = "transformer."
"""Prefix of all names in a released LoRA file."""


def add_lora(model: BindYourAvatarTransformer3DModel, lora: Lora) -> int:
    """Add newly initialized adapters (which are the identity) to the target modules; returns their number.

    Raises:
        InputError: the model lacks a target, or already has adapters.
    """
    for target in lora.targets:
        if not any(name == target or name.endswith("." + target) for name, _ in model.named_modules()):
            raise InputError(f"LoRA target {target!r}", "the suffix of a module name of this model", "check the recipe")
    if has_lora(model):
        raise InputError("the model already has adapters", "a model without", "load it again")
    model.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets)))
    return sum(name.endswith("lora_A.default.weight") for name, _ in model.named_parameters())


def has_lora(model: torch.nn.Module) -> bool:
    """Whether the model has adapters."""
    return any(".lora_A." in name for name, _ in model.named_parameters())


def base_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of a model with adapters -> base weights with their original names."""
    return {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}


def lora_weights(model: BindYourAvatarTransformer3DModel, state: Mapping[str, Tensor], lora: Lora) -> dict[str, Tensor]:
    """State dict of a model with adapters -> content of a released LoRA file (alpha / rank is multiplied into B)."""
    adapters = get_peft_model_state_dict(model, state_dict=dict(state))
    scale = lora.alpha / lora.rank
    return {
        PREFIX + name: (value * scale if ".lora_B." in name else value).contiguous() for name, value in adapters.items()
    }


def load_lora(model: BindYourAvatarTransformer3DModel, content: Mapping[str, Tensor], lora: Lora) -> None:
    """Load the content of a LoRA file into the adapters of a model; the inverse of `lora_weights`.

    Raises:
        InputError: the file has other modules or another rank.
    """
    pairs = lora_pairs(content)
    expected = {
        name.replace(".lora_A.default.weight", ".weight"): len(parameter)
        for name, parameter in model.named_parameters()
        if name.endswith(".lora_A.default.weight")
    }
    if {name: len(a) for name, (a, _) in pairs.items()} != expected:
        problem = "a LoRA file with other modules or another rank"
        raise InputError(problem, f"{len(expected)} modules of rank {lora.rank}", "check the recipe")
    scale = lora.alpha / lora.rank
    state: dict[str, Tensor] = {}
    for name, (a, b) in pairs.items():
        module = name.removesuffix(".weight")
        state |= {f"{module}.lora_A.weight": a.float(), f"{module}.lora_B.weight": b.float() / scale}
    set_peft_model_state_dict(model, state)


def load_model(folder: Path, lora: Lora | None = None) -> BindYourAvatarTransformer3DModel:
    """Load a `final` folder (or a released checkpoint) for a stage.

    Adapters in the folder are continued if the stage has adapters of the same rank on the same modules; otherwise they
    are merged into the weights, and the stage starts with new ones.

    Args:
        folder: folder with config.json, or with the released files.
        lora: adapters of the next stage, or None.

    Raises:
        InputError: the folder has no model.
    """
    return add_adapters(*_load_parts(folder), lora)


def _load_parts(folder: Path) -> tuple[BindYourAvatarTransformer3DModel, dict[str, Tensor]]:
    """A model and the adapters that are not merged into it."""
    if (record := read_adapter_record(folder)) is not None:
        locate_init(folder, record, init_source)  # has to be unchanged
        model, before = _load_parts(Path(record["init"]["path"]))
        if before and not record["continues_lora"]:
            merge_pairs_into(model, lora_pairs(before))
        return model, load_file(folder / LORA_FILE)
    found: dict[str, Tensor] = {}
    if (folder / "config.json").is_file():
        model = BindYourAvatarTransformer3DModel.from_pretrained(folder)
        found = load_file(folder / LORA_FILE) if (folder / LORA_FILE).is_file() else {}
    elif (folder / AUDIO_FILE).is_file():
        model, found = load_released(folder), {}  # its adapters are merged while loading
    elif (folder / "transformer" / "config.json").is_file():
        return _load_parts(folder / "transformer")
    else:
        raise InputError(f"--init {folder}", "a folder with config.json", "use the final folder of a stage")
    return model, found


def add_adapters(
    model: BindYourAvatarTransformer3DModel, found: Mapping[str, Tensor], lora: Lora | None
) -> BindYourAvatarTransformer3DModel:
    """Add the adapters of a stage: those `found` if they match, else new ones after merging `found`."""
    matching = lora is not None and _matches(found, lora)
    if found and not matching:
        merge_pairs_into(model, lora_pairs(found))
    if lora is not None:
        add_lora(model, lora)
        if matching:
            load_lora(model, found, lora)
    return model


def _matches(found: Mapping[str, Tensor], lora: Lora) -> bool:
    pairs = lora_pairs(found)
    modules = [name.removesuffix(".weight") for name in pairs]
    return (
        all(len(a) == lora.rank for a, _ in pairs.values())
        and all(module.endswith(lora.targets) for module in modules)
        and all(any(module.endswith(target) for module in modules) for target in lora.targets)
    )


def write_model(
    folder: Path,
    model: BindYourAvatarTransformer3DModel,
    state: Mapping[str, Tensor],
    lora: Lora | None,
    info: Mapping[str, Any],
    adapters_alone: bool = False,
    main: bool = True,
) -> None:
    """Write a folder as described above, tensor by tensor; called by all processes.

    Args:
        folder: the folder.
        model: the transformer, for its configuration.
        state: the full state dict, possibly averaged or sharded.
        lora: adapters of the model.
        info: content of run.json.
        adapters_alone: write weights only if the model that `info["model"]` names lacks some of them.
        main: whether this is the main process, which writes.
    """
    adapters = {name: full_tensor(value, main) for name, value in state.items() if ".lora_" in name}
    complete = False
    with shared_failure():
        if main:
            folder.mkdir(parents=True, exist_ok=True)
            model.save_config(folder)
            run: dict[str, Any] = dict(info)
            if lora is not None:
                save_file(lora_weights(model, adapters, lora), folder / LORA_FILE)  # type: ignore[arg-type]
                run["lora"] = {"file": LORA_FILE, "merged": False, "scale": 1.0, **asdict(lora)}
            (folder / RUN_FILE).write_text(json.dumps(run, indent=1, default=str))
            complete = adapters_alone and _is_complete(folder)
    if broadcast_object_list([complete])[0]:
        return
    weights = base_weights(state)
    sizes = {name: torch.empty(value.shape, dtype=value.dtype, device="meta") for name, value in weights.items()}
    pattern = "diffusion_pytorch_model{suffix}.safetensors"
    split = split_torch_state_dict_into_shards(sizes, filename_pattern=pattern, max_shard_size="10GB")
    for file, names in split.filename_to_tensors.items():
        write_tensors(folder / file, {name: weights[name] for name in names}, main)
    if main and split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _is_complete(folder: Path) -> bool:
    """Whether a folder with adapters alone can be loaded."""
    try:
        record = read_adapter_record(folder)
        return record is not None and bool(adapter_source(folder, record, init_source).files)
    except InputError as error:
        log.info("the final folder has all weights: %s", error)
        return False
