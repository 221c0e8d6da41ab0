"""The door of the pack: nothing happens outside ComfyUI; inside, the host finds an entrypoint."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

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
    assert module.__all__ == [] and not hasattr(module, "comfy_entrypoint")
    assert set(sys.modules) == before


def test_inside_comfyui_there_is_an_entrypoint(monkeypatch: pytest.MonkeyPatch) -> None:
    api, latest = ModuleType("comfy_api"), ModuleType("comfy_api.latest")
    api.__spec__ = importlib.util.spec_from_loader("comfy_api", loader=None)
    latest.ComfyExtension = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy_api", api)
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    module = open_door()
    assert module.__all__ == ["comfy_entrypoint"]
    assert not hasattr(module, "NODE_CLASS_MAPPINGS")  # the host would stop there and ignore the entrypoint

    async def nodes() -> list[type]:
        return await (await module.comfy_entrypoint()).get_node_list()

    assert asyncio.run(nodes()) == []
