"""SyncNet (Chung and Zisserman 2016): embeddings of lips and speech that are close if both are in sync.

Parameter names are those of the published weights `syncnet_v2.model`. Metrics are in `sync_metrics.py`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from bya_core.encoders.checkpoints import load_strictly, read_weights
from bya_core.errors import InputError
from bya_core.evaluation.metric_weights import SYNCNET

RATE = 16_000  # Hz
FRAME, STEP = 400, 160  # samples: 25 and 10 ms
_FFT, _MELS, _CEPSTRA, _LIFTER, _PREEMPHASIS = 512, 26, 13, 22, 0.97
_TINY = float(np.finfo(float).eps)
WINDOW = 5  # video frames per window
COLUMNS = 20  # cepstra per window of five frames
FPS = 25
WIDTH = 1024  # of an embedding
_INT16 = 32768.0


class SyncNet(nn.Module):
    """Lip and speech networks."""

    def __init__(self) -> None:
        super().__init__()
        pool = nn.MaxPool2d
        self.netcnnaud = nn.Sequential(
            *_conv2d(1, 64), pool(1, 1),
            *_conv2d(64, 192), pool(3, (1, 2)),
            *_conv2d(192, 384), *_conv2d(384, 256), *_conv2d(256, 256), pool(3, 2),
            *_conv2d(256, 512, (5, 4), 0),
        )  # fmt: skip
        self.netfcaud = _head()
        self.netcnnlip = nn.Sequential(
            *_conv3d(3, 96, (WINDOW, 7, 7), (1, 2, 2), 0), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_conv3d(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1)), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_conv3d(256, 256), *_conv3d(256, 256), *_conv3d(256, 256), nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_conv3d(256, 512, (1, 6, 6), 1, 0),
        )  # fmt: skip
        self.netfclip = _head()

    def speech(self, cepstra: Tensor) -> Tensor:
        """Embed cepstra [B, 1, 13, 20]: [B, 1024]."""
        return self.netfcaud(self.netcnnaud(cepstra).flatten(1))

    def lips(self, frames: Tensor) -> Tensor:
        """Embed BGR frames [B, 3, 5, 224, 224] in 0..255: [B, 1024]."""
        return self.netfclip(self.netcnnlip(frames).flatten(1))


def _conv2d(in_channels: int, out: int, kernel: int | tuple[int, int] = 3, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out, kernel, padding=padding), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]


def _conv3d(
    in_channels: int,
    out: int,
    kernel: tuple[int, int, int] = (1, 3, 3),
    stride: int | tuple[int, int, int] = 1,
    padding: int | tuple[int, int, int] = (0, 1, 1),
) -> list[nn.Module]:
    return [nn.Conv3d(in_channels, out, kernel, stride, padding), nn.BatchNorm3d(out), nn.ReLU(inplace=True)]


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, WIDTH))


class SyncEmbedder:
    """Embeds faces and voices of a clip, one embedding per window.

    Args:
        file: syncnet_v2.model.
        device: of the networks.
        batch: number of windows per forward pass.

    Raises:
        InputError: the file is missing or does not fit.
    """

    def __init__(self, file: Path, device: torch.device | str = "cpu", batch: int = 64) -> None:
        network = SyncNet()
        load_strictly(network, read_weights(file, SYNCNET.description), SYNCNET.description)
        self.network, self.device, self.batch = network.to(device), torch.device(device), batch

    @torch.inference_mode()
    def lips(self, crops: np.ndarray) -> np.ndarray:
        """Embed face crops uint8 [F, 224, 224, 3] at 25 frames per second, see `face_tracks.lip_crops`: [V, 1024]."""
        count = windows(len(crops))
        bgr = torch.from_numpy(np.ascontiguousarray(crops[..., ::-1]))
        embeddings = []
        for start in range(0, count, self.batch):
            part = bgr[start : min(start + self.batch, count) + WINDOW - 1]
            clips = rearrange(part.unfold(0, WINDOW, 1), "v h w c f -> v c f h w")
            embeddings.append(self.network.lips(clips.to(self.device, torch.float32)).cpu())
        return torch.cat(embeddings).numpy()

    @torch.inference_mode()
    def voice(self, wave: np.ndarray, frames: int) -> np.ndarray:
        """Embed speech [samples] at 16 kHz in -1..1, padded with silence to `frames` video frames: [V, 1024]."""
        count, length = windows(frames), round(frames / FPS * RATE)
        wave = np.pad(np.asarray(wave, dtype=np.float64), (0, max(0, length - len(wave))))[:length]
        cepstra = mfcc(np.round(wave * _INT16).clip(-_INT16, _INT16 - 1)).astype(np.float32)
        batches = torch.from_numpy(cepstra).unfold(0, COLUMNS, COLUMNS // WINDOW)[:count, None].split(self.batch)
        return torch.cat([self.network.speech(batch.to(self.device)) for batch in batches]).cpu().numpy()


def windows(frames: int) -> int:
    """Number of windows V of a clip; as in the reference implementation, the last possible one is left out.

    Raises:
        InputError: fewer frames than one window.
    """
    if frames <= WINDOW:
        raise InputError(f"{frames} frames", f"at least {WINDOW + 1} to measure lip sync", "take a longer clip")
    return frames - WINDOW


def mfcc(wave: np.ndarray) -> np.ndarray:
    """Mel-frequency cepstra as in SyncNet (defaults of python_speech_features), float64 [columns, 13].

    There are 100 columns per second; the first coefficient is the log of the energy.

    Args:
        wave: [samples] at 16 kHz in the range of int16, padded with zeros to at least one column.
    """
    from scipy.fft import dct, rfft

    wave = np.asarray(wave, dtype=np.float64)
    emphasized = np.append(wave[:1], wave[1:] - _PREEMPHASIS * wave[:-1])
    columns = 1 + max(0, -(-(emphasized.size - FRAME) // STEP))
    emphasized = np.pad(emphasized, (0, max(0, (columns - 1) * STEP + FRAME - emphasized.size)))
    frames = np.lib.stride_tricks.sliding_window_view(emphasized, FRAME)[::STEP][:columns]
    power = np.square(np.abs(rfft(frames, _FFT))) / _FFT
    energy, mels = power.sum(axis=1), power @ _filters().T
    logs = np.log(np.where(mels == 0, _TINY, mels))
    cepstra = dct(logs, type=2, axis=1, norm="ortho")[:, :_CEPSTRA]
    cepstra *= 1 + _LIFTER / 2 * np.sin(np.pi * np.arange(_CEPSTRA) / _LIFTER)
    cepstra[:, 0] = np.log(np.where(energy == 0, _TINY, energy))
    return cepstra


@lru_cache(maxsize=1)
def _filters() -> np.ndarray:
    """Triangular mel filters with corners at whole bins: [26, 257]."""
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, _MELS + 2) / 2595) - 1)
    corner = np.floor((_FFT + 1) * hertz / RATE)
    low, middle, high = corner[:-2, None], corner[1:-1, None], corner[2:, None]
    bins = np.arange(_FFT // 2 + 1)
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    return np.where(bins < middle, rising, falling) * ((bins >= low) & (bins < high))
