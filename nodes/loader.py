"""BYA Load Model and BYA Load LoRA."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from bya_core.config import LoraConfig

from . import checks, host, types
from .schema import made, schema, widget

DTYPES = ["default", "float32", "bfloat16", "float16"]
MEMORY_MODES = ["auto", "low"]
VRAM_GB = ["auto", "8", "12", "16", "24", "48", "80"]


class Loader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Loader",
            "BYA Load Model",
            "Loads a Bind-Your-Avatar model with its encoders. Nothing is downloaded unless download is on. The toy "
            "model comes with the pack: drawn puppets, no GPU.",
            folder="video",
            search_aliases=["talking", "lip sync", "dialogue", "multi speaker", "avatar", "bind your avatar"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=host.model_names(),
                    default="toy",
                    tooltip="toy: drawn puppets at 96x64, runs on any machine. official: the released weights, real "
                    "people. Others: converted .safetensors files and model folders in models/bindyouravatar, and "
                    "converted files in models/diffusion_models.",
                ),
                made(
                    io.Combo.Input,
                    "dtype",
                    options=DTYPES,
                    default="default",
                    optional=True,
                    advanced=True,
                    tooltip="Data type of the transformer. default is that of the checkpoint.",
                ),
                made(
                    io.Combo.Input,
                    "memory_mode",
                    options=MEMORY_MODES,
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="auto keeps components on the GPU until ComfyUI needs the memory (fastest). low unloads "
                    "each component after its node.",
                ),
                made(
                    io.Combo.Input,
                    "vram_gb",
                    options=VRAM_GB,
                    default="auto",
                    optional=True,
                    advanced=True,
                    tooltip="VRAM budget in GB. auto uses what the card has. If the transformer does not fit, its "
                    "blocks are streamed from host memory (slower, same video) and decoding is tiled.",
                ),
                io.Boolean.Input(
                    "download",
                    default=False,
                    optional=True,
                    tooltip="Download missing files of the model into models/bindyouravatar (official: about 30 GB; "
                    "can be interrupted and resumed). See the help page for licenses.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="CogVideoX VAE from Load VAE, instead of the model's. Managed and tiled by ComfyUI.",
                ),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="T5-XXL from Load CLIP (type cogvideox), instead of the model's. Any precision that "
                    "ComfyUI reads.",
                ),
                types.Lora.Input(
                    "lora",
                    optional=True,
                    tooltip="LoRAs to add to the transformer, from BYA Load LoRA.",
                ),
            ],
            outputs=[types.Model.Output("model", tooltip="The model. Connect to BYA Scene.")],
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None, download: bool | None = None) -> bool | str:
        return checks.validate(checks.check_packages, lambda: checks.check_model(model, bool(download)))

    @classmethod
    @host.plain_errors
    def execute(
        cls,
        model: str,
        dtype: str = "default",
        memory_mode: str = "auto",
        vram_gb: str = "auto",
        download: bool = False,
        vae: Any = None,
        clip: Any = None,
        lora: Any = (),
    ) -> io.NodeOutput:
        import torch

        from bya_core.weights.loader import load_bundle

        host.model_names()  # registers the model folders of ComfyUI
        if download:
            host.download(model)
        torch_dtype = None if dtype == "default" else getattr(torch, dtype)
        bundle = load_bundle(model, dtype=torch_dtype, components=host.host_components(vae, clip), lora=lora)
        return io.NodeOutput(host.manage_model(bundle, memory_mode == "low", vram_gb))


class LoadLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "LoadLora",
            "BYA Load LoRA",
            "Adds a LoRA to the model, for example one trained on your own characters. Chain several; the last one "
            "connects to BYA Load Model, which merges them into the weights.",
            folder="video",
            search_aliases=["lora", "adapter", "style", "fine-tune"],
            inputs=[
                io.Combo.Input(
                    "lora_name",
                    options=host.lora_names(),
                    tooltip="File in models/loras. Names of diffusers, peft, kohya and ComfyUI are understood.",
                ),
                widget(LoraConfig, "strength"),
                types.Lora.Input("lora", optional=True, tooltip="Other LoRAs; this one is added."),
            ],
            outputs=[
                types.Lora.Output("lora", tooltip="All LoRAs so far. Connect to BYA Load Model or BYA Load LoRA.")
            ],
        )

    @classmethod
    @host.plain_errors
    def execute(cls, lora_name: str, strength: float, lora: Any = ()) -> io.NodeOutput:
        from bya_core.weights.lora import parse_lora

        return io.NodeOutput((*lora, parse_lora((host.lora_path(lora_name), strength))))
