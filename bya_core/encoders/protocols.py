"""What an encoder must do, so that any text, face, speech or video backbone fits the same pipeline.

Shapes: B batch, N characters, F video frames, T latent frames, H W latent size, L text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class FaceFeatures:
    """What is kept of one reference image.

    Args:
        identity: [id_dim], who it is (face recognition and pooled image features together).
        hidden: [K, P, vit_dim], K layers of P patch features each, for fine detail.
        portrait: [3, h, w] in 0..1, the face cut out on white; goes onto the reference canvas.
        notices: what a person should know about the picture, one sentence each.
    """

    identity: Tensor
    hidden: Tensor
    portrait: Tensor
    notices: tuple[str, ...] = ()


@runtime_checkable
class TextEncoder(Protocol):
    """Prompts to text tokens."""

    def encode(self, prompts: list[str]) -> Tensor:
        """B prompts -> [B, L, text_dim]."""
        ...


@runtime_checkable
class FaceEncoder(Protocol):
    """A reference image to face features."""

    def encode(self, image: Tensor) -> FaceFeatures:
        """[3, H, W] in 0..1 -> features. Raises InputError where no face can be found."""
        ...


@runtime_checkable
class SpeechEncoder(Protocol):
    """A voice to features per video frame.

    Attributes:
        sample_rate: of the waveform it takes, in Hz.
    """

    sample_rate: int

    def encode(self, waveform: Tensor, num_frames: int, lead: int = 0) -> Tensor:
        """[S] mono samples -> [num_frames + 4, blocks, channels].

        Two context frames lie on each side: real neighbours where the waveform has them, else silence.

        Args:
            lead: video frames of the waveform that lie before video time 0 (0, 1 or 2).
        """
        ...


@runtime_checkable
class VideoCodec(Protocol):
    """Pixels to latents and back.

    Attributes:
        space_factor: pixels per latent cell and side.
        time_factor: video frames per latent frame (after the first).
        latent_channels: channels of a latent.
    """

    space_factor: int
    time_factor: int
    latent_channels: int

    def encode(self, video: Tensor) -> Tensor:
        """[B, 3, F, height, width] in -1..1 -> [B, T, C, H, W], scaled as the transformer wants it."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """[B, T, C, H, W] scaled -> [B, 3, F, height, width] in -1..1."""
        ...
