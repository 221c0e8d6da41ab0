"""Face parsing: BiSeNet (https://arxiv.org/abs/1808.00897) with 19 classes, by the names of the published file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn


class BiSeNet(nn.Module):
    """The network; parameters carry the names of parsing_bisenet.pth."""

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> scores of the classes [B, 19, H, W]."""
        raise NotImplementedError


class FaceParser:
    """Labels of an aligned face.

    Args:
        network: file of the weights, or the network itself.

    Raises:
        InputError: no such file, or weights that do not fit.
    """

    def __init__(self, network: Path | BiSeNet) -> None:
        raise NotImplementedError

    def parse(self, crop: Tensor) -> Tensor:
        """[3, 512, 512] in 0..1 -> labels 0..18 [512, 512] int64."""
        raise NotImplementedError

    def to(self, device: torch.device | str) -> FaceParser:
        raise NotImplementedError
