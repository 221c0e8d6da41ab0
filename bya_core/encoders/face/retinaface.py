"""RetinaFace (https://arxiv.org/abs/1905.00641) on ResNet-50, as the released code finds faces; in plain PyTorch.

Parameters carry the names of facexlib's detection_Resnet50_Final.pth.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from einops import rearrange
from torch import Tensor, nn

from bya_core.encoders.face.detection import Face, non_max_suppression
from bya_core.encoders.face.resnet import Bottleneck, ResNet
from bya_core.encoders.face.weights_file import load_strictly, read_weights
from bya_core.errors import InputError

FILE = "detection_Resnet50_Final.pth of facexlib (110 MB; code MIT, trained on WIDER FACE: research only)"
_STRIDES = (8, 16, 32)
_SIDES = ((16, 32), (64, 128), (256, 512))  # of the squares that faces are measured against, in pixels
_MEAN_BGR = (104.0, 117.0, 123.0)
_VARIANCES = (0.1, 0.2)


def _conv(given: int, width: int, kernel: int = 3, active: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(given, width, kernel, 1, kernel // 2, bias=False), nn.BatchNorm2d(width)]
    return nn.Sequential(*layers, *([nn.ReLU()] if active else []))


class _Pyramid(nn.Module):
    """Coarse features added to fine ones."""

    def __init__(self, given: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.output1 = _conv(given[0], width, 1)
        self.output2 = _conv(given[1], width, 1)
        self.output3 = _conv(given[2], width, 1)
        self.merge1 = _conv(width, width)
        self.merge2 = _conv(width, width)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        third = self.output3(coarse)
        second = self.output2(middle)
        second = self.merge2(second + F.interpolate(third, second.shape[2:], mode="nearest"))
        first = self.output1(fine)
        first = self.merge1(first + F.interpolate(second, first.shape[2:], mode="nearest"))
        return first, second, third


class _Context(nn.Module):
    """Three sizes of neighbourhood side by side (SSH)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv3X3 = _conv(width, width // 2, active=False)
        self.conv5X5_1 = _conv(width, width // 4)
        self.conv5X5_2 = _conv(width // 4, width // 4, active=False)
        self.conv7X7_2 = _conv(width // 4, width // 4)
        self.conv7x7_3 = _conv(width // 4, width // 4, active=False)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.conv5X5_1(x)
        parts = (self.conv3X3(x), self.conv5X5_2(wide), self.conv7x7_3(self.conv7X7_2(wide)))
        return F.relu(torch.cat(parts, dim=1))


class _Head(nn.Module):
    """`values` numbers for each of the two squares at each place."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(width, 2 * values, 1)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.conv1x1(x), "b (square value) h w -> b (h w square) value", value=self.values)


class RetinaFace(nn.Module):
    """The network."""

    def __init__(self) -> None:
        super().__init__()
        width = 256
        self.body = ResNet(Bottleneck, (3, 4, 6, 3))
        self.fpn = _Pyramid((512, 1024, 2048), width)
        self.ssh1, self.ssh2, self.ssh3 = _Context(width), _Context(width), _Context(width)
        self.ClassHead = nn.ModuleList(_Head(width, 2) for _ in _STRIDES)
        self.BboxHead = nn.ModuleList(_Head(width, 4) for _ in _STRIDES)
        self.LandmarkHead = nn.ModuleList(_Head(width, 10) for _ in _STRIDES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 3, H, W] BGR, mean taken off -> boxes [B, A, 4], scores [B, A], points [B, A, 10], as regressed."""
        levels = [
            context(level)
            for context, level in zip((self.ssh1, self.ssh2, self.ssh3), self.fpn(*self.body(images)), strict=True)
        ]

        def of(heads: nn.ModuleList) -> Tensor:
            return torch.cat([head(level) for head, level in zip(heads, levels, strict=True)], dim=1)

        return of(self.BboxHead), of(self.ClassHead).softmax(dim=-1)[..., 1], of(self.LandmarkHead)


class RetinaFaceDetector:
    """`FaceDetector` with five points per face: eyes, nose, corners of the mouth.

    Args:
        network: file of the weights, or the network itself.
        least: score from which a face is told of.
        sure: score from which the released code takes a face for one.

    Raises:
        InputError: no such file, or weights that do not fit.
    """

    name = "RetinaFace"

    def __init__(self, network: Path | RetinaFace, least: float = 0.97, sure: float = 0.97) -> None:
        self.least, self.sure = least, sure
        if isinstance(network, RetinaFace):
            self.network = network.eval()
        else:
            weights = read_weights(network, FILE)
            with init_empty_weights():
                self.network = RetinaFace()
            load_strictly(self.network, weights, FILE)

    @torch.no_grad()
    def detect(self, image: Tensor) -> list[Face]:
        """[3, H, W] in 0..1 -> faces, the surest first."""
        if image.ndim != 3 or image.shape[0] != 3:
            raise InputError(f"an image of shape {tuple(image.shape)}", "[3, height, width]", "pass an RGB image")
        weight = next(self.network.parameters())
        bgr = image.to(weight).clamp(0, 1).flip(0) * 255
        boxes, scores, points = self.network((bgr - torch.tensor(_MEAN_BGR).view(3, 1, 1).to(weight))[None])
        squares = _squares(*image.shape[1:]).to(weight)
        likely = scores[0] > self.least
        centre, side = squares[likely, :2], squares[likely, 2:]
        middle = centre + boxes[0, likely, :2] * _VARIANCES[0] * side
        size = side * (boxes[0, likely, 2:] * _VARIANCES[1]).exp()
        found = torch.cat([middle - size / 2, middle + size / 2], dim=1).float().cpu()
        moved = rearrange(points[0, likely], "a (k xy) -> a k xy", xy=2) * _VARIANCES[0] * side[:, None]
        marks = centre[:, None] + moved
        kept = non_max_suppression(found.numpy(), scores[0, likely].float().cpu().numpy(), overlap=0.4)
        return [_face(found[k], scores[0, likely][k], marks[k].float().cpu()) for k in kept]

    def to(self, device: torch.device | str) -> RetinaFaceDetector:
        """Move the network; returns itself."""
        self.network.to(device)
        return self


def _squares(height: int, width: int) -> Tensor:
    """Centre and sides of every square, [A, 4] in pixels: row by row, two sizes at each place."""
    levels = []
    for stride, sides in zip(_STRIDES, _SIDES, strict=True):
        y = (torch.arange(-(-height // stride)) + 0.5) * stride
        x = (torch.arange(-(-width // stride)) + 0.5) * stride
        middle = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flip(-1).reshape(-1, 1, 2).expand(-1, 2, -1)
        side = torch.tensor(sides, dtype=torch.float32).view(1, 2, 1).expand(len(middle), -1, 2)
        levels.append(torch.cat([middle, side], dim=-1).reshape(-1, 4))
    return torch.cat(levels)


def _face(box: Tensor, score: Tensor, points: Tensor) -> Face:
    x0, y0, x1, y1 = (float(value) for value in box)
    return Face((x0, y0, x1, y1), float(score), tuple((float(x), float(y)) for x, y in points))
