"""Face parsing: BiSeNet (https://arxiv.org/abs/1808.00897) with 19 classes and the published parameter names."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from torch import Tensor, nn

from bya_core.encoders.checkpoints import load_strictly, read_weights
from bya_core.encoders.face.resnet import BasicBlock, ResNet

FILE = "parsing_bisenet.pth of facexlib (53 MB; code and weights MIT, trained on CelebAMask-HQ: not for commercial use)"
LABELS = (
    *("background", "skin", "left_brow", "right_brow", "left_eye", "right_eye", "glasses", "left_ear", "right_ear"),
    *("earring", "nose", "mouth", "upper_lip", "lower_lip", "neck", "necklace", "cloth", "hair", "hat"),
)
BACKGROUND_LABELS = ("background", "left_ear", "right_ear", "earring", "neck", "necklace", "cloth", "hat")
"""Labels that the released code replaces by white; hair and glasses are kept."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Conv(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, width: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, kernel, 1, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Attention(nn.Module):
    """Channel attention from globally pooled features (attention refinement module)."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv = _Conv(in_channels, width)
        self.conv_atten = nn.Conv2d(width, width, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * torch.sigmoid(self.bn_atten(self.conv_atten(x.mean(dim=(2, 3), keepdim=True))))


class _Context(nn.Module):
    """Context path: features of three scales, merged at 1/8."""

    def __init__(self) -> None:
        super().__init__()
        self.resnet = ResNet(BasicBlock, (2, 2, 2, 2))
        self.arm16 = _Attention(256, 128)
        self.arm32 = _Attention(512, 128)
        self.conv_head32 = _Conv(128, 128)
        self.conv_head16 = _Conv(128, 128)
        self.conv_avg = _Conv(512, 128, kernel=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        eighth, sixteenth, last = self.resnet(images)
        pooled = self.conv_avg(last.mean(dim=(2, 3), keepdim=True))
        up = F.interpolate(self.arm32(last) + pooled, sixteenth.shape[2:], mode="nearest")
        up = F.interpolate(self.arm16(sixteenth) + self.conv_head32(up), eighth.shape[2:], mode="nearest")
        return eighth, self.conv_head16(up)


class _Fusion(nn.Module):
    """Feature fusion module."""

    def __init__(self) -> None:
        super().__init__()
        self.convblk = _Conv(256, 256, kernel=1)
        self.conv1 = nn.Conv2d(256, 64, 1, bias=False)
        self.conv2 = nn.Conv2d(64, 256, 1, bias=False)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        x = self.convblk(torch.cat([detail, context], dim=1))
        return x + x * torch.sigmoid(self.conv2(F.relu(self.conv1(x.mean(dim=(2, 3), keepdim=True)))))


class _Head(nn.Module):
    """Segmentation head."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv = _Conv(in_channels, width)
        self.conv_out = nn.Conv2d(width, len(LABELS), 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.conv(x))


class BiSeNet(nn.Module):
    """BiSeNet with the parameter names of parsing_bisenet.pth; `conv_out16` and `conv_out32` are training heads."""

    def __init__(self) -> None:
        super().__init__()
        self.cp = _Context()
        self.ffm = _Fusion()
        self.conv_out = _Head(256, 256)
        self.conv_out16 = _Head(128, 64)
        self.conv_out32 = _Head(128, 64)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores [B, 19, H, W] of normalized images [B, 3, H, W]."""
        scores = self.conv_out(self.ffm(*self.cp(images)))
        return F.interpolate(scores, images.shape[2:], mode="bilinear", align_corners=True)


class FaceParser:
    """Segments an aligned face.

    Args:
        network: Path of the weights, or the network itself.

    Raises:
        InputError: If the file is missing or the weights do not fit.
    """

    def __init__(self, network: Path | BiSeNet) -> None:
        if isinstance(network, BiSeNet):
            self.network = network.eval()
        else:
            weights = read_weights(network, FILE)
            with init_empty_weights():
                self.network = BiSeNet()
            load_strictly(self.network, weights, FILE)

    @torch.no_grad()
    def parse(self, crop: Tensor) -> Tensor:
        """Indices into `LABELS`, int64 [512, 512] on the device of the network, of a crop [3, 512, 512] in [0, 1]."""
        weight = next(self.network.parameters())
        mean, std = (torch.tensor(values).view(3, 1, 1).to(weight) for values in (_MEAN, _STD))
        return self.network(((crop.to(weight) - mean) / std)[None])[0].argmax(dim=0)

    def face(self, crop: Tensor) -> Tensor:
        """Boolean mask [512, 512] of face and hair in a crop [3, 512, 512] in [0, 1]."""
        background = torch.tensor([LABELS.index(name) for name in BACKGROUND_LABELS])
        labels = self.parse(crop)
        return ~torch.isin(labels, background.to(labels.device))

    def to(self, device: torch.device | str) -> FaceParser:
        """Move the network; returns `self`."""
        self.network.to(device)
        return self
