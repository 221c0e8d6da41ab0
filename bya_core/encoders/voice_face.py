"""Voice-face association: two small towers that embed voices and portraits in a common space.

A network of this kind can only learn what voices and faces have in common, such as age, sex and build. Scores are log
odds: with contrastive training (InfoNCE), a score approaches log p(voice, face) / (p(voice) p(face)) plus a constant,
so the difference between the sums of two assignments is their log likelihood ratio (van den Oord et al.,
https://arxiv.org/abs/1807.03748, section 2.3).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from bya_core.encoders.mel import mel_bands


@runtime_checkable
class VoiceFace(Protocol):
    """Scores pairs of voices and faces.

    Attributes:
        sample_rate: Sample rate of its input in Hz.
    """

    sample_rate: int

    def scores(self, waveforms: Sequence[Tensor], images: Sequence[Tensor]) -> Tensor:
        """Log odds [M, N] of M mono waveforms [S] of any length and N portraits [3, H, W] in [0, 1]."""
        ...


class VoiceTower(nn.Module):
    """Embeds speech: timbre from a log-mel spectrogram, pitch and breathiness from the autocorrelation.

    Args:
        dim: Size of the embedding, which is normalized.
        width: Hidden channels.
        mels: Number of mel bands up to 8 kHz.
    """

    sample_rate = 16_000
    hop, window, fft = 320, 640, 1024  # samples: 20 ms, 40 ms (three periods of the lowest pitch), room for all lags
    lags = (40, 216)  # 400 Hz down to 74 Hz
    bands: Tensor
    hann: Tensor
    window_correlation: Tensor

    def __init__(self, dim: int = 32, width: int = 64, mels: int = 40) -> None:
        super().__init__()
        channels = mels + self.lags[1] - self.lags[0] + 1
        self.frames = nn.Sequential(
            nn.Conv1d(channels, width, 3, padding=1), nn.GELU(), nn.Conv1d(width, width, 3, padding=1), nn.GELU()
        )
        self.weight = nn.Conv1d(width, 1, 1)
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, dim))
        self.register_buffer("bands", mel_bands(mels, self.sample_rate, self.fft), persistent=False)
        hann = torch.hann_window(self.window)
        self.register_buffer("hann", hann, persistent=False)
        # divide the autocorrelation by that of the window (Boersma 1993)
        own = torch.fft.irfft(torch.fft.rfft(hann, self.fft).abs() ** 2)[: self.lags[1]]
        self.register_buffer("window_correlation", own / own[0], persistent=False)

    def features(self, waveform: Tensor) -> Tensor:
        """Input features [B, mels + lags + 1, frames] of waveforms [B, S] at 16 kHz, independent of their level."""
        level = waveform.square().mean(1, keepdim=True).sqrt().clamp_min(1e-5)
        padded = F.pad(waveform / level, (0, max(0, self.window - waveform.shape[1])))
        pieces = padded.unfold(1, self.window, self.hop) * self.hann
        power = torch.fft.rfft(pieces, self.fft).abs() ** 2
        mel = torch.log10(power @ self.bands.T + 1e-3) / 2.0
        correlation = torch.fft.irfft(power)[..., : self.lags[1]]
        energy = correlation[..., :1]
        pitch = correlation / (energy + 1.0) / self.window_correlation  # + 1: no pitch in silence
        features = torch.cat([mel, pitch[..., self.lags[0] :], torch.log10(energy + 1e-2)], dim=-1)
        return features.transpose(1, 2)

    def forward(self, waveform: Tensor) -> Tensor:
        """Embeddings [B, dim] of waveforms [B, S] at 16 kHz."""
        return self.embed(self.features(waveform))

    def embed(self, features: Tensor) -> Tensor:
        """Embeddings [B, dim] of all or some frames of the output of `features`."""
        x = self.frames(features)
        weight = self.weight(x).softmax(-1)
        mean = (weight * x).sum(-1)
        spread = (weight * (x - mean[..., None]).square()).sum(-1).clamp_min(1e-6).sqrt()
        return F.normalize(self.head(torch.cat([mean, spread], dim=1)), dim=-1)


class FaceTower(nn.Module):
    """Embeds portraits.

    Args:
        dim: Size of the embedding, which is normalized.
        width: Channels of the first layer.
        size: Side of the network input in pixels.
    """

    def __init__(self, dim: int = 32, width: int = 16, size: int = 48) -> None:
        super().__init__()
        self.size = size
        last = 3 * width
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.GroupNorm(4, 2 * width),
            nn.GELU(),
            nn.Conv2d(2 * width, last, 3, stride=2, padding=1),
            nn.GroupNorm(4, last),
            nn.GELU(),
        )
        self.head = nn.Sequential(nn.Linear(last * (size // 8) ** 2, 64), nn.GELU(), nn.Linear(64, dim))

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [B, dim] of portraits [B, 3, H, W] in [0, 1]."""
        size = (self.size, self.size)
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        return F.normalize(self.head(self.layers(images * 2.0 - 1.0).flatten(1)), dim=-1)


class VoiceFaceNetwork(nn.Module):
    """Both towers and the scale of the scores.

    Args:
        dim: Size of the embeddings.
        voice_width: Hidden channels of the voice tower.
        face_width: Channels of the first layer of the face tower.
        mels: Number of mel bands.
        size: Side of portraits in pixels.
    """

    def __init__(
        self, dim: int = 32, voice_width: int = 64, face_width: int = 16, mels: int = 40, size: int = 48
    ) -> None:
        super().__init__()
        self.config = {
            "dim": dim,
            "voice_width": voice_width,
            "face_width": face_width,
            "mels": mels,
            "size": size,
        }
        self.voice = VoiceTower(dim, voice_width, mels)
        self.face = FaceTower(dim, face_width, size)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def compare(self, voices: Tensor, faces: Tensor) -> Tensor:
        """Log odds [M, N] of embeddings [M, dim] and [N, dim]."""
        return self.log_scale.exp() * voices @ faces.T

    def forward(self, features: Tensor, images: Tensor) -> Tensor:
        """Log odds [M, N] of `VoiceTower.features` of M voices and N portraits [N, 3, H, W] in [0, 1]."""
        return self.compare(self.voice.embed(features), self.face(images))


class VoiceFaceMatcher:
    """`VoiceFace` with a `VoiceFaceNetwork`, which is small and runs on the CPU."""

    sample_rate = VoiceTower.sample_rate

    def __init__(self, network: VoiceFaceNetwork) -> None:
        self.network = network.eval()

    @torch.no_grad()
    def scores(self, waveforms: Sequence[Tensor], images: Sequence[Tensor]) -> Tensor:
        """See `VoiceFace`; waveforms and images may differ in size."""
        network = self.network
        voices = torch.cat([network.voice(waveform.float().cpu()[None]) for waveform in waveforms])
        faces = torch.cat([network.face(image.float().cpu()[None]) for image in images])
        return network.compare(voices, faces)

    @classmethod
    def load(cls, path: Path) -> VoiceFaceMatcher:
        """Load a safetensors file that holds the arguments of the network in its metadata."""
        with safe_open(path, framework="pt") as file:
            network = VoiceFaceNetwork(**json.loads(file.metadata()["config"]))
        network.load_state_dict(load_file(path))
        return cls(network)
