"""Face alignment: map five landmarks to the FFHQ template with a similarity transform."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bya_core.errors import InputError

TEMPLATE = (
    *((192.98138, 239.94708), (318.90277, 240.1936), (256.63416, 314.01935)),
    *((201.26117, 371.41043), (313.08905, 371.15118)),
)
"""Eyes, nose and mouth corners in a 512 x 512 FFHQ crop, as in facexlib."""
CROP_SIZE = 512
BORDER = (132, 133, 135)
"""RGB value of the gray outside the image."""


def similarity(points: Sequence[tuple[float, float]], template: Sequence[tuple[float, float]] = TEMPLATE) -> np.ndarray:
    """Similarity transform [2, 3] that maps `points` to `template`.

    Least median of squares, as in the released code (OpenCV): among the transforms defined by two points, the one with
    the smallest median error selects the inliers, and a least squares fit to the inliers is returned. A single outlier,
    such as an occluded mouth corner, is ignored.

    Raises:
        InputError: If all points coincide.
    """
    source = np.array([complex(x, y) for x, y in points])
    target = np.array([complex(x, y) for x, y in template])
    best, inliers = np.inf, np.ones(len(source), bool)
    for pair in combinations(range(len(source)), 2):
        chosen = list(pair)
        if abs(source[chosen[0]] - source[chosen[1]]) < 1e-9:
            continue
        rotation, shift = _fit(source[chosen], target[chosen])
        error = np.abs(rotation * source + shift - target) ** 2
        if np.median(error) < best:
            best = float(np.median(error))
            spread = 2.5 * 1.4826 * (1 + 5 / max(1, len(source) - 2)) * max(np.sqrt(best), 1e-3)
            inliers = error <= spread**2
    if not np.isfinite(best):
        problem = "a face whose landmarks all coincide in one place"
        raise InputError(problem, "distinct eyes, nose and mouth", "use another image")
    rotation, shift = _fit(source[inliers], target[inliers])
    return np.array([[rotation.real, -rotation.imag, shift.real], [rotation.imag, rotation.real, shift.imag]])


def _fit(source: np.ndarray, target: np.ndarray) -> tuple[complex, complex]:
    """Least squares fit of rotation * source + shift = target; points and rotation with scale are complex numbers."""
    centered, wanted = source - source.mean(), target - target.mean()
    rotation = complex((centered.conj() * wanted).sum() / (np.abs(centered) ** 2).sum())
    return rotation, complex(target.mean() - rotation * source.mean())


def warp(image: Tensor, matrix: np.ndarray) -> Tensor:
    """Warp an image bilinearly, with gray outside of it.

    Args:
        image: [3, H, W] in [0, 1].
        matrix: Transform [2, 3] from image to crop coordinates.

    Returns:
        [3, CROP_SIZE, CROP_SIZE] in [0, 1].
    """
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    y, x = np.mgrid[:CROP_SIZE, :CROP_SIZE].astype(np.float64)
    source = np.stack([x, y, np.ones_like(x)], axis=-1) @ inverse.T  # [CROP_SIZE, CROP_SIZE, 2] in pixels
    height, width = image.shape[1:]
    grid = (torch.from_numpy(source) + 0.5) / torch.tensor([width, height]) * 2 - 1
    border = torch.tensor(BORDER, device=image.device).view(3, 1, 1) / 255
    warped = F.grid_sample(
        (image.float() - border)[None], grid[None].float().to(image.device), padding_mode="zeros", align_corners=False
    )
    return (warped[0] + border).clamp(0, 1)
