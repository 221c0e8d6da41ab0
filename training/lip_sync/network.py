"""A small temporal network as an alternative to the linear model of `bya_core.evaluation.lip_sync`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bya_core.evaluation.lip_sync import MELS, LipSyncModel, fit_model, standardized

CHANNELS, LAYERS, KERNEL, DROPOUT = 32, 3, 5, 0.2
STEPS, BATCH, LENGTH, RATE, DECAY, NOISE = 400, 8, 48, 3e-3, 0.05, 0.15
MASKED = 4  # neighboring mel bands that are masked in each training step


class TemporalNetwork(nn.Module):
    """Residual convolutions over time: features [B, 2 * 26, L] to distances [B, D, L]."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(2 * MELS, CHANNELS, 1)
        self.layers = nn.ModuleList(nn.Conv1d(CHANNELS, CHANNELS, KERNEL, padding=KERNEL // 2) for _ in range(LAYERS))
        self.last = nn.Conv1d(CHANNELS, outputs, 1)

    def forward(self, features: Tensor) -> Tensor:
        x = self.first(F.dropout(features, DROPOUT, self.training))
        for layer in self.layers:
            x = x + F.dropout(F.gelu(layer(x)), DROPOUT, self.training)
        return self.last(x)


@dataclass(frozen=True)
class NetworkModel(LipSyncModel):
    """`LipSyncModel` whose prediction is that of a network; `mean` and `scale` are those of its features."""

    network: TemporalNetwork

    def predict_from(self, features: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            inputs = torch.from_numpy((features - self.mean) / self.scale).float().T[None]
            return self.network(inputs)[0].T.double().numpy()


def fit_network(features: Sequence[np.ndarray], shapes: Sequence[np.ndarray], seed: int = 0) -> NetworkModel:
    """Train the network on clips; arguments as in `fit_model`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    stacked = np.concatenate(features)
    mean, scale = stacked.mean(axis=0), stacked.std(axis=0) + 1e-3
    inputs = [torch.from_numpy((each - mean) / scale).float().T for each in features]
    targets = [torch.from_numpy(standardized(each)).float().T for each in shapes]
    network = TemporalNetwork(targets[0].shape[0])
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for _ in range(STEPS):
        parts = []
        for clip in rng.integers(len(inputs), size=BATCH):
            start = rng.integers(0, max(1, inputs[clip].shape[1] - LENGTH + 1))
            parts.append((inputs[clip][:, start : start + LENGTH], targets[clip][:, start : start + LENGTH]))
        x, y = (torch.stack(each) for each in zip(*parts, strict=True))
        x = x + NOISE * torch.randn_like(x)
        band = int(rng.integers(0, MELS - MASKED + 1))
        x[:, band : band + MASKED] = x[:, MELS + band : MELS + band + MASKED] = 0
        error = network(x) - y
        loss = (error**2).mean() + 2 * (error.diff(dim=2) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    linear = fit_model(features, shapes)  # the same whitening, so that only the predictions differ
    return NetworkModel(mean, scale, linear.weight, linear.whitening, network.eval())
