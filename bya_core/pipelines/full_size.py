"""The released architecture at full size with random weights, for testing and profiling without a download.

Weights are drawn by `weights.random_weights`. Time and memory are those of the released model; the images are noise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bya_core.config import Preset, SamplingConfig
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.memory.planner import free_host_memory
from bya_core.memory.sizes import denoising_memory
from bya_core.progress import ProgressTracker
from bya_core.weights.bundle import ModelBundle, NativeSize
from bya_core.weights.random_weights import draw_input, fill_random

SALT = "selftest:"
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 256, 512),
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    "latent_channels": 16,
    "layers_per_block": 3,
    "sample_height": 480,
    "sample_width": 720,
    "scaling_factor": 0.7,
}
NATIVE = NativeSize(480, 720, 49)
CHARACTERS, CLIP_TOKENS = 2, 577  # tokens of EVA02-CLIP at 336 pixels
STEPS = 50  # length of the schedule


def build_full_size(
    layers: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    config: dict[str, Any] | None = None,
    codec: bool = True,
    native: NativeSize = NATIVE,
    branches: int = 0,
) -> ModelBundle:
    """Build the released architecture with random weights on the CPU, without encoders.

    Args:
        layers: Transformer blocks; `None` builds all 42.
        dtype: Dtype of the weights.
        config: Arguments of the transformer that replace the published ones.
        codec: Also build the video codec (with the random initialization of diffusers).
        native: Resolution and length.
        branches: Guidance branches of a step that will run on the CPU; memory for it is checked as well.

    Raises:
        InputError: The machine has too little memory.
    """
    from accelerate import init_empty_weights

    from bya_core.encoders.vae import CogVideoXCodec
    from bya_core.models.transformer import BindYourAvatarTransformer3DModel
    from bya_core.sampling.schedulers import COGVIDEOX_SCHEDULE

    arguments = {**(config or {}), **({} if layers is None else {"num_layers": layers})}
    with init_empty_weights():
        transformer: Any = BindYourAvatarTransformer3DModel(**arguments)
    c = transformer.config
    sizes = [tensor.numel() for tensor in (*transformer.parameters(), *transformer.buffers())]
    factors = {"space_factor": 8, "time_factor": c.temporal_compression_ratio}
    grid = TokenGrid.from_pixels(native.num_frames, native.height, native.width, patch=c.patch_size, **factors)
    activations = denoising_memory(grid, c.num_attention_heads * c.attention_head_dim, branches, dtype.itemsize)
    if branches:  # convolutions on the CPU temporarily copy their weights to another memory layout
        activations += max(sizes) * dtype.itemsize
    what = f"{sum(sizes) / 1e9:.2f} billion weights of {dtype.itemsize} bytes" + (" and one step" if branches else "")
    _check_host_memory(sum(sizes) * dtype.itemsize + activations, what)
    fill_random(transformer, SALT, dtype)
    return ModelBundle(
        name="full size, random weights",
        transformer=transformer,
        text=_NoEncoder(),
        face=_NoEncoder(),
        speech=_NoEncoder(),
        codec=CogVideoXCodec(_build_vae(dtype)) if codec else _NoCodec(c.out_channels),
        scheduler_config=COGVIDEOX_SCHEDULE,
        native=native,
        max_characters=2,
    )


class _NoEncoder:
    """Placeholder for an encoder."""

    sample_rate = 16000

    def truncation(self, prompt: str) -> str | None:
        return None

    def encode(self, *_: Any) -> Any:
        raise InputError("a model without encoders", "a model with encoders", "use a model of the registry")


class _NoCodec(_NoEncoder):
    """Placeholder with the compression factors of the CogVideoX VAE."""

    space_factor, time_factor = 8, 4

    def __init__(self, channels: int) -> None:
        self.latent_channels = channels

    decode = _NoEncoder.encode


def _build_vae(dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    vae: Any = AutoencoderKLCogVideoX(**VAE)
    return vae.to(dtype).requires_grad_(False)


def _check_host_memory(size: int, what: str) -> None:
    free = free_host_memory()
    if 1.1 * size > free:
        raise InputError(
            f"{free / 1e9:.1f} GB of memory available on this machine",
            f"{1.1 * size / 1e9:.1f} GB for {what}",
            "close other programs, or use fewer blocks with --layers",
        )


@torch.no_grad()
def run_steps(
    bundle: ModelBundle,
    branches: int = 2,
    tracker: ProgressTracker | None = None,
    steps: int = 1,
    preset: Preset = "exact",
) -> Tensor:
    """The first steps of a run of 50 at the native resolution.

    Args:
        bundle: Result of `build_full_size`.
        branches: Guidance branches, 1 or 2.
        tracker: Measures the stages.
        steps: Number of steps.
        preset: Quality and speed preset.

    Returns:
        Latents [1, T, C, H, W].
    """
    from bya_core.sampling import Conditions, build_scheduler, denoise

    tracker, native, model = tracker or ProgressTracker(), bundle.native, bundle.transformer
    device, dtype, c = bundle.device, bundle.dtype, bundle.transformer.config
    grid = bundle.grid(native.num_frames, native.height, native.width)
    shape = grid.latent_shape(c.out_channels)

    def draw(name: str, *sizes: int) -> Tensor:
        return draw_input(name, sizes, SALT).to(device, dtype)

    with tracker.stage("Encoding faces and audio"):
        identity = draw("identity", 1, CHARACTERS, c.lfe_id_dim)
        features = draw("hidden", 1, CHARACTERS, c.lfe_num_scale, CLIP_TOKENS, c.lfe_vit_dim)
        length = native.num_frames + c.audio_window - 1
        speech = draw("speech", 1, CHARACTERS, length, c.audio_blocks, c.audio_channels)
        conditions = Conditions(
            text=draw("text", 1, c.max_text_seq_length, c.text_embed_dim),
            negative_text=draw("negative text", 1, c.max_text_seq_length, c.text_embed_dim),
            latent_shape=shape,
            face_tokens=model.encode_faces(identity, features),
            audio_tokens=model.encode_speech(speech),
            silent_audio_tokens=model.encode_speech(speech * 0),
            canvas_latents=draw("canvas", 1, *shape),
            first_frame_latents=draw("first frame", 1, *shape),
        )
        synchronize(device)
    scale = 7.0 if branches > 1 else 1.0
    sampling = SamplingConfig(steps=STEPS, guidance_scale=scale, audio_guidance_scale=scale, preset=preset)
    scheduler = build_scheduler("dpm", bundle.scheduler_config)
    noise = draw_input("noise", (1, *shape), SALT)
    with tracker.stage("Denoising"):
        latents = denoise(model, scheduler, conditions, sampling, latents=noise, stop_at=steps).latents
        synchronize(device)
    return latents


def synchronize(device: torch.device) -> None:
    """Wait for all work queued on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
