"""The record of a run, `config.yaml` in its folder: everything that decides what is learned, and where it was run.

It is written before the first step. A restart in the same folder is compared with it; a difference that would change
the experiment is refused unless `--allow-change NAME` names it. Restarts are listed under `starts`.
"""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from bya_core import __version__
from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write
from bya_core.io.locks import folder_lock
from bya_core.weights.checkpoints import source_fingerprint
from bya_core.weights.loader import init_source
from training.data.batches import Clips
from training.engine.build import parent_of
from training.engine.model_config import model_arguments
from training.engine.recipe import Recipe
from training.engine.settings import RunSettings
from training.engine.stages import Stage
from training.engine.yaml_files import dump_yaml, read_yaml

FILE = "config.yaml"
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy")
DECIDING = ("seed", "max_minutes", "mixed_precision", "cast_frozen_weights", "batched_random", "use_8bit_adam")
"""Options of a run that change its result."""
MAX_SHOWN = 4


@contextmanager
def lock_run(output: Path, accelerator: Accelerator) -> Iterator[None]:
    """Hold the lock of the folder of a run in the main process.

    Raises:
        InputError: another run holds it, or the folder cannot be made.
    """
    if not accelerator.is_main_process:
        yield
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(output, error) from error
    with folder_lock(output, "the checkpoints", "choose another --output, or wait for the other run"):
        yield


def describe_run(
    model: torch.nn.Module,
    initial_weights: str,
    stage: Stage,
    settings: RunSettings,
    data: Clips,
    recipe: Recipe | None = None,
) -> dict[str, Any]:
    """Everything that decides the result of a run, as JSON types.

    Args:
        model: the transformer before training.
        initial_weights: fingerprint of its weights.
        stage: the stage.
        settings: options of the run.
        data: its clips; `description` is recorded if they have one.
        recipe: the recipe, for its name and noise schedule.
    """
    init = {**(parent_of(settings.init) or {"path": None}), "fingerprint": initial_weights}
    content: dict[str, Any] = {
        "recipe": None if recipe is None else recipe.name,
        "stage": asdict(stage),
        "init": init,
        "data": getattr(data, "description", None),
        "settings": {name: value for name, value in asdict(settings).items() if name not in ("init", "allow_change")},
        "model": model_arguments(dict(model.config)),  # type: ignore[arg-type]
    }
    content |= recipe.bundle_settings if recipe is not None else {}
    return plain(content)


def describe_model(
    model: torch.nn.Module, stage: Stage, settings: RunSettings, recipe: Recipe | None = None
) -> dict[str, Any]:
    """What is needed to load a checkpoint as a model, see bya_core/weights/checkpoints.py.

    Called before training: adapters that are not new continue those of `init`.
    """
    parent = parent_of(settings.init)
    if parent is not None:
        parent["fingerprint"] = source_fingerprint(init_source(Path(parent["path"])))
    continues = any(".lora_B." in name and bool(weight.any()) for name, weight in model.named_parameters())
    content: dict[str, Any] = {
        "arguments": model_arguments(dict(model.config)),  # type: ignore[arg-type]
        "lora": None if stage.lora is None else asdict(stage.lora),
        "continues_lora": continues,
        "init": parent,
    }
    return plain(content | (recipe.bundle_settings if recipe is not None else {}))


