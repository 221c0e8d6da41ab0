"""A small model with random weights, and functions that write input files."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor

from bya_core.config import SamplingConfig
from bya_core.encoders.protocols import FaceFeatures
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights.bundle import ModelBundle, NativeSize

RATE = 16000
TEXT, IDENTITY, VIT, SCALES, BLOCKS, SOUND = 8, 6, 10, 2, 3, 12


class FakeText:
    def encode(self, prompts: list[str]) -> Tensor:
        return torch.stack([torch.full((5, TEXT), float(len(prompt) % 7)) for prompt in prompts])

    def truncation(self, prompt: str) -> str | None:
        return None


class FakeFace:
    def encode(self, image: Tensor) -> FaceFeatures:
        small = F.adaptive_avg_pool2d(image, (4, 5)).flatten()
        hidden = small[: VIT * SCALES].reshape(SCALES, 1, VIT).expand(-1, 7, -1)
        return FaceFeatures(small[:IDENTITY], hidden, image)


class FakeSpeech:
    sample_rate = RATE

    def encode(self, waveform: Tensor, num_frames: int) -> Tensor:
        per_frame = RATE // 25
        padded = F.pad(waveform, (2 * per_frame, 0))
        padded = F.pad(padded, (0, (num_frames + 4) * per_frame))[: (num_frames + 4) * per_frame]
        loudness = padded.reshape(num_frames + 4, per_frame).square().mean(1).sqrt()
        return repeat(loudness, "f -> f b c", b=BLOCKS, c=SOUND)


class FakeCodec:
    space_factor, time_factor, latent_channels = 8, 4, 3

    def encode(self, video: Tensor) -> Tensor:
        frames = rearrange(video, "b c f h w -> (b f) c h w")
        small = rearrange(F.avg_pool2d(frames, 8), "(b f) c h w -> b f c h w", b=video.shape[0])
        return small[:, ::4]

    def decode(self, latents: Tensor) -> Tensor:
        held = torch.cat([latents[:, :1], latents[:, 1:].repeat_interleave(4, dim=1)], dim=1)
        large = F.interpolate(rearrange(held, "b f c h w -> (b f) c h w"), scale_factor=8)
        return rearrange(large, "(b f) c h w -> b c f h w", b=latents.shape[0])


def fake_transformer() -> BindYourAvatarTransformer3DModel:
    torch.manual_seed(0)
    model = BindYourAvatarTransformer3DModel(
        flavour="paper", num_attention_heads=2, attention_head_dim=16, in_channels=9, out_channels=3,
        time_embed_dim=16, text_embed_dim=TEXT, num_layers=2, sample_width=12, sample_height=8, sample_frames=9,
        use_learned_positional_embeddings=False, cross_attn_interval=1, cross_attn_dim_head=8,
        cross_attn_num_heads=2, lfe_dim=16, lfe_depth=SCALES, lfe_dim_head=8, lfe_heads=2, lfe_num_id_token=2,
        lfe_num_queries=4, lfe_output_dim=16, lfe_ff_mult=1, lfe_vit_dim=VIT, lfe_id_dim=IDENTITY, lfe_hidden_dim=16,
        lfe_num_scale=SCALES, router_dim=16, router_heads=2, router_blocks=1, audio_dim=8, audio_heads=2,
        audio_dim_head=8, audio_blocks=BLOCKS, audio_channels=SOUND, audio_hidden_dim=8, audio_context_tokens=2,
    )  # fmt: skip
    for parameter in model.parameters():  # some layers are initialized to zero
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def fake_bundle() -> ModelBundle:
    return ModelBundle(
        name="toy",
        transformer=fake_transformer(),
        text=FakeText(),
        face=FakeFace(),
        speech=FakeSpeech(),
        codec=FakeCodec(),
        scheduler_config={},
        native=NativeSize(height=64, width=96, num_frames=9),
        sampling=SamplingConfig(steps=2, guidance_scale=2.0, audio_guidance_scale=2.0),
        max_characters=2,
        canvas_layout="row",
    )


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE) -> None:
    """[S] or [S, C] in -1..1 as 16-bit wav."""
    samples = samples[:, None] if samples.ndim == 1 else samples
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())


def tone(seconds: float, hertz: float = 220.0, rate: int = RATE) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write_picture(path: Path, seed: int = 0, size: tuple[int, int] = (40, 32)) -> None:
    """An image of noise of size (width, height)."""
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
