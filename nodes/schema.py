"""Schemas that every supported version of ComfyUI accepts, and widgets from the options of the core."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

from bya_core.validation import option

CATEGORY = "BindYourAvatar"


def schema(node_id: str, display_name: str, description: str, **keywords: Any) -> io.Schema:
    """Build a schema of this pack.

    Keywords that the running ComfyUI does not know are dropped. Older versions require output ids that differ from
    input ids: where one does not, only its display name keeps it.
    """
    input_ids = {entry.id for entry in keywords.get("inputs", ())}
    for output in keywords.get("outputs", ()):
        if output.id in input_ids:
            output.display_name, output.id = output.display_name or output.id, f"{output.id}_out"
    known = inspect.signature(io.Schema).parameters
    supported = {name: value for name, value in keywords.items() if name in known}
    return io.Schema(
        node_id=f"BYA_{node_id}", display_name=display_name, category=CATEGORY, description=description, **supported
    )


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
        return io.Combo.Input(name or field, **keywords | {"options": list(declared.choices)} | changes)
    if declared.type is bool:
        return io.Boolean.Input(name or field, **keywords | changes)
    limits = {"min": declared.type(declared.minimum), "max": declared.type(declared.maximum)}
    if declared.type is int:
        return io.Int.Input(name or field, **keywords | limits | changes)
    return io.Float.Input(name or field, **keywords | limits | {"step": 0.05} | changes)
