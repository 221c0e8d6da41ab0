"""ComfyUI and the pack in this process, and the values of a small graph."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, os.environ["COMFYUI_DIR"])

import comfy.cli_args  # noqa: E402

comfy.cli_args.args.cpu = True

import torch  # noqa: E402

import nodes as comfy_nodes  # noqa: E402, F401  # ComfyUI's own module of that name

Run = Callable[..., tuple[Any, ...]]


FIXED = {"probe": "fixed number of steps"}


def short(frames: int, **settings: Any) -> dict[str, Any]:
    """Widgets of BYA Scene for a length and settings that differ from those of the model."""
    return {"length": "frames", "frames": frames, **({"settings": "custom", **settings} if settings else {})}


def load_pack(folder: Path) -> ModuleType:
    """Import the pack as ComfyUI does: by path, with the path as module name."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def node_list(pack: ModuleType) -> list[Any]:
    async def nodes() -> list[Any]:
        return await (await pack.comfy_entrypoint()).get_node_list()

    return asyncio.run(nodes())


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    folder = tmp_path_factory.mktemp("custom_nodes") / "bind-your-avatar"
    folder.symlink_to(os.environ["BYA_PACK"], target_is_directory=True)
    return load_pack(folder)


@pytest.fixture(scope="session")
def nodes(pack: ModuleType) -> dict[str, Any]:
    """Nodes by id without prefix."""
    return {node.GET_SCHEMA().node_id.removeprefix("BYA_"): node for node in node_list(pack)}


@pytest.fixture(scope="session")
def host(pack: ModuleType) -> ModuleType:
    return sys.modules[f"{pack.__name__}.nodes.host"]


@pytest.fixture(scope="session")
def run(nodes: dict[str, Any]) -> Run:
    """Executes a node with default values for missing required inputs, in inference mode as ComfyUI does."""

    def execute(node: str, /, **inputs: Any) -> tuple[Any, ...]:
        schema = nodes[node].define_schema()
        defaults = {
            entry.id: entry.default
            for entry in schema.inputs
            if getattr(entry, "default", None) is not None and not entry.optional
        }
        with torch.inference_mode():
            return nodes[node].execute(**defaults | inputs).result

    return execute


@pytest.fixture(scope="session")
def model(run: Run) -> Any:
    return run("Loader")[0]


@pytest.fixture(scope="session")
def demo(run: Run) -> dict[str, Any]:
    names = ("prompt", "first_frame", "frames", "image_1", "audio_1", "image_2", "audio_2", "image_3", "audio_3")
    return dict(zip(names, run("LoadDemo"), strict=True))


@pytest.fixture(scope="session")
def cast(run: Run, demo: dict[str, Any]) -> Any:
    """Two speaking characters, Ada and Bo."""
    first, _ = run("AudioEncode", audio=demo["audio_1"])
    second, _ = run("AudioEncode", audio=demo["audio_2"])
    (one,) = run("FaceEncode", image=demo["image_1"], name="Ada", speech=first)
    return run("FaceEncode", image=demo["image_2"], name="Bo", speech=second, cast=one)[0]


@pytest.fixture(scope="session")
def scene(run: Run, model: Any, cast: Any, demo: dict[str, Any]) -> Any:
    """9 frames and 4 steps."""
    options = {"prompt": demo["prompt"], "first_frame": demo["first_frame"], "seed": 2_000_001}
    return run("Scene", model=model, cast=cast, **options, **short(9, steps=4))[0]


@pytest.fixture(scope="session")
def routing(run: Run, scene: Any) -> Any:
    return run("EmbeddingRouter", scene=scene, **FIXED, probe_steps=2)[0]


@pytest.fixture
def interrupted() -> Iterator[Callable[[], None]]:
    """Calling it cancels the current prompt; reset after the test."""
    import comfy.model_management as management

    yield lambda: management.interrupt_current_processing(True)
    management.interrupt_current_processing(False)
