"""The residual networks inside face detector and face parser, under the names that their published files use."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18)."""

    widening = 1

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(given, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        made = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(made + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides), 1x1 convolution (ResNet-50)."""

    widening = 4

    def __init__(self, given: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(given, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(given, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        made = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        made = self.bn3(self.conv3(made))
        return F.relu(made + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Features at 1/8, 1/16 and 1/32 of the picture.

    Args:
        block: kind of block.
        depths: blocks of each of the four stages.
    """

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        stages, given = [], 64
        for index, depth in enumerate(depths):
            width, first = 64 * 2**index, 1 if index == 0 else 2
            blocks = []
            for k in range(depth):
                blocks.append(block(given, width, first if k == 0 else 1))
                given = width * block.widening
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 3, H, W] -> features of the last three stages."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        eighth = self.layer2(self.layer1(x))
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


def _shortcut(given: int, width: int, stride: int) -> nn.Sequential | None:
    if given == width and stride == 1:
        return None
    return nn.Sequential(nn.Conv2d(given, width, 1, stride, bias=False), nn.BatchNorm2d(width))
