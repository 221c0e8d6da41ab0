"""Loading the trained weights of a run over those that the run started from: checkpoints, and adapters alone.

A checkpoint (`checkpoints/step-*`, written by training/engine/checkpointing.py) stores the weights that are trained.
`model` in its trainer_state.json records the arguments of the transformer, its adapters, and folder and fingerprint of
`init`, from which the others are read. Runs that start from random weights store those too. `final/` of a run that
trained adapters alone has the same record in run.json, and no weights besides the adapters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.files import read_json_object
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights.lora import Pairs, add_pairs, lora_pairs
from bya_core.weights.state_dict_adapter import PATCH_PROJECTION, TransformerSource, map_transformer_name
from bya_core.weights.weight_files import Shapes, WeightFile, build_empty, read_shapes

STATE_FILE = "trainer_state.json"
RUN_FILE = "run.json"
RUN_LORA = "pytorch_lora_weights.safetensors"
"""LoRA of a training run, with scale 1."""
WEIGHTS_FILE, AVERAGES_FILE, FROZEN_FILE = "weights.safetensors", "ema.safetensors", "frozen.safetensors"


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint of a training run."""
    return (folder / STATE_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()


def read_model_record(folder: Path) -> dict[str, Any]:
    """The record of the model in a checkpoint.

    Raises:
        InputError: The checkpoint has none.
    """
    record = read_json_object(folder / STATE_FILE, "the state of the checkpoint").get("model")
    if not isinstance(record, dict) or "arguments" not in record:
        problem = f"the checkpoint {folder} does not record its model"
        raise InputError(problem, "a checkpoint of this version", "resume its run, or use its `final` folder")
    return record


def checkpoint_source(folder: Path, locate: Callable[[Path], TransformerSource]) -> TransformerSource:
    """Source of the transformer in a checkpoint: averaged weights if the stage has an EMA, adapters merged.

    Args:
        folder: Folder of the checkpoint.
        locate: Source of the model in the `init` folder.

    Raises:
        InputError: The `init` folder is needed, but is missing or has other weights than at the start of the run.
    """
    record = read_model_record(folder)
    path = folder / (AVERAGES_FILE if (folder / AVERAGES_FILE).is_file() else WEIGHTS_FILE)
    trained = WeightFile(path, rename=map_transformer_name)
    adapters: dict[str, Tensor] = {}
    with trained.open() as stored:
        adapters = {name: tensor.load().clone() for name, tensor in stored.items() if ".lora_" in name}
        own = {name for name in stored if ".lora_" not in name}
    lora = lora_pairs(adapters, config={"lora_alpha": record["lora"]["alpha"]} if record.get("lora") else None)
    files = [replace(trained, exclude=".lora_")]
    if (folder / FROZEN_FILE).is_file():
        frozen = WeightFile(folder / FROZEN_FILE, rename=map_transformer_name)
        files.insert(0, frozen)
        own |= set(read_shapes([frozen])[0])
    return _over_init(folder, record, files, own, lora, locate)


def read_adapter_record(folder: Path) -> dict[str, Any] | None:
    """The record of a `final` folder that has adapters and no other weights; None for other folders."""
    others = [path for path in folder.glob("*.safetensors") if path.name != RUN_LORA]
    if others or not (folder / RUN_LORA).is_file() or not (folder / RUN_FILE).is_file():
        return None
    record = read_json_object(folder / RUN_FILE, "the record of the run").get("model")
    return record if isinstance(record, dict) and "arguments" in record else None


def adapter_source(
    folder: Path, record: Mapping[str, Any], locate: Callable[[Path], TransformerSource]
) -> TransformerSource:
    """Source of a transformer whose `final` folder has adapters alone, with the record of `read_adapter_record`.

    Raises:
        InputError: As `checkpoint_source`.
    """
    with WeightFile(folder / RUN_LORA).open() as stored:
        lora = lora_pairs({name: tensor.load().clone() for name, tensor in stored.items()})
    source = _over_init(folder, record, [], set(), lora, locate)
    return replace(source, paths=(*source.paths, folder / RUN_LORA))


def _over_init(
    folder: Path,
    record: Mapping[str, Any],
    files: Sequence[WeightFile],
    own: set[str],
    lora: Pairs,
    locate: Callable[[Path], TransformerSource],
) -> TransformerSource:
    """The weights `own` in `files` and the updates `lora`, over the weights that the run started from."""
    arguments: dict[str, Any] = record["arguments"]
    shell = build_empty(lambda: BindYourAvatarTransformer3DModel(**arguments))
    expected: Shapes = {name: tuple(value.shape) for name, value in shell.state_dict().items()}
    if expected.keys() <= own:
        return TransformerSource(arguments, tuple(files), lora, tuple(file.path for file in files))
    start = locate_init(folder, record, locate)
    shapes, _ = read_shapes(start.files, expected, PATCH_PROJECTION)
    needed = frozenset(name for name, shape in shapes.items() if name not in own and expected.get(name) == shape)
    if missing := sorted(expected.keys() - own - needed - set(_never_read(start, expected))):
        problem = f"{folder} and its --init lack {len(missing)} weights, such as {missing[0]}"
        raise InputError(problem, "all weights of the model", "use the `final` folder of the run")
    kept: Pairs = {}
    if not record.get("continues_lora"):
        kept = {name: pair for name, pair in start.lora.items() if name in needed}
    return TransformerSource(
        arguments,
        (*(replace(file, only=needed) for file in start.files), *files),
        add_pairs(kept, lora),
        (*start.paths, *(file.path for file in files)),
        released=start.released,
    )


def source_fingerprint(source: TransformerSource) -> str:
    """Hash of the weights in files: names, shapes and a few values of each."""
    digest = hashlib.sha256()

    def feed(name: str, shape: tuple[int, ...], values: Tensor) -> None:
        sample = values.flatten()[:8].to(torch.bfloat16).float().cpu().numpy()
        digest.update(f"{name} {shape}".encode() + sample.tobytes())

    for file in source.files:
        with file.open() as stored:
            for name in sorted(stored):
                tensor = stored[name]
                feed(name, tensor.shape, tensor.load(slice(0, 1)) if tensor.shape else tensor.load())
    for name, pair in sorted(source.lora.items()):
        for half in pair:
            feed(name, tuple(half.shape), half)
    return digest.hexdigest()[:16]


def locate_init(
    folder: Path, record: Mapping[str, Any], locate: Callable[[Path], TransformerSource]
) -> TransformerSource:
    """Source of the model that the run in `folder` started from.

    Raises:
        InputError: It is missing, or has other weights than at the start of the run.
    """
    init = record.get("init")
    if not init:
        problem = f"{folder} lacks its frozen weights, which came from --base"
        raise InputError(problem, "a run that started from --init", "use the `final` folder of the run")
    start = Path(init["path"])
    hint = "put it back; to share adapters alone, use --lora with the model they were trained on"
    if not start.is_dir():
        problem = f"{folder} needs the frozen weights of its --init {start}, which is missing"
        raise InputError(problem, "the folder that the run started from", hint)
    source = locate(start)
    if source_fingerprint(source) != init["fingerprint"]:
        problem = f"{folder} needs the frozen weights of its --init {start}, which has changed"
        raise InputError(problem, "the weights that the run started from", hint)
    return source


def _never_read(source: TransformerSource, expected: Shapes) -> list[str]:
    return [name for name in expected if source.never_read and name.startswith(source.never_read)]
