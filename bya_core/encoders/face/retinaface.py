"""RetinaFace (https://arxiv.org/abs/1905.00641) with a ResNet-50 backbone, the face detector of the released model.

Parameter names are those of facexlib's detection_Resnet50_Final.pth.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from einops import rearrange
from torch import Tensor, nn

from bya_core.encoders.checkpoints import load_strictly, read_weights
from bya_core.encoders.face.detection import Face, non_max_suppression
from bya_core.encoders.face.resnet import Bottleneck, ResNet
from bya_core.errors import InputError

FILE = "detection_Resnet50_Final.pth of facexlib (110 MB; code MIT, trained on WIDER FACE: research only)"
_STRIDES = (8, 16, 32)
_ANCHOR_SIZES = ((16, 32), (64, 128), (256, 512))  # in pixels, per stride
_MEAN_BGR = (104.0, 117.0, 123.0)
_VARIANCES = (0.1, 0.2)


def _conv(in_channels: int, width: int, kernel: int = 3, active: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(in_channels, width, kernel, 1, kernel // 2, bias=False), nn.BatchNorm2d(width)]
    return nn.Sequential(*layers, *([nn.ReLU()] if active else []))


class _Pyramid(nn.Module):
    """Feature pyramid."""

    def __init__(self, in_channels: tuple[int, int, int], width: int) -> None:
        super().__init__()
        self.output1 = _conv(in_channels[0], width, 1)
        self.output2 = _conv(in_channels[1], width, 1)
        self.output3 = _conv(in_channels[2], width, 1)
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
    """Context module (SSH): three receptive fields in parallel."""

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
    """Predicts `values` numbers for each of the two anchors at each position."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(width, 2 * values, 1)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.conv1x1(x), "b (anchor value) h w -> b (h w anchor) value", value=self.values)


class RetinaFace(nn.Module):
    """RetinaFace network."""

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
        """Regressed boxes [B, A, 4], scores [B, A], landmarks [B, A, 10] of centered BGR images [B, 3, H, W]."""
        levels = [
            context(level)
            for context, level in zip((self.ssh1, self.ssh2, self.ssh3), self.fpn(*self.body(images)), strict=True)
        ]

        def of(heads: nn.ModuleList) -> Tensor:
            return torch.cat([head(level) for head, level in zip(heads, levels, strict=True)], dim=1)

        return of(self.BboxHead), of(self.ClassHead).softmax(dim=-1)[..., 1], of(self.LandmarkHead)


class RetinaFaceDetector:
    """`FaceDetector` with five landmarks.

    Args:
        network: Path of the weights, or the network itself.
        min_score: Faces with a lower score are discarded.
        confident_score: Score threshold of the released code.

    Raises:
        InputError: If the file is missing or the weights do not fit.
    """

    name = "RetinaFace"

    def __init__(self, network: Path | RetinaFace, min_score: float = 0.97, confident_score: float = 0.97) -> None:
        self.min_score, self.confident_score = min_score, confident_score
        if isinstance(network, RetinaFace):
            self.network = network.eval()
        else:
            weights = read_weights(network, FILE)
            with init_empty_weights():
                self.network = RetinaFace()
            load_strictly(self.network, weights, FILE)

    @torch.no_grad()
    def detect(self, image: Tensor) -> list[Face]:
        """See `FaceDetector`."""
        if image.ndim != 3 or image.shape[0] != 3:
            raise InputError(f"an image of shape {tuple(image.shape)}", "[3, height, width]", "pass an RGB image")
        weight = next(self.network.parameters())
        bgr = image.to(weight).clamp(0, 1).flip(0) * 255
        boxes, scores, points = self.network((bgr - torch.tensor(_MEAN_BGR).view(3, 1, 1).to(weight))[None])
        anchors = _anchors(*image.shape[1:]).to(weight)
        selected = scores[0] > self.min_score
        anchor_center, anchor_size = anchors[selected, :2], anchors[selected, 2:]
        center = anchor_center + boxes[0, selected, :2] * _VARIANCES[0] * anchor_size
        size = anchor_size * (boxes[0, selected, 2:] * _VARIANCES[1]).exp()
        corners = torch.cat([center - size / 2, center + size / 2], dim=1).float().cpu()
        offsets = rearrange(points[0, selected], "a (k xy) -> a k xy", xy=2) * _VARIANCES[0] * anchor_size[:, None]
        landmarks = anchor_center[:, None] + offsets
        kept = non_max_suppression(corners.numpy(), scores[0, selected].float().cpu().numpy(), overlap=0.4)
        return [_face(corners[k], scores[0, selected][k], landmarks[k].float().cpu()) for k in kept]

    def to(self, device: torch.device | str) -> RetinaFaceDetector:
        """Move the network; returns `self`."""
        self.network.to(device)
        return self


def _anchors(height: int, width: int) -> Tensor:
    """Center and size of all anchors, [A, 4] in pixels: row by row, two sizes per position."""
    levels = []
    for stride, sides in zip(_STRIDES, _ANCHOR_SIZES, strict=True):
        y = (torch.arange(-(-height // stride)) + 0.5) * stride
        x = (torch.arange(-(-width // stride)) + 0.5) * stride
        center = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flip(-1).reshape(-1, 1, 2).expand(-1, 2, -1)
        side = torch.tensor(sides, dtype=torch.float32).view(1, 2, 1).expand(len(center), -1, 2)
        levels.append(torch.cat([center, side], dim=-1).reshape(-1, 4))
    return torch.cat(levels)


def _face(box: Tensor, score: Tensor, points: Tensor) -> Face:
    x0, y0, x1, y1 = (float(value) for value in box)
    return Face((x0, y0, x1, y1), float(score), tuple((float(x), float(y)) for x, y in points))
