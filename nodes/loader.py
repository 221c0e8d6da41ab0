"""Load Bind-Your-Avatar: a model of the registry, or one's own."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host, types
from .schema import schema

DTYPES = ["as stored", "float32", "bfloat16", "float16"]
MEMORY = ["ComfyUI decides", "low"]
VRAM = ["auto", "8", "12", "16", "24", "48", "80"]


class Loader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Loader",
            "Load Bind-Your-Avatar",
            "Loads a model with its encoders. Nothing is downloaded unless you say so. 'toy' comes with the pack: "
            "drawn puppets, no GPU.",
            search_aliases=["talking", "lip sync", "multi person", "bind your avatar"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=host.models(),
                    default="toy",
                    tooltip="Which model: 'toy' (drawn puppets, 96x64, runs anywhere), 'official' (the released "
                    "weights; real people), or one in models/bindyouravatar: a converted .safetensors file, or a "
                    "folder with a bundle.json. One that is not complete says what is missing and how to get it.",
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
                io.Combo.Input(
                    "vram",
                    options=VRAM,
                    default="auto",
                    optional=True,  # graphs made before it was there still run
                    tooltip="How many GB of GPU memory to make do with. 'auto': what the card has. Where the "
                    "transformer does not fit, its blocks are streamed through the card (a little slower, the same "
                    "video) and the video is decoded in tiles.",
                ),
                io.Boolean.Input(
                    "download",
                    default=False,
                    optional=True,
                    tooltip="Fetch what is missing of the model first, into models/bindyouravatar (official: about 30 "
                    "GB; can be stopped and gone on with). Off: nothing is ever downloaded. See the help page for the "
                    "licences.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="ComfyUI's own CogVideoX VAE (Load VAE), used in place of the model's: moved and tiled by "
                    "ComfyUI. Pictures differ slightly.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="ComfyUI's own T5-XXL (Load CLIP, type 'cogvideox'), used in place of the model's: any "
                    "file that ComfyUI reads, fp8 too.",
                ),
            ],
            outputs=[types.Model.Output("model", tooltip="Transformer, encoders and video codec; feeds Scene.")],
        )

    @classmethod
    @host.told_plainly
    def execute(
        cls,
        model: str,
        dtype: str,
        memory: str,
        vram: str = "auto",
        download: bool = False,
        vae: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        import torch

        from bya_core.weights.loader import load_bundle

        host.models()  # so that models in ComfyUI's folders are found by their names
        if download:
            host.fetch(model)
        wanted = None if dtype == "as stored" else getattr(torch, dtype)
        bundle = load_bundle(model, dtype=wanted, components=host.given(vae, clip))
        return io.NodeOutput(host.adopt(bundle, memory == "low", vram))
