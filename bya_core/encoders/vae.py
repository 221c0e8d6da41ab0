"""The CogVideoX video VAE as a `VideoCodec`."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

SMALL_VIDEO = 1 << 20
"""Number of values below which a single video is decoded twice on the CPU: for smaller inputs of batch size 1, PyTorch
selects a convolution that takes longer than two videos with oneDNN."""


class CogVideoXCodec:
    """`VideoCodec` around `AutoencoderKLCogVideoX`.

    Args:
        vae: The VAE; its config provides the factors, the scale and, if present, mean and standard deviation of the
            latent channels.
    """

    def __init__(self, vae: Any) -> None:  # diffusers classes are not fully typed
        self.vae = vae.eval()
        config = vae.config
        self.space_factor = 2 ** (len(config.block_out_channels) - 1)
        self.time_factor = int(config.temporal_compression_ratio)
        self.latent_channels = int(config.latent_channels)
        scale = float(config.scaling_factor)
        self.mean = torch.tensor(config.latents_mean or [0.0]).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(config.latents_std or [1.0]).view(1, -1, 1, 1, 1) / scale

    def to(self, device: torch.device | str) -> CogVideoXCodec:
        """Move the VAE; returns `self`."""
        self.vae.to(device)
        return self

    @torch.no_grad()
    def encode(self, video: Tensor) -> Tensor:
        """See `VideoCodec`. Uses the mode of the posterior, so the result is deterministic."""
        latents = self.vae.encode(video.to(self.vae.dtype)).latent_dist.mode()
        latents = (latents - self.mean.to(latents)) / self.std.to(latents)
        return rearrange(latents, "b c t h w -> b t c h w")

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """See `VideoCodec`.

        For an even number of latent frames, the VAE decodes the first one to `time_factor` frames, of which the last is
        kept.
        """
        frames = (latents.shape[1] - 1) * self.time_factor + 1
        count, _, _, height, width = latents.shape
        size = 3 * frames * height * width * self.space_factor**2
        if count == 1 and latents.device.type == "cpu" and size < SMALL_VIDEO:
            latents = latents.expand(2, -1, -1, -1, -1)
        latents = rearrange(latents.to(self.vae.dtype), "b t c h w -> b c t h w")
        video = self.vae.decode(latents * self.std.to(latents) + self.mean.to(latents)).sample
        return video[:count, :, -frames:]
