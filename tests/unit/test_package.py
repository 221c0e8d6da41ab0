"""The door of the pack outside ComfyUI: nothing happens. Inside it: tests/nodes."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

DOOR = Path(__file__).resolve().parents[2] / "__init__.py"


def open_door() -> ModuleType:
    """Import the pack as ComfyUI does: by path, under a name of its own."""
    spec = importlib.util.spec_from_file_location("custom-nodes.bind-your-avatar", DOOR)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_outside_comfyui_nothing_happens() -> None:
    before = set(sys.modules)
    module = open_door()
    assert module.__all__ == ["WEB_DIRECTORY"] and not hasattr(module, "comfy_entrypoint")
    assert set(sys.modules) == before
