"""BlazeFace, short range (https://arxiv.org/abs/1907.05047): detection of faces in square crops, as in mediapipe.

The weights are those of `face_detection_short_range.tflite` of mediapipe 0.10.21 (Apache-2.0, see
`encoders/weights/NOTICE`), converted by `tools/convert_mediapipe.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 128
"""Side of the square network input in pixels; other multiples of 16 work as well."""

_PAD = (0, 1, 0, 1)  # "same" padding of TensorFlow at stride 2, for 3 x 3 kernels and even sizes


class BlazeBlock(nn.Module):
    """Depthwise separable residual block; the shortcut is max-pooled at stride 2 and zero-padded in its channels.

    Args:
        inputs, outputs: Channels.
        stride: 1 or 2.
        prelu: Use a PReLU instead of a ReLU.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, prelu: bool = False) -> None:
        super().__init__()
        self.stride, self.added = stride, outputs - inputs
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1 if stride == 1 else 0, groups=inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)
        self.activation: nn.Module = nn.PReLU(outputs) if prelu else nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        before, shortcut = x, x
        if self.stride == 2:
            before, shortcut = F.pad(x, _PAD), F.max_pool2d(x, 2)
        y = self.pointwise(self.depthwise(before))
        y[:, : y.shape[1] - self.added] += shortcut
        return self.activation(y)


class BlazeFace(nn.Module):
    """The network: 2 anchors per position of the grid of stride 8, 6 of the grid of stride 16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 5, 2)
        widths = (24, 24, 28, 32, 36, 42, 48, 56, 64, 72, 80, 88)
        strides = (1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1)
        self.fine = nn.Sequential(*(BlazeBlock(*pair) for pair in zip(widths, widths[1:], strides, strict=False)))
        self.coarse = nn.Sequential(BlazeBlock(88, 96, 2), *(BlazeBlock(96, 96) for _ in range(4)))
        self.fine_score, self.coarse_score = nn.Conv2d(88, 2, 1), nn.Conv2d(96, 6, 1)
        self.fine_box, self.coarse_box = nn.Conv2d(88, 32, 1), nn.Conv2d(96, 96, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the network.

        Args:
            images: [B, 3, H, W] in [-1, 1]; H and W multiples of 16.

        Returns:
            logits [B, K] and offsets [B, K, 16] of K anchors: center and size of the box, then (x, y) of right eye,
            left eye, nose, mouth, right and left ear (of the person), in pixels of the input relative to the anchor.
        """
        fine = self.fine(F.relu(self.stem(F.pad(images, (1, 2, 1, 2)))))
        coarse = self.coarse(fine)
        logits = [_by_anchor(score, 1) for score in (self.fine_score(fine), self.coarse_score(coarse))]
        offsets = [_by_anchor(box, 16) for box in (self.fine_box(fine), self.coarse_box(coarse))]
        return torch.cat(logits, dim=1)[..., 0], torch.cat(offsets, dim=1)


def _by_anchor(grid: Tensor, values: int) -> Tensor:
    return grid.permute(0, 2, 3, 1).reshape(len(grid), -1, values)


def anchors(height: int, width: int) -> Tensor:
    """Centers (x, y) of the anchors of an input of `height` x `width` pixels, in pixels: [K, 2]."""
    centers = []
    for stride, count in ((8, 2), (16, 6)):
        y, x = torch.meshgrid(torch.arange(height // stride), torch.arange(width // stride), indexing="ij")
        grid = (torch.stack([x, y], dim=-1).reshape(-1, 2).float() + 0.5) * stride
        centers.append(grid.repeat_interleave(count, dim=0))
    return torch.cat(centers)


def decode(offsets: Tensor, centers: Tensor) -> Tensor:
    """Boxes and keypoints [..., K, 16] as (x0, y0, x1, y1, six points), in pixels of the network input."""
    middle, size = offsets[..., :2] + centers, offsets[..., 2:4]
    points = offsets[..., 4:].unflatten(-1, (6, 2)) + centers[..., None, :]
    return torch.cat([middle - size / 2, middle + size / 2, points.flatten(-2)], dim=-1)
