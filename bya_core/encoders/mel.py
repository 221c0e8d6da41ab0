"""Mel filter bank shared by the small speech networks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_LOWEST = 60.0  # Hz


def mel_bands(mels: int, sample_rate: int = 16_000, fft: int = 1024) -> Tensor:
    """Triangular mel filters (HTK scale), each normalized to unit sum: [mels, fft // 2 + 1]."""
    low, high = (2595.0 * np.log10(1.0 + hertz / 700.0) for hertz in (_LOWEST, sample_rate / 2))
    edges = 700.0 * (10.0 ** (np.linspace(low, high, mels + 2) / 2595.0) - 1.0)
    frequencies = np.linspace(0.0, sample_rate / 2, fft // 2 + 1)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    bank = np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)
    return torch.from_numpy(bank / bank.sum(axis=1, keepdims=True))
