"""Building schemas that every supported version of ComfyUI takes."""

from __future__ import annotations

import inspect
from typing import Any

from comfy_api.latest import io

CATEGORY = "BindYourAvatar"


def schema(node_id: str, display_name: str, description: str, **keywords: Any) -> io.Schema:
    """A schema of this pack.

    Keywords that the running ComfyUI does not know yet are left out. Older ones want ids of outputs to differ from
    those of inputs: where one does not, only its shown name stays.
    """
    taken = {given.id for given in keywords.get("inputs", ())}
    for output in keywords.get("outputs", ()):
        if output.id in taken:
            output.display_name, output.id = output.display_name or output.id, f"{output.id}_out"
    known = inspect.signature(io.Schema).parameters
    kept = {name: value for name, value in keywords.items() if name in known}
    return io.Schema(
        node_id=f"BYA_{node_id}", display_name=display_name, category=CATEGORY, description=description, **kept
    )
