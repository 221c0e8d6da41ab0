"""Recipes: a model and its three stages, from `training/recipes/*.yaml`.

A recipe names the model arguments and overrides values of the published stages; the code is the same for every recipe.
Unknown keys and invalid values are errors at every level, also in `model`, `scheduler` and `text_encoder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, field, is_dataclass
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from bya_core.validation import from_mapping, validated
from training.engine.stages import FLAVOURS, PUBLISHED, Flavour, Stage
from training.engine.yaml_files import merge, parse_assignment, read_yaml

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


def load_recipe(name: str | Path, assignments: Sequence[str] = (), check: bool = True) -> Recipe:
    """Load a recipe by name (`training/recipes/NAME.yaml`) or path; `extends: NAME` merges it over another recipe.

    Args:
        name: name or path. A name or relative path after `extends` is looked up beside the file first.
        assignments: values that replace those of the file, such as "stage.3.optimizer.lr=1e-4",
            "all_stages.batch_size=8" or "model.router_dim=256".
        check: check the free sections, see `check_sections`, which imports the model.

    Raises:
        InputError: there is no such recipe, or it has unknown keys or invalid values.
    """
    path = find_recipe(name)
    content = _read(path, ())
    for assignment in assignments:
        content = _assign(content, assignment)
    recipe = from_mapping(RecipeFile, content, path.name)
    if unknown := recipe.stages.keys() - PUBLISHED.keys():
        raise InputError(f"{path.name}: stage {min(unknown)}", "stage 1, 2 or 3", "correct the number")
    stages = {}
    for number, published in FLAVOURS[recipe.flavour].items():
        stage = override(published, recipe.all_stages, f"{path.name}: all_stages")
        stages[number] = override(stage, recipe.stages.get(number, {}), f"{path.name}: stage {number}")
    result = Recipe(path.stem, recipe.model, stages, recipe.scheduler, recipe.text_encoder)
    if check:
        check_sections(result)
    return result


def check_sections(recipe: Recipe) -> None:
    """Check the free sections of a recipe against the code that uses them.

    Raises:
        InputError: an unknown key or an invalid value in `model`, `scheduler` or `text_encoder`.
    """
    from training.engine.model_config import check_model, check_schedule, check_text_encoder

    check_model(recipe.model, f"recipe {recipe.name}: model")
    check_schedule(recipe.scheduler, f"recipe {recipe.name}: scheduler")
    check_text_encoder(recipe.text_encoder, f"recipe {recipe.name}: text_encoder")


def override(stage: Stage, changes: dict[str, Any], where: str) -> Stage:
    """Replace (nested) values of a stage by those of a mapping, as recipe files write them.

    Raises:
        InputError: an unknown key or an invalid value; the message starts with `where`.
    """
    if changes.get("number", stage.number) != stage.number:
        raise InputError(f"{where}: number is {changes['number']!r}", f"{stage.number}", "remove it")
    return from_mapping(Stage, _replaced(stage, changes), where)


def find_recipe(name: str | Path, beside: Path | None = None) -> Path:
    """The file of a recipe: a path (relative to the folder `beside`, if it is there), or a name in training/recipes.

    Raises:
        InputError: there is no such recipe.
    """
    file = Path(name if str(name).endswith((".yaml", ".yml")) else f"{name}.yaml")
    places = [file] if file.suffix and str(name) == str(file) else []
    if beside is not None:
        places = [beside / file, *places]
    for place in [*places, RECIPES / file]:
        if place.is_file():
            return place
    known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml") if not p.stem.startswith("curation")))
    raise InputError(f"recipe {str(name)!r}", f"one of {known}, or a .yaml file", "check the name")


def _read(path: Path, parents: tuple[Path, ...]) -> dict[Any, Any]:
    """Content of a recipe file, merged over the recipe that it extends."""
    real = path.resolve()
    if real in parents:
        names = " -> ".join(each.name for each in (*parents, real))
        raise InputError(f"recipes that extend each other: {names}", "a chain with an end", "correct one `extends`")
    if real.parent == RECIPES and path.stem.startswith("curation"):
        raise InputError(f"{path.name} is a recipe of curation", "one of training", "use it with training/curate.py")
    content = read_yaml(path)
    if "extends" not in content:
        return content
    base = content.pop("extends")
    if not isinstance(base, str) or not base:
        raise InputError(f"{path.name}: extends is {base!r}", "the name or path of a recipe", "correct the value")
    return merge(_read(find_recipe(base, path.parent), (*parents, real)), content)


def _assign(content: dict[Any, Any], assignment: str) -> dict[Any, Any]:
    """Merge one "KEY.KEY=VALUE" over the content of a file; values for all stages win over those of single ones."""
    keys, value = parse_assignment(assignment)
    keys[0] = "stages" if keys[0] == "stage" else keys[0]
    if keys[0] == "stages" and len(keys) > 1:
        keys[1] = int(keys[1]) if keys[1].isdecimal() else keys[1]
    targets = [keys]
    if keys[0] == "all_stages" and len(keys) > 1:
        targets = [["stages", number, *keys[1:]] for number in PUBLISHED]
    for target in targets:
        changes: Any = value
        for key in reversed(target):
            changes = {key: changes}
        content = merge(content, changes)
    return content


def _replaced(config: Any, changes: dict[str, Any]) -> dict[str, Any]:
    """Fields of a dataclass with (nested) values replaced."""
    values = asdict(config)
    for key, value in changes.items():
        current = getattr(config, key, None)
        nested = is_dataclass(current) and isinstance(value, dict)
        values[key] = _replaced(current, value) if nested else value
    return values
