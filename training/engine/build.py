"""The model of a run: newly initialized, loaded, or adapted from another one."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights.registry import MODELS
from training.engine.base import load_base
from training.engine.lora import add_adapters, load_model
from training.engine.model_config import describe_differences, model_differences, read_config
from training.engine.recipe import Recipe
from training.engine.settings import RunSettings

log = logging.getLogger(__name__)

MAX_RANDOM = 1_000_000_000
"""Number of parameters from which training does not start from random weights."""


def build_model(
    recipe: Recipe, stage: int, settings: RunSettings, adapt: bool = False, empty: bool = False
) -> BindYourAvatarTransformer3DModel:
    """The model in `settings.init`, one with the weights of `settings.base`, or a newly initialized one.

    Args:
        recipe: the model wanted.
        stage: number of the stage, for its adapters.
        settings: seed, and the folder or name of the initial weights.
        adapt: build the model of the recipe although it differs, and take over the weights that fit.
        empty: leave memory of the weights untouched, for processes that get them from the main one
            (`training.engine.distributed.prepare`).

    Raises:
        InputError: no model there, weights are missing, without `adapt` a model that differs from the recipe, or no
            weights at all for a model of published size.
    """
    lora = recipe.stages[stage].lora
    torch.manual_seed(settings.seed)
    if empty:
        with init_empty_weights():
            model = add_adapters(BindYourAvatarTransformer3DModel(**recipe.model), {}, lora)
        return model.to_empty(device="cpu")
    if settings.init is not None and settings.base is not None:
        raise InputError("--init and --base", "one of them", "leave out --base to continue from trained weights")
    if settings.init is None:
        if settings.base is None:
            _check_random_start(recipe, stage)
        model = BindYourAvatarTransformer3DModel(**recipe.model)
        if settings.base is not None:
            load_base(model, Path(settings.base).expanduser())
        return add_adapters(model, {}, lora)
    folder = init_folder(settings.init)
    config = read_config(folder)
    if config is not None and not adapt:
        check_same_model(recipe, config, settings.init)
    if adapt:
        found = load_model(folder)
        check_loaded(found, settings.init)
        torch.manual_seed(settings.seed)
        model = BindYourAvatarTransformer3DModel(**recipe.model)
        take_over(model, found)
        return add_adapters(model, {}, lora)
    model = load_model(folder, lora)
    check_loaded(model, settings.init)
    if config is None:  # released files: known only after loading
        check_same_model(recipe, dict(model.config), settings.init)
    return model


def _check_random_start(recipe: Recipe, stage: int) -> None:
    """Warn about random weights where they are no good start, and raise InputError at published size."""
    with torch.device("meta"):
        size = sum(weight.numel() for weight in BindYourAvatarTransformer3DModel(**recipe.model).parameters())
    if size > MAX_RANDOM:
        problem = f"stage {stage} of {size / 1e9:.1f} billion random weights"
        hint = "use --base FOLDER with CogVideoX-5B-I2V or ConsisID, or --init FOLDER with trained weights"
        raise InputError(problem, "pretrained weights at this size", hint)
    if stage > 1:
        log.warning("stage %d starts from random weights; continue an earlier stage with --init FOLDER", stage)


def init_folder(init: str) -> Path:
    """The folder of `--init`: a path, or the transformer of a model by name.

    Raises:
        InputError: there is no such folder.
    """
    folder = Path(init).expanduser()
    if not folder.is_dir() and init in MODELS:
        folder = MODELS[init].path
    if not folder.is_dir():
        names = ", ".join(MODELS)
        raise InputError(f"no model at --init {init}", f"a folder with a model, or one of {names}", "check the path")
    return folder


def check_same_model(recipe: Recipe, config: dict[str, Any], init: str) -> None:
    """Raise InputError with the differences between a recipe and the initial weights."""
    if config.get("_class_name") == "CogVideoXTransformer3DModel":
        problem = f"--init {init} is a CogVideoX model without the modules for faces and speech"
        raise InputError(problem, "a trained model", "use --base to start stage 1 from it")
    if differences := model_differences(recipe.model, config):
        problem = f"recipe {recipe.name} has another model than --init {init}: {describe_differences(differences)}"
        raise InputError(
            problem, "the same model", "change the recipe, or use --adapt to take over the weights that fit"
        )


def check_loaded(model: torch.nn.Module, init: str) -> None:
    """Raise InputError for parameters without a value, which the files did not have."""
    if missing := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
        problem = f"--init {init} lacks {len(missing)} weights, such as {', '.join(missing[:3])}"
        raise InputError(problem, "all weights of the model", "use a complete `final` folder, or --adapt")


@torch.no_grad()
def take_over(model: torch.nn.Module, found: torch.nn.Module) -> None:
    """Copy the weights whose name and shape both models have, and log what was not copied.

    Raises:
        InputError: nothing fits.
    """
    source, target = found.state_dict(), model.state_dict()
    fitting = [name for name in target if name in source and source[name].shape == target[name].shape]
    if not fitting:
        raise InputError("--adapt with a model that shares no weights", "a related model", "leave out --init")
    model.load_state_dict({name: source[name].to(target[name].dtype) for name in fitting}, strict=False)
    new = [name for name in target if name not in set(fitting)]
    unused = [name for name in source if name not in target]
    log.info("--adapt: %d tensors taken over, %d new (%s), %d unused (%s)", len(fitting), len(new), _parts(new),
             len(unused), _parts(unused))  # fmt: skip


def parent_of(init: str | None) -> dict[str, Any] | None:
    """The initial weights for the record of a run: the path and, from run.json, the stage and step they come from."""
    if init is None:
        return None
    folder = init_folder(init)
    parent: dict[str, Any] = {"path": str(folder.resolve())}
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        parent |= {"stage": run["stage"]["number"], "steps": run["steps"], "init": run["init"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not the result of a run
    return parent


def _parts(names: Iterable[str]) -> str:
    parts = list(dict.fromkeys(name.partition(".")[0] for name in names))
    return ", ".join(parts[:6]) + (" ..." if len(parts) > 6 else "") or "none"
