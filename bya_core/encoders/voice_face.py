"""Which voice goes with which face: two small towers that put voices and portraits into one space.

What can be learned is only what voices and looks have in common: with puppets a fixed rule, with people age, sex and
build. The scores are meant as log odds: trained contrastively (InfoNCE), a score tends to
log p(voice, face) / p(voice) p(face) plus a constant, so that the difference between two assignments' sums says how
much likelier the one is (van den Oord et al., arXiv 1807.03748, sec. 2.3).
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
    """Says how well voices and faces go together.

    Attributes:
        sample_rate: of the waveforms it takes, in Hz.
    """

    sample_rate: int

    def scores(self, waveforms: Sequence[Tensor], images: Sequence[Tensor]) -> Tensor:
        """M mono waveforms [S] of any length and N portraits [3, H, W] in 0..1 -> log odds [M, N]."""
        ...


class VoiceTower(nn.Module):
    """A stretch of speech -> one vector: timbre from a log-mel spectrum, pitch and breath from the autocorrelation.

    Args:
        dim: length of the vector, which has length 1.
        width: channels inside.
        mels: mel bands up to 8 kHz.
    """

    sample_rate = 16_000
    hop, window, fft = 320, 640, 1024  # samples: 20 ms, 40 ms (three periods of the lowest voice), room for all lags
    lags = (40, 216)  # 400 Hz down to 74 Hz
    bands: Tensor
    hann: Tensor
    fall: Tensor

    def __init__(self, dim: int = 32, width: int = 64, mels: int = 40) -> None:
        super().__init__()
        seen = mels + self.lags[1] - self.lags[0] + 1
        self.frames = nn.Sequential(
            nn.Conv1d(seen, width, 3, padding=1), nn.GELU(), nn.Conv1d(width, width, 3, padding=1), nn.GELU()
        )
        self.weight = nn.Conv1d(width, 1, 1)
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, dim))
        self.register_buffer("bands", mel_bands(mels, self.sample_rate, self.fft), persistent=False)
        hann = torch.hann_window(self.window)
        self.register_buffer("hann", hann, persistent=False)
        # a windowed sound's correlation falls with the lag as the window's own does (Boersma 1993): divide by that
        own = torch.fft.irfft(torch.fft.rfft(hann, self.fft).abs() ** 2)[: self.lags[1]]
        self.register_buffer("fall", own / own[0], persistent=False)

    def look(self, waveform: Tensor) -> Tensor:
        """[B, S] at 16 kHz -> what is read, [B, mels + lags + 1, frames]; the level of the recording plays no part."""
        level = waveform.square().mean(1, keepdim=True).sqrt().clamp_min(1e-5)
        padded = F.pad(waveform / level, (0, max(0, self.window - waveform.shape[1])))
        pieces = padded.unfold(1, self.window, self.hop) * self.hann
        power = torch.fft.rfft(pieces, self.fft).abs() ** 2
        mel = torch.log10(power @ self.bands.T + 1e-3) / 2.0
        correlation = torch.fft.irfft(power)[..., : self.lags[1]]
        energy = correlation[..., :1]
        pitch = correlation / (energy + 1.0) / self.fall  # + 1: none in silence
        seen = torch.cat([mel, pitch[..., self.lags[0] :], torch.log10(energy + 1e-2)], dim=-1)
        return seen.transpose(1, 2)

    def forward(self, waveform: Tensor) -> Tensor:
        """[B, S] at 16 kHz -> [B, dim]."""
        return self.embed(self.look(waveform))

    def embed(self, seen: Tensor) -> Tensor:
        """What `look` gives, or a part of its frames -> [B, dim]."""
        x = self.frames(seen)
        weight = self.weight(x).softmax(-1)
        mean = (weight * x).sum(-1)
        spread = (weight * (x - mean[..., None]).square()).sum(-1).clamp_min(1e-6).sqrt()
        return F.normalize(self.head(torch.cat([mean, spread], dim=1)), dim=-1)


class FaceTower(nn.Module):
    """A portrait -> one vector.

    Args:
        dim: length of the vector, which has length 1.
        width: channels of the first layer.
        size: side in pixels to which portraits are resized.
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
        """[B, 3, H, W] in 0..1 -> [B, dim]."""
        size = (self.size, self.size)
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        return F.normalize(self.head(self.layers(images * 2.0 - 1.0).flatten(1)), dim=-1)


class VoiceFaceNetwork(nn.Module):
    """Both towers and the scale of their scores.

    Args:
        dim: length of the shared vectors.
        voice_width, face_width: channels of the towers.
        mels: mel bands of the voice tower.
        size: side in pixels to which portraits are resized.
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
        """[M, dim] and [N, dim] -> log odds [M, N]."""
        return self.log_scale.exp() * voices @ faces.T

    def forward(self, seen: Tensor, images: Tensor) -> Tensor:
        """What `VoiceTower.look` gives of M voices, and [N, 3, H, W] in 0..1 -> log odds [M, N]."""
        return self.compare(self.voice.embed(seen), self.face(images))


class VoiceFaceMatcher:
    """`VoiceFace` by a `VoiceFaceNetwork`; always on the CPU, it is small."""

    sample_rate = VoiceTower.sample_rate

    def __init__(self, network: VoiceFaceNetwork) -> None:
        self.network = network.eval()

    @torch.no_grad()
    def scores(self, waveforms: Sequence[Tensor], images: Sequence[Tensor]) -> Tensor:
        """See `VoiceFace`; waveforms and pictures may have different sizes."""
        network = self.network
        voices = torch.cat([network.voice(waveform.float().cpu()[None]) for waveform in waveforms])
        faces = torch.cat([network.face(image.float().cpu()[None]) for image in images])
        return network.compare(voices, faces)

    @classmethod
    def load(cls, path: Path) -> VoiceFaceMatcher:
        """From a safetensors file with the network's sizes in its metadata."""
        with safe_open(path, framework="pt") as file:
            network = VoiceFaceNetwork(**json.loads(file.metadata()["config"]))
        network.load_state_dict(load_file(path))
        return cls(network)
