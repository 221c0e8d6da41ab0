"""Protocols of the encoders, so that any text, face, speech or video backbone fits the same pipeline.

Shapes: B batch, N characters, F video frames, T latent frames, H W latent size, L text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class FaceFeatures:
    """Features of one reference image.

    Args:
        identity: Identity vector [id_dim] (face recognition and pooled image features).
        hidden: K hidden states with P patches each, [K, P, vit_dim].
        portrait: The face on a white background, [3, h, w] in [0, 1]; shown on the reference canvas.
        notices: Warnings about the image, one sentence each.
    """

    identity: Tensor
    hidden: Tensor
    portrait: Tensor
    notices: tuple[str, ...] = ()


@runtime_checkable
class TextEncoder(Protocol):
    """Encodes prompts."""

    def encode(self, prompts: list[str]) -> Tensor:
        """Text tokens [B, L, text_dim] of B prompts."""
        ...

    def truncation(self, prompt: str) -> str | None:
        """How a prompt is cut, such as "has 63 words, of which the model reads 48"; None if it is read completely."""
        ...


@runtime_checkable
class FaceEncoder(Protocol):
    """Encodes reference images."""

    def encode(self, image: Tensor) -> FaceFeatures:
        """Features of the face in an image [3, H, W] in [0, 1]. Raises `InputError` if there is no face."""
        ...


@runtime_checkable
class SpeechEncoder(Protocol):
    """Encodes speech.

    Attributes:
        sample_rate: Sample rate of its input in Hz.
    """

    sample_rate: int

    def encode(self, waveform: Tensor, num_frames: int, lead: int = 0) -> Tensor:
        """Speech features per video frame, with two context frames on each side.

        Context frames are encoded from the recording where it extends beyond the video, else from silence.

        Args:
            waveform: Mono samples [S] at `sample_rate`.
            num_frames: Number of video frames F.
            lead: Number of video frames (0 to 2) by which the waveform starts before the video.

        Returns:
            [F + 4, blocks, channels].
        """
        ...


@runtime_checkable
class VideoCodec(Protocol):
    """Encodes and decodes video.

    Attributes:
        space_factor: Pixels per latent cell and side.
        time_factor: Video frames per latent frame, after the first.
        latent_channels: Number of latent channels C.
    """

    space_factor: int
    time_factor: int
    latent_channels: int

    def encode(self, video: Tensor) -> Tensor:
        """Normalized latents [B, T, C, H, W] of videos [B, 3, F, height, width] in [-1, 1]."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Videos [B, 3, F, height, width] in [-1, 1] of normalized latents [B, T, C, H, W]."""
        ...
