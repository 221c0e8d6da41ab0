"""Estimate time and memory of a run from the configuration of a model, without reading weights.

The operations of a step and of the decoder are counted on the "meta" device; a short benchmark measures the speed of
this machine.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bya_core.config import SamplingConfig
from bya_core.encoders.domains import Domain
from bya_core.grid import TokenGrid
from bya_core.memory.sizes import build_meta_transformer, decoding_memory, denoising_memory, run_meta_step
from bya_core.scene.types import SceneDefaults

UTILIZATION = 0.35  # fraction of the matrix multiplication speed that a run reaches; measured with the toy model
DECODED_TOGETHER = 2  # latent frames that the decoder of CogVideoX processes at once
WEIGHTS = (".safetensors", ".pt", ".pth", ".onnx")


@dataclass(frozen=True)
class ModelFolder:
    """A model on this machine whose weights are not loaded.

    Args:
        folder: anything that `bya_core.load_model` accepts as a path.
    """

    folder: Path

    def settings(self, *parts: str) -> dict[str, Any]:
        """Content of a JSON file of the model, such as ("vae", "config.json")."""
        from bya_core.weights.loader import model_settings

        return model_settings(self.folder, *parts)

    @property
    def bytes(self) -> int:
        """Size of all weights."""
        files = [self.folder] if self.folder.is_file() else self.folder.rglob("*")
        return sum(path.stat().st_size for path in files if path.suffix in WEIGHTS)

    @property
    def domain(self) -> Domain:
        """Kind of characters, from bundle.json or from the encoders of the model."""
        from bya_core.weights.loader import encoders_for

        official = encoders_for(self.settings("transformer", "config.json")) == "official"
        return self.settings("bundle.json").get("domain", "photos" if official else "puppets")

    @property
    def max_characters(self) -> int | None:
        """Largest number of characters in the training data; None = unknown."""
        return self.settings("bundle.json").get("max_characters")

    @property
    def defaults(self) -> SceneDefaults:
        """Native size and sampling."""
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
        """Token grid of a video."""
        patch = self.settings("transformer", "config.json")["patch_size"]
        unit = self.defaults.size_unit
        return TokenGrid.from_pixels(
            frames, height, width, patch=patch, space_factor=unit // patch, time_factor=self.defaults.time_factor
        )


@dataclass(frozen=True)
class Estimate:
    """Cost of one video.

    Args:
        seconds: duration of denoising and decoding on this machine, within a factor of two.
        gigabytes: memory for weights and activations.
    """

    seconds: float
    gigabytes: float


def estimate(model: ModelFolder, grid: TokenGrid, characters: int, sampling: SamplingConfig) -> Estimate:
    """Estimate the cost of a video on `grid` with so many characters."""
    from bya_core.sampling.guidance import guidance_branches

    passes = len(guidance_branches(sampling.guidance_scale, sampling.audio_guidance_scale))
    step, width, cache = _transformer_cost(model, grid, characters)
    batch, channels = _decoder_cost(model, replace(grid, frames=DECODED_TOGETHER))
    decoding = batch * grid.frames / DECODED_TOGETHER
    size = 2 if torch.cuda.is_available() else 4
    denoising = denoising_memory(grid, width, passes, size) + cache * passes * size // 4
    activations = max(denoising, decoding_memory(grid, size, channels))
    seconds = (step * passes * sampling.steps + decoding) / (UTILIZATION * operations_per_second())
    return Estimate(seconds, (model.bytes + activations) / 1e9)


@functools.lru_cache(maxsize=32)
def _transformer_cost(model: ModelFolder, grid: TokenGrid, characters: int) -> tuple[float, int, int]:
    """Operations of one call for one guidance branch, channels per token, and bytes of the KV cache in float32.

    Layers repeat with a period, so that one and two periods are counted, and the other layers cost what the second did.
    """
    from bya_core.weights.loader import default_arguments

    config = default_arguments() | model.settings("transformer", "config.json")
    layers = config["num_layers"]
    period = math.lcm(config["cross_attn_interval"], config["audio_attn_interval"])
    short, long = (config["injection_start"] + n * period for n in (1, 2))
    if layers <= long:
        short = long = layers
    first = _count(config | {"num_layers": short}, grid, characters)
    second = first if long == short else _count(config | {"num_layers": long}, grid, characters)
    periods = (layers - short) / period
    operations, cached = (one + periods * (other - one) for one, other in zip(first, second, strict=True))
    return operations, config["num_attention_heads"] * config["attention_head_dim"], round(cached)


def _count(config: dict[str, Any], grid: TokenGrid, characters: int) -> tuple[float, int]:
    """Operations of one call of a transformer, and bytes of its KV cache."""
    from torch.utils.flop_counter import FlopCounterMode

    transformer = build_meta_transformer(config)
    with FlopCounterMode(display=False) as counter:
        cache = run_meta_step(transformer, grid, characters)
    return float(counter.get_total_flops()), cache.bytes


@functools.lru_cache(maxsize=32)
def _decoder_cost(model: ModelFolder, grid: TokenGrid) -> tuple[float, int]:
    """Operations of decoding latent frames, and channels of the decoder at full resolution."""
    from diffusers import AutoencoderKLCogVideoX
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        vae = AutoencoderKLCogVideoX.from_config(model.settings("vae", "config.json")).eval()
        frames, channels, rows, columns = grid.latent_shape(vae.config.latent_channels)
        vae.decode(torch.zeros(1, channels, frames, rows, columns))
    return float(counter.get_total_flops()), int(vae.config.block_out_channels[0])


def operations_per_second(size: int = 512, repeats: int = 8) -> float:
    """Matrix multiplication speed of this machine, measured in about 50 ms."""
    from torch.utils.benchmark import Timer

    cuda = torch.cuda.is_available()
    size, device, dtype = (8 * size, "cuda", torch.bfloat16) if cuda else (size, "cpu", torch.float32)
    matrix = torch.rand(size, size, device=device, dtype=dtype)
    seconds = Timer("a @ a", globals={"a": matrix}, num_threads=torch.get_num_threads()).timeit(repeats).mean
    return 2.0 * size**3 / seconds
