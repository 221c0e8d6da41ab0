"""Bind-Your-Avatar (arXiv 2506.19833): several people talking in one generated video.

    from bya_core import generate, load_model, load_scene

    model = load_model("toy")
    video = generate(load_scene("scene.json", model), model)
    video.save("talk.mp4")

Names are imported on first access, so that `import bya_core` is fast.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bya_core.pipelines.generate import generate
    from bya_core.pipelines.load import load_model
    from bya_core.pipelines.sample import Video
    from bya_core.scene.loader import load_scene
    from bya_core.scene.types import Character, Scene, Speech

__version__ = "0.1.0"
__all__ = ["Character", "Scene", "Speech", "Video", "generate", "load_model", "load_scene"]

_MODULES = {
    "Character": "bya_core.scene.types",
    "Scene": "bya_core.scene.types",
    "Speech": "bya_core.scene.types",
    "Video": "bya_core.pipelines.sample",
    "generate": "bya_core.pipelines.generate",
    "load_model": "bya_core.pipelines.load",
    "load_scene": "bya_core.scene.loader",
}

# diffusers imports torchao if it is installed; a build for another torch logs warnings, but only disables float8
for _name in ("torchao", "diffusers.quantizers", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
