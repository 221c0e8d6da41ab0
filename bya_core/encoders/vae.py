"""The CogVideoX video VAE behind the `VideoCodec` Protocol."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

SMALL = 1 << 20
"""Numbers in a video. Of a single smaller one, torch on a processor computes convolutions by a way of its own that
takes twice the time of two such videos by oneDNN."""


class CogVideoXCodec:
    """Pixels [B, 3, F, height, width] in -1..1 <-> normalised latents [B, T, C, H, W].

    Args:
        vae: any `AutoencoderKLCogVideoX`; its config gives the factors, the scale and, where it has them, the mean
            and deviation of each channel.
    """

    def __init__(self, vae: Any) -> None:  # diffusers does not type what its classes can do
        self.vae = vae.eval()
        config = vae.config
        self.space_factor = 2 ** (len(config.block_out_channels) - 1)
        self.time_factor = int(config.temporal_compression_ratio)
        self.latent_channels = int(config.latent_channels)
        scale = float(config.scaling_factor)
        self.mean = torch.tensor(config.latents_mean or [0.0]).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(config.latents_std or [1.0]).view(1, -1, 1, 1, 1) / scale

    def to(self, device: torch.device | str) -> CogVideoXCodec:
        """Move the VAE; returns itself."""
        self.vae.to(device)
        return self

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """The mean of the posterior, normalised: the same pixels always give the same latents."""
        latents = self.vae.encode(video.to(self.vae.dtype)).latent_dist.mode()
        latents = (latents - self.mean.to(latents)) / self.std.to(latents)
        return rearrange(latents, "b c t h w -> b t c h w")

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents -> pixels, about -1..1.

        The VAE makes one frame of the first latent only where their number is odd; of an even number it makes
        `time_factor`, of which the last is the one.
        """
        frames = (latents.shape[1] - 1) * self.time_factor + 1
        count, _, _, height, width = latents.shape
        size = 3 * frames * height * width * self.space_factor**2
        if count == 1 and latents.device.type == "cpu" and size < SMALL:
            latents = latents.expand(2, -1, -1, -1, -1)
        latents = rearrange(latents.to(self.vae.dtype), "b t c h w -> b c t h w")
        pixels = self.vae.decode(latents * self.std.to(latents) + self.mean.to(latents)).sample
        return pixels[:count, :, -frames:]
