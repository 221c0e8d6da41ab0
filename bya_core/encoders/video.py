"""The CogVideoX video VAE behind the `VideoCodec` Protocol."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLCogVideoX
from einops import rearrange
from torch import Tensor


class CogVideoXCodec:
    """Pixels [B, 3, F, height, width] in -1..1 <-> scaled latents [B, T, C, H, W].

    Args:
        vae: any `AutoencoderKLCogVideoX`; its config gives the factors and the scale.
    """

    def __init__(self, vae: AutoencoderKLCogVideoX) -> None:
        self.vae = vae.eval()
        config = vae.config
        self.space_factor = 2 ** (len(config.block_out_channels) - 1)
        self.time_factor = int(config.temporal_compression_ratio)
        self.latent_channels = int(config.latent_channels)
        self.scale = float(config.scaling_factor)

    def to(self, device: torch.device | str) -> CogVideoXCodec:
        """Move the VAE; returns itself."""
        self.vae.to(device)
        return self

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """The mean of the posterior, scaled: the same pixels always give the same latents."""
        latents = self.vae.encode(video.to(self.vae.dtype)).latent_dist.mode() * self.scale
        return rearrange(latents, "b c t h w -> b t c h w")

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents -> pixels, about -1..1."""
        latents = rearrange(latents.to(self.vae.dtype), "b t c h w -> b c t h w") / self.scale
        return self.vae.decode(latents).sample
