"""The nodes of the pack. They only convert inputs and outputs; the functionality is in bya_core."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .best_take import BestTake
from .characters import AudioEncode, Cast, FaceEncode
from .demo import LoadDemo
from .dub import Dub
from .host import add_demo_files, register_folder
from .loader import Loader, LoadLora
from .masks import MaskOverlay, SelectCharacterMask
from .refine import MaskRefine
from .report import BindingReport, Preflight, VideoReport
from .routing import EmbeddingRouter
from .sampler import Sampler
from .scene import Scene
from .script import Script, ScriptLines

NODES: list[type[io.ComfyNode]] = [
    Loader,
    LoadLora,
    LoadDemo,
    FaceEncode,
    AudioEncode,
    *([Cast] if hasattr(io, "Autogrow") else []),
    ScriptLines,
    Script,
    Scene,
    EmbeddingRouter,
    MaskRefine,
    Sampler,
    BestTake,
    Dub,
    MaskOverlay,
    SelectCharacterMask,
    BindingReport,
    VideoReport,
    Preflight,
]

register_folder()


class BindYourAvatar(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> BindYourAvatar:
    add_demo_files()  # not in `on_load`, which older versions of ComfyUI do not call
    return BindYourAvatar()
