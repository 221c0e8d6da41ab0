"""Recipes: a model and its three stages, from `training/recipes/*.yaml`.

A recipe names the model arguments and overrides values of the published stages; the code is the same for every recipe.
"""

from __future__ import annotations

from dataclasses import asdict, field, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from bya_core.errors import InputError
from bya_core.validation import from_mapping, validated
from training.engine.stages import FLAVOURS, PUBLISHED, Flavour, Stage

RECIPES = Path(__file__).parents[1] / "recipes"


@validated
class Recipe:
    """A model and its three stages.

    Args:
        name: name of the recipe file.
        model: arguments of `BindYourAvatarTransformer3DModel`.
        stages: stage configurations by number.
        scheduler: entries of the noise schedule that differ from `COGVIDEOX_SCHEDULE`; part of the model bundle.
        text_encoder: arguments of the toy text encoder that differ from its defaults; part of the model bundle.
    """

    name: str
    model: dict[str, Any]
    stages: dict[int, Stage]
    scheduler: dict[str, Any] = field(default_factory=dict)
    text_encoder: dict[str, int] = field(default_factory=dict)

    @property
    def bundle_settings(self) -> dict[str, Any]:
        """Entries of `bundle.json` that the recipe determines."""
        return {name: value for name in ("scheduler", "text_encoder") if (value := getattr(self, name))}


@validated
class RecipeFile:
    """Content of a recipe file after `extends` has been resolved.

    Args:
        model: arguments of `BindYourAvatarTransformer3DModel`.
        flavour: the published stages to start from, see `FLAVOURS`.
        all_stages: values to override in every stage.
        stages: values to override by stage number.
        scheduler, text_encoder: see `Recipe`.
    """

    model: dict[str, Any]
    flavour: Flavour = "paper"
    all_stages: dict[str, Any] = field(default_factory=dict)
    stages: dict[int, dict[str, Any]] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    text_encoder: dict[str, int] = field(default_factory=dict)


def load_recipe(name: str | Path) -> Recipe:
    """Load a recipe by name (`training/recipes/NAME.yaml`) or path; `extends: NAME` merges it over another recipe.

    Raises:
        InputError: there is no such recipe, or it has unknown keys or invalid values.
    """
    path, content = _read(name)
    recipe = from_mapping(RecipeFile, content, path.name)
    if unknown := recipe.stages.keys() - PUBLISHED.keys():
        raise InputError(f"{path.name}: stage {min(unknown)}", "stage 1, 2 or 3", "correct the number")
    stages = {}
    for number, published in FLAVOURS[recipe.flavour].items():
        stage = override(published, recipe.all_stages, f"{path.name}: all_stages")
        stages[number] = override(stage, recipe.stages.get(number, {}), f"{path.name}: stage {number}")
    return Recipe(path.stem, recipe.model, stages, recipe.scheduler, recipe.text_encoder)


def override(stage: Stage, changes: dict[str, Any], where: str) -> Stage:
    """Replace (nested) values of a stage by those of a mapping, as recipe files write them.

    Raises:
        InputError: an unknown key or an invalid value; the message starts with `where`.
    """
    return from_mapping(Stage, _replaced(stage, changes), where)


def _replaced(config: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Fields of a dataclass with (nested) values replaced."""
    values = asdict(config)
    for key, value in changes.items():
        current = getattr(config, key, None)
        nested = is_dataclass(current) and isinstance(value, dict)
        values[key] = _replaced(current, value) if nested else value
    return values


def _read(name: str | Path) -> tuple[Path, Any]:
    """Path and content of a recipe file, merged over the recipe that it extends."""
    path = Path(name) if str(name).endswith(".yaml") else RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise InputError(f"recipe {str(name)!r}", f"one of {known}, or a .yaml file", "check the name")
    content = yaml.safe_load(path.read_text())
    if not isinstance(content, dict) or "extends" not in content:
        return path, content
    base = content.pop("extends")
    return path, _merge(_read(base)[1], content)


def _merge(base: dict[Any, Any], changes: dict[Any, Any]) -> dict[Any, Any]:
    """Merge nested mappings; `changes` take precedence."""
    nested = {
        key: _merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in changes.items()
    }
    return {**base, **nested}