def describe_start(accelerator: Accelerator, step: int) -> dict[str, Any]:
    """When, where and how a run was started."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": shlex.join(sys.argv),
        "commit": commit(),
        "processes": accelerator.num_processes,
        "distributed": accelerator.distributed_type.value,
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type,
        "machine": platform.node(),
        "versions": {"bind-your-avatar": __version__, "python": platform.python_version(), **_versions()},
    }


def check_record(output: Path, run: Mapping[str, Any], allowed: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Compare a restart with the record of the folder.

    Args:
        output: folder of the run.
        run: from `describe_run`.
        allowed: names that may differ: a full name such as "stage.optimizer.lr", or a part of it ("lr", "optimizer").

    Returns:
        Name -> (recorded value, value now) of the allowed differences.

    Raises:
        InputError: another difference, or a record that cannot be read.
    """
    if not (output / FILE).is_file():
        return {}
    before, now = _deciding(read_yaml(output / FILE)), _deciding(run)
    changed = {
        name: (before.get(name), now.get(name))
        for name in (*before, *(name for name in now if name not in before))
        if before.get(name) != now.get(name)
    }
    refused = {name: pair for name, pair in changed.items() if not _is_allowed(name, allowed)}
    if refused:
        first = list(refused.items())[:MAX_SHOWN]
        shown = [f"{name} was {_shown(old)}, is {_shown(new)}" for name, (old, new) in first]
        more = f" and {len(refused) - MAX_SHOWN} more" if len(refused) > MAX_SHOWN else ""
        names = " ".join(dict.fromkeys(_short(name) for name in refused))
        problem = f"{output} holds a run with other settings: {'; '.join(shown)}{more}"
        raise InputError(problem, "the same experiment", f"choose another --output, or add --allow-change {names}")
    return changed


def write_record(
    output: Path, run: Mapping[str, Any], start: Mapping[str, Any], changed: Mapping[str, tuple[Any, Any]]
) -> str:
    """Write `config.yaml`; starts and changes recorded before are kept. Returns its text.

    Raises:
        InputError: the folder cannot be written.
    """
    path = output / FILE
    starts = list(read_yaml(path).get("starts") or []) if path.is_file() else []
    changes = {name: {"from": old, "to": new} for name, (old, new) in changed.items()}
    starts.append({**start, **({"changed": changes} if changes else {})})
    text = dump_yaml(plain({**run, "starts": starts}))
    try:
        output.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _unwritable(output, error) from error
    return text


def flatten(content: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with names such as "stage.optimizer.lr"."""
    if not isinstance(content, Mapping) or not content:
        return {prefix: content}
    return {name: value for key, item in content.items() for name, value in flatten(item, _join(prefix, key)).items()}


def plain(value: Any) -> Any:
    """JSON types: tuples become lists, paths text."""
    if isinstance(value, Mapping):
        return {key if isinstance(key, int) else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def commit() -> str | None:
    """The commit of the code, with "+" if files have changed since; None outside of a repository."""
    root = Path(__file__).resolve().parents[2]
    try:
        run = [
            subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True)
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return run[0].stdout.strip() + ("+" if run[1].stdout.strip() else "")


def _deciding(content: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the result, flat; paths and the name of the recipe do not."""
    content = {name: content.get(name) for name in ("stage", "init", "data", "settings", "model", "scheduler")}
    if not content["data"]:
        del content["data"]
    flat = {name: value for name, value in flatten(content).items() if value is not None}
    kept = {f"settings.{name}" for name in DECIDING} | {"init.fingerprint"}
    if flat.get("stage.optimizer.lr_schedule") == "constant":
        flat.pop("stage.steps", None)  # a longer run has the same learning rates
    return {
        name: value
        for name, value in flat.items()
        if name in kept or (name.partition(".")[0] not in ("settings", "init") and name != "data.source")
    }


def _is_allowed(name: str, allowed: Sequence[str]) -> bool:
    return any(each == name or each in name.split(".") or name.startswith(each + ".") for each in allowed)


def _unwritable(output: Path, error: OSError) -> InputError:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return InputError(f"{output} is a file or below one", "a folder", "choose another --output")
    problem = f"the folder {output} cannot be written ({error.strerror or error})"
    return InputError(problem, "a folder with free space", "choose another --output or free some space")


def _short(name: str) -> str:
    """The name to give to --allow-change: the section of data, init and model, else the last part."""
    section, _, _ = name.partition(".")
    return section if section in ("data", "init", "model") else name.rpartition(".")[2]


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _join(prefix: str, key: Any) -> str:
    return f"{prefix}.{key}" if prefix else str(key)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
