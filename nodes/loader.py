"""Load Bind-Your-Avatar: a model of the registry, or a folder of its own."""

from __future__ import annotations

from comfy_api.latest import io

from bya_core.checkpoints.registry import MODELS

from . import host, types
from .schema import schema

DTYPES = ["as stored", "float32", "bfloat16", "float16"]
MEMORY = ["ComfyUI decides", "low"]


class Loader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Loader",
            "Load Bind-Your-Avatar",
            "Loads a model with its encoders. Nothing is downloaded. 'tiny' comes with the pack: drawn puppets, no "
            "GPU.",
            search_aliases=["talking", "lip sync", "multi person", "bind your avatar"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=[*MODELS, *(name for name in host.model_folders() if name not in MODELS)],
                    default="tiny",
                    tooltip="Which model: 'tiny' (drawn puppets, 96x64, runs anywhere), or a folder with a bundle.json "
                    "in models/bindyouravatar. One that cannot be used yet says why.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=DTYPES,
                    default="as stored",
                    tooltip="Number format of the transformer. 'as stored' is what it was made for; bfloat16 halves "
                    "its memory on cards that have it, with small differences in the picture.",
                ),
                io.Combo.Input(
                    "memory",
                    options=MEMORY,
                    default="ComfyUI decides",
                    tooltip="'ComfyUI decides' keeps parts on the GPU until the room is needed (fastest). 'low' takes "
                    "each part off as soon as a node is done: less memory between runs, a few seconds more per run.",
                ),
            ],
            outputs=[types.Model.Output("model", tooltip="Transformer, encoders and video codec; feeds Scene.")],
        )

    @classmethod
    @host.told_plainly
    def execute(cls, model: str, dtype: str, memory: str) -> io.NodeOutput:
        import torch

        from bya_core.checkpoints.folder import load_folder
        from bya_core.checkpoints.registry import load_bundle

        name, folder = host.model_place(model)
        bundle = load_bundle(name) if folder is None else load_folder(folder)
        wanted = None if dtype == "as stored" else getattr(torch, dtype)
        return io.NodeOutput(host.adopt(bundle, wanted, low_memory=memory == "low"))
