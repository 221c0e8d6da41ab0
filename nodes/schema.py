"""Schemas that every supported version of ComfyUI accepts, and widgets from the options of the core."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

from bya_core.validation import option

CATEGORY = "BindYourAvatar"
MAX_VOICES = 4  # sockets for recordings of a node
CHARACTER_NUMBERS = [str(number) for number in range(1, 9)]


def schema(node_id: str, display_name: str, description: str, *, folder: str, **keywords: Any) -> io.Schema:
    """Build a schema of this pack.

    Keywords that the running ComfyUI does not know are dropped. Older versions require output ids that differ from
    input ids: where one does not, only its display name keeps it.

    Args:
        node_id: Id without the prefix of the pack.
        display_name: Title of the node.
        description: What the node does.
        folder: Sub-category.
        keywords: Further arguments of `io.Schema`.
    """
    input_ids = {entry.id for entry in keywords.get("inputs", ())}
    for output in keywords.get("outputs", ()):
        if output.id in input_ids:
            output.display_name, output.id = output.display_name or output.id, f"{output.id}_out"
    return made(
        io.Schema,
        node_id=f"BYA_{node_id}",
        display_name=display_name,
        category=f"{CATEGORY}/{folder}",
        description=description,
        **keywords,
    )


def made(kind: Callable[..., Any], *values: Any, **keywords: Any) -> Any:
    """Call a class of ComfyUI without the keywords that the running version does not know, such as `advanced`.

    Inputs of older versions have `extra_dict`, but do not all accept it as a keyword.
    """
    known = inspect.signature(kind).parameters
    instance = kind(*values, **{name: value for name, value in keywords.items() if name in known})
    if "extra_dict" in keywords and "extra_dict" not in known:
        instance.extra_dict = keywords["extra_dict"]
    return instance


def widget(kind: type, field: str, name: str | None = None, hint: str = "", **changes: Any) -> Any:
    """The widget of an option of `bya_core.config`: type, range, choices, default and tooltip come from there.

    Args:
        kind: A class of `bya_core.config`.
        field: Its field.
        name: Name of the widget; None is the name of the field.
        hint: A sentence appended to the tooltip, for what concerns the node only.
        changes: Keywords of the widget that replace those of the option, such as `default` or `step`.
    """
    declared = option(kind, field)
    keywords: dict[str, Any] = {"default": declared.default, "tooltip": f"{declared.description} {hint}".strip()}
    if declared.choices:
        return made(io.Combo.Input, name or field, **keywords | {"options": list(declared.choices)} | changes)
    if declared.type is bool:
        return made(io.Boolean.Input, name or field, **keywords | changes)
    limits = {"min": declared.type(declared.minimum), "max": declared.type(declared.maximum)}
    if declared.type is int:
        return made(io.Int.Input, name or field, **keywords | limits | changes)
    return made(io.Float.Input, name or field, **keywords | limits | {"step": 0.05} | changes)


def audio_inputs(name: str, tooltip: str) -> list[Any]:
    """One optional AUDIO for each of the first characters, named NAME_1 and so on; {} in the tooltip is the number."""
    numbers = range(1, MAX_VOICES + 1)
    return [io.Audio.Input(f"{name}_{number}", optional=True, tooltip=tooltip.format(number)) for number in numbers]


def character_widget(tooltip: str, **changes: Any) -> Any:
    """A list of characters, which the page fills with the names of the cast; any text is accepted.

    The class has to name the input in its `validate_inputs`: otherwise ComfyUI only accepts the numbers.
    """
    keywords = {"options": CHARACTER_NUMBERS, "default": "1", "tooltip": tooltip}
    return io.Combo.Input("character", **keywords | changes)
