"""Square crops of video frames, upright and antialiased, for the face networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Squares:
    """Rotated squares in frames.

    Args:
        frame: Index of the frame of each of K squares, [K].
        center: (x, y) in pixels, [K, 2].
        side: Side in pixels, [K].
        angle: Clockwise rotation of the face in the image in radians, [K].
    """

    frame: np.ndarray
    center: np.ndarray
    side: np.ndarray
    angle: np.ndarray

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, index: slice | np.ndarray) -> Squares:
        return Squares(self.frame[index], self.center[index], self.side[index], self.angle[index])

    def to_frame(self, points: np.ndarray) -> np.ndarray:
        """Map points [K, ..., 2 or 3] from fractions of the square to pixels of the frame."""
        axes = (slice(None), *(None,) * (points.ndim - 2))
        x, y = points[..., 0] - 0.5, points[..., 1] - 0.5
        cos, sin, side = np.cos(self.angle)[axes], np.sin(self.angle)[axes], self.side[axes]
        mapped = np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1) * side[..., None]
        mapped += self.center[:, *(None,) * (points.ndim - 2)]
        return mapped if points.shape[-1] == 2 else np.concatenate([mapped, (points[..., 2] * side)[..., None]], -1)


def cut(frames: np.ndarray, squares: Squares, size: int, device: torch.device) -> Tensor:
    """Cut squares out of frames uint8 [F, H, W, 3]: [K, 3, size, size] in [0, 1], black outside the frame."""
    height, width = frames.shape[1:3]
    crops = torch.zeros(len(squares), 3, size, size, device=device)
    ramp = (torch.arange(size, device=device) + 0.5) / size - 0.5
    for k in range(len(squares)):
        (x, y), side, angle = squares.center[k], float(squares.side[k]), float(squares.angle[k])
        reach = side / 2 * (abs(np.cos(angle)) + abs(np.sin(angle))) + 1
        left, top = max(0, int(x - reach)), max(0, int(y - reach))
        right, bottom = min(width, int(np.ceil(x + reach))), min(height, int(np.ceil(y + reach)))
        if right - left < 2 or bottom - top < 2:
            continue
        part = torch.from_numpy(np.array(frames[squares.frame[k], top:bottom, left:right])).to(device)
        image = part.permute(2, 0, 1)[None]
        factor = max(1, min(int(side / size), *image.shape[2:]))
        if factor > 1:
            image = _reduced(image, factor)
        image = image.float() / 255.0
        cos, sin = np.cos(angle) * side, np.sin(angle) * side
        columns = cos * ramp[None, :] - sin * ramp[:, None] + float(x - left)
        rows = sin * ramp[None, :] + cos * ramp[:, None] + float(y - top)
        scale = [2.0 / (factor * n) for n in image.shape[:1:-1]]
        grid = torch.stack([columns * scale[0] - 1.0, rows * scale[1] - 1.0], dim=-1)
        crops[k] = F.grid_sample(image, grid[None], padding_mode="zeros", align_corners=False)[0]
    return crops


def _reduced(image: Tensor, factor: int) -> Tensor:
    """An image uint8 [1, 3, H, W] with means of `factor` x `factor` pixels, [1, 3, H // factor, W // factor]."""
    height, width = (n // factor for n in image.shape[2:])
    image = image[..., : height * factor, : width * factor]
    if image.device.type != "cpu":
        return F.avg_pool2d(image.float(), factor)
    return F.interpolate(image, (height, width), mode="bilinear", antialias=True, align_corners=False)
