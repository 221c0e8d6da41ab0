"""Mel filter bank shared by the small speech networks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def mel_bands(mels: int, sample_rate: int = 16_000, fft: int = 1024) -> Tensor:
    """Triangular mel filters, each normalized to unit sum: [mels, fft // 2 + 1]."""
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(fft // 2 + 1, mels, 60.0, sample_rate / 2, sample_rate, norm=None, mel_scale="htk")
    return torch.from_numpy(bank.T.astype(np.float32) / bank.T.sum(1, keepdims=True).astype(np.float32))
