"""Checks of the free sections of a recipe against the code that uses them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.sampling.schedulers import COGVIDEOX_SCHEDULE
from bya_core.toy.encoders import ToyTextEncoder
from bya_core.validation import Field, from_mapping, parse_json, validated

FROM_ZERO = ("freq_shift", "injection_start", "dropout", "local_face_scale")
"""Arguments of the transformer that may be zero; all other numbers are positive."""
MAX_SHOWN = 6


def check_model(values: Mapping[str, Any], where: str) -> None:
    """Raise InputError for arguments that `BindYourAvatarTransformer3DModel` does not have or take."""
    from_mapping(_arguments_of(BindYourAvatarTransformer3DModel, "Model"), dict(values), where)


def check_schedule(values: Mapping[str, Any], where: str) -> None:
    """Raise InputError for entries that `COGVIDEOX_SCHEDULE` does not have, or of another type."""
    from_mapping(_schedule(), dict(values), where)


def check_text_encoder(values: Mapping[str, Any], where: str) -> None:
    """Raise InputError for arguments that `ToyTextEncoder` does not have or take."""
    from_mapping(_arguments_of(ToyTextEncoder, "TextEncoder"), dict(values), where)


def model_arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of the transformer: those given and the defaults of the others."""
    defaults = {f.name: f.default for f in dataclasses.fields(_arguments_of(BindYourAvatarTransformer3DModel, "Model"))}
    return {name: _plain(values.get(name, default)) for name, default in defaults.items()}


def read_config(folder: Path) -> dict[str, Any] | None:
    """Arguments of the transformer in a folder with config.json (or transformer/config.json); None without one.

    Raises:
        InputError: the file is not a JSON object.
    """
    for path in (folder / "config.json", folder / "transformer/config.json"):
        if path.is_file():
            try:
                content = parse_json(path.read_text(encoding="utf-8"), str(path))
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{path} cannot be read ({error})", "a JSON file", "check the folder") from error
            if not isinstance(content, dict):
                raise InputError(f"{path} is not a JSON object", "the arguments of a model", "check the folder")
            return content
    return None


def model_differences(recipe: Mapping[str, Any], init: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Argument -> (value of the recipe, value of the initial weights), where they differ."""
    wanted, found = model_arguments(recipe), model_arguments(init)
    return {name: (wanted[name], found[name]) for name in wanted if wanted[name] != found[name]}


def describe_differences(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """The first differences as text: "router_dim 256 (init: 128)"."""
    shown = [f"{name} {wanted} (init: {found})" for name, (wanted, found) in list(differences.items())[:MAX_SHOWN]]
    more = len(differences) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


@functools.cache
def _arguments_of(kind: type, name: str) -> type:
    """A validated dataclass of the arguments of a constructor, all with defaults."""
    construct: Callable[..., Any] = inspect.unwrap(kind.__init__)  # type: ignore[misc]
    hints = get_type_hints(construct)
    fields = []
    for parameter in list(inspect.signature(construct).parameters.values())[1:]:
        fields.append((parameter.name, _bounded(parameter.name, hints[parameter.name]), parameter.default))
    return validated(dataclasses.make_dataclass(name, fields, frozen=True))


@functools.cache
def _schedule() -> type:
    fields = [(name, _bounded(name, type(value)), value) for name, value in COGVIDEOX_SCHEDULE.items()]
    return validated(dataclasses.make_dataclass("Scheduler", fields, frozen=True))


def _bounded(name: str, kind: Any) -> Any:
    """The type of an argument with the range that its name implies."""
    if kind in (int, float, int | None):
        return Annotated[kind, Field(ge=0) if name in FROM_ZERO else Field(gt=0)]
    return kind
