"""Estimate time and memory of a run from the configuration of a model, without reading weights.

The operations of a step and of the decoder are counted on the "meta" device; a short benchmark measures the speed of
this machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bya_core.config import SamplingConfig
from bya_core.encoders.domains import Domain
from bya_core.grid import TokenGrid
from bya_core.memory.sizes import build_meta_transformer, decoding_memory, denoising_memory, run_meta_step
from bya_core.scene.types import SceneDefaults

UTILIZATION = 0.35  # fraction of matrix multiplication speed that a run reaches; measured with the toy model


WEIGHTS = (".safetensors", ".pt", ".pth", ".onnx")


@dataclass(frozen=True)
class ModelFolder:
    """A model that is there but not loaded.

    Args:
        folder: with bundle.json, transformer/ and vae/, as the shipped toy one; or any other that can be loaded, or a
            converted file.
    """

    folder: Path

    def settings(self, *parts: str) -> dict[str, Any]:
        """One of its JSON files."""
        from bya_core.weights.loader import model_settings

        return model_settings(self.folder, *parts)

    @property
    def bytes(self) -> int:
        """Of all weights."""
        files = [self.folder] if self.folder.is_file() else self.folder.rglob("*")
        return sum(path.stat().st_size for path in files if path.suffix in WEIGHTS)

    @property
    def domain(self) -> Domain:
        """What its characters are: stated in bundle.json, or that of the encoders it needs."""
        from bya_core.weights.loader import encoders_for

        stated = self.settings("bundle.json").get("domain")
        if stated is not None:
            return stated
        official = encoders_for(self.settings("transformer", "config.json")) == "official"
        return "photos" if official else "puppets"

    @property
    def max_characters(self) -> int | None:
        return self.settings("bundle.json").get("max_characters")

    @property
    def defaults(self) -> SceneDefaults:
        bundle, vae = self.settings("bundle.json"), self.settings("vae", "config.json")
        patch = self.settings("transformer", "config.json")["patch_size"]
        return SceneDefaults(
            height=bundle["native"]["height"],
            width=bundle["native"]["width"],
            max_frames=bundle["native"]["num_frames"],
            size_unit=patch * 2 ** (len(vae["block_out_channels"]) - 1),
            time_factor=vae["temporal_compression_ratio"],
            sampling=SamplingConfig(**bundle["sampling"]),
        )

    def grid(self, frames: int, height: int, width: int) -> TokenGrid:
        patch = self.settings("transformer", "config.json")["patch_size"]
        unit = self.defaults.size_unit
        return TokenGrid.from_pixels(
            frames, height, width, patch=patch, space_factor=unit // patch, time_factor=self.defaults.time_factor
        )


@dataclass(frozen=True)
class Estimate:
    """Cost of one video.

    Args:
        seconds: of denoising and decoding on this machine, give or take a factor of two.
        gigabytes: weights and what is held while computing.
    """

    seconds: float
    gigabytes: float


def estimate(model: ModelFolder, grid: TokenGrid, characters: int, sampling: SamplingConfig) -> Estimate:
    """What a video on `grid` with so many characters costs."""
    from bya_core.sampling.guidance import guidance_branches

    passes = len(guidance_branches(sampling.guidance_scale, sampling.audio_guidance_scale))
    step, width, kept = _transformer(model, grid, characters)
    decoding, channels = _decoder(model, grid)
    operations = step * passes * sampling.steps + decoding
    size = 2 if torch.cuda.is_available() else 4
    denoising = denoising_memory(grid, width, passes, size) + kept * passes * size // 4
    held = max(denoising, decoding_memory(grid, size, channels))
    seconds = operations / (UTILIZATION * operations_per_second())
    return Estimate(seconds, (model.bytes + held) / 1e9)


def _transformer(model: ModelFolder, grid: TokenGrid, characters: int) -> tuple[float, int, int]:
    """Of one call on one version of the video: operations, channels of a token, bytes kept from step to step."""
    from torch.utils.flop_counter import FlopCounterMode

    twin = build_meta_transformer(model.settings("transformer", "config.json"))
    with FlopCounterMode(display=False) as counter:
        kept = run_meta_step(twin, grid, characters)
    c = twin.config
    return float(counter.get_total_flops()), c.num_attention_heads * c.attention_head_dim, kept.bytes


def _decoder(model: ModelFolder, grid: TokenGrid) -> tuple[float, int]:
    """Operations of decoding the video, and channels where it works on pixels."""
    from diffusers import AutoencoderKLCogVideoX
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        vae = AutoencoderKLCogVideoX.from_config(model.settings("vae", "config.json")).eval()
        frames, channels, rows, columns = grid.latent_shape(vae.config.latent_channels)
        vae.decode(torch.zeros(1, channels, frames, rows, columns))
    return float(counter.get_total_flops()), int(vae.config.block_out_channels[0])


def operations_per_second(size: int = 512, repeats: int = 8) -> float:
    """How fast this machine multiplies, in about 50 ms."""
    cuda = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if cuda else ("cpu", torch.float32)
    size = 8 * size if cuda else size
    a = torch.rand(size, size, device=device, dtype=dtype)
    a @ a
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        a @ a
    if cuda:
        torch.cuda.synchronize()
    return repeats * 2.0 * size**3 / (time.perf_counter() - start)
