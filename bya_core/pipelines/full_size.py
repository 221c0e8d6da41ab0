"""The released architecture at full size with random weights: for testing and measuring a machine without a download.

Weights follow `weights.random_weights`. Time and memory are those of the real model, only the picture is noise.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bya_core.config import SamplingConfig
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.memory.planner import free_host_memory, held_while_denoising
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
FACES, PATCHES = 2, 577  # characters, and tokens of a feature map of EVA02-CLIP at 336 pixels
STEPS = 50  # of the whole run; one of them is taken
ENCODERS = {"text": 9_524_000_000, "face": 900_000_000, "speech": 190_000_000}
"""Bytes of the encoders that the real job has beside this: T5-XXL, face recognition and EVA02-CLIP, wav2vec2."""


def build(
    layers: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    config: dict[str, Any] | None = None,
    codec: bool = True,
    native: NativeSize = NATIVE,
    ruled: bool = True,
    versions: int = 0,
) -> ModelBundle:
    """The released architecture with random weights, on the CPU; its encoders are left out.

    Args:
        layers: blocks of the transformer; None = all 42.
        config: other settings of the transformer in place of the published ones.
        codec: also the video codec (with the library's own random weights).
        ruled: weights by `weight_rule`; else whatever is fastest.
        versions: of the video that one step will compute on this machine's processor; room for them is asked for too.

    Raises:
        InputError: the machine has not enough memory for it.
    """
    from accelerate import init_empty_weights

    from bya_core.encoders.vae import CogVideoXCodec
    from bya_core.models.transformer import BindYourAvatarTransformer3DModel
    from bya_core.sampling.schedulers import COGVIDEOX_SCHEDULE

    settings = {**(config or {}), **({} if layers is None else {"num_layers": layers})}
    # defaults of the transformer are the published configuration
    with init_empty_weights():
        transformer: Any = BindYourAvatarTransformer3DModel(**settings)
    sizes = [tensor.numel() for tensor in (*transformer.parameters(), *transformer.buffers())]
    count = sum(sizes)
    held = held_while_denoising(_grid(transformer.config, native), _width(transformer), versions, dtype.itemsize)
    if versions:  # the processor's convolution lays its weights out anew: the largest ones are there twice for a while
        held += max(sizes) * dtype.itemsize
    what = f"{count / 1e9:.2f} billion weights of {dtype.itemsize} bytes" + (" and one step" if versions else "")
    _check_host(count * dtype.itemsize + held, what)
    if ruled:
        fill_random(transformer, SALT, dtype)
    else:
        fill_fast(transformer, dtype)
    vae = _codec(dtype) if codec else _NoCodec(transformer.config.out_channels)
    return ModelBundle(
        name="full size, random weights",
        transformer=transformer,
        text=_Absent(),
        face=_Absent(),
        speech=_Absent(),
        codec=CogVideoXCodec(vae) if codec else vae,
        scheduler_config=COGVIDEOX_SCHEDULE,
        native=native,
        max_characters=2,
    )


def _grid(config: Any, native: NativeSize) -> TokenGrid:
    size = native.num_frames, native.height, native.width
    factors = {"space_factor": 8, "time_factor": config.temporal_compression_ratio}
    return TokenGrid.from_pixels(*size, patch=config.patch_size, **factors)


def _width(transformer: Any) -> int:
    return int(transformer.config.num_attention_heads * transformer.config.attention_head_dim)


class _Absent:
    """An encoder that is left out."""

    sample_rate = 16000

    def encode(self, *_: Any) -> Any:
        raise InputError("an encoder was asked for", "a model with encoders", "use a model of the registry")


class _NoCodec(_Absent):
    """Sizes of the CogVideoX codec, without its weights."""

    space_factor, time_factor = 8, 4

    def __init__(self, channels: int) -> None:
        self.latent_channels = channels

    decode = _Absent.encode


def _codec(dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKLCogVideoX

    torch.manual_seed(0)
    vae: Any = AutoencoderKLCogVideoX(**VAE)
    return vae.to(dtype).requires_grad_(False)


def fill_fast(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Weights of the right size by the fastest way there is: for measuring."""
    from accelerate.utils import set_module_tensor_to_device

    pool = torch.randn(2**20).to(dtype)
    for name, old in [*module.named_parameters(), *module.named_buffers()]:
        if old.device.type != "meta":
            value = old.to(dtype)
        else:
            scale = 1 / math.sqrt(math.prod(old.shape[1:])) if old.dim() > 1 else 0.1
            value = (pool * scale).repeat(-(-old.numel() // len(pool)))[: old.numel()].view(old.shape).contiguous()
        set_module_tensor_to_device(module, name, "cpu", value=value, dtype=dtype)
    module.requires_grad_(False).eval()


def _check_host(size: int, what: str) -> None:
    free = free_host_memory()
    if 1.1 * size > free:
        raise InputError(
            f"{free / 1e9:.1f} GB of memory are free on this machine",
            f"{1.1 * size / 1e9:.1f} GB for {what}",
            "close other programs, or take fewer blocks with --layers",
        )


@torch.no_grad()
def one_step(bundle: ModelBundle, versions: int = 2, tracker: ProgressTracker | None = None, steps: int = 1) -> Tensor:
    """The first step of a run of 50 at the bundle's native size -> latents [1, T, C, H, W].

    Args:
        versions: of the video that guidance computes, 1 or 2.
        steps: more steps than one.
    """
    from bya_core.sampling import Conditions, build_scheduler, denoise

    tracker, native, model = tracker or ProgressTracker(), bundle.native, bundle.transformer
    device, dtype, c = bundle.device, bundle.dtype, bundle.transformer.config
    grid = bundle.grid(native.num_frames, native.height, native.width)
    shape = grid.latent_shape(c.out_channels)

    def given(name: str, *sizes: int) -> Tensor:
        return draw_input(name, sizes, SALT).to(device, dtype)

    with tracker.stage("Encoding faces and audio"):
        identity = given("identity", 1, FACES, c.lfe_id_dim)
        hidden = given("hidden", 1, FACES, c.lfe_num_scale, PATCHES, c.lfe_vit_dim)
        speech = given("speech", 1, FACES, native.num_frames + c.audio_window - 1, c.audio_blocks, c.audio_channels)
        conditions = Conditions(
            text=given("text", 1, c.max_text_seq_length, c.text_embed_dim),
            negative_text=given("negative text", 1, c.max_text_seq_length, c.text_embed_dim),
            latent_shape=shape,
            face_tokens=model.encode_faces(identity, hidden),
            audio_tokens=model.encode_speech(speech),
            silent_audio_tokens=model.encode_speech(speech * 0),
            canvas_latents=given("canvas", 1, *shape),
            first_frame_latents=given("first frame", 1, *shape),
        )
        wait(device)
    scale = 7.0 if versions > 1 else 1.0
    sampling = SamplingConfig(steps=STEPS, guidance_scale=scale, audio_guidance_scale=scale)
    scheduler = build_scheduler("dpm", bundle.scheduler_config)
    noise = draw_input("noise", (1, *shape), SALT)
    with tracker.stage("Denoising"):
        made = denoise(model, scheduler, conditions, sampling, latents=noise, stop_at=steps).latents
        wait(device)
    return made


def wait(device: torch.device) -> None:
    """Until the device has done all that it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
