"""Faces turned upright: five points moved onto those of FFHQ, by rotation, scale and shift alone."""

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
"""Eyes, nose and corners of the mouth in a 512 x 512 FFHQ crop, as facexlib has them."""
SIDE = 512
BORDER = (132, 133, 135)
"""Grey (RGB) around the picture where the crop reaches beyond it."""


def similarity(points: Sequence[tuple[float, float]], template: Sequence[tuple[float, float]] = TEMPLATE) -> np.ndarray:
    """Rotation, scale and shift that move `points` onto `template`: [2, 3].

    Like the released code (OpenCV's least median of squares) it fits the points that agree: of all fits to two points
    the one with the least median error says which those are; one bad point, such as a covered corner of the mouth, is
    left out.

    Raises:
        InputError: all points in one place.
    """
    given = np.array([complex(x, y) for x, y in points])
    wanted = np.array([complex(x, y) for x, y in template])
    best, agree = np.inf, np.ones(len(given), bool)
    for pair in combinations(range(len(given)), 2):
        picked = list(pair)
        if abs(given[picked[0]] - given[picked[1]]) < 1e-9:
            continue
        turn, shift = _fit(given[picked], wanted[picked])
        error = np.abs(turn * given + shift - wanted) ** 2
        if np.median(error) < best:
            best = float(np.median(error))
            spread = 2.5 * 1.4826 * (1 + 5 / max(1, len(given) - 2)) * max(np.sqrt(best), 1e-3)
            agree = error <= spread**2
    if not np.isfinite(best):
        came = "a face whose points all lie in one place"
        raise InputError(came, "eyes, nose and mouth apart", "use another picture")
    turn, shift = _fit(given[agree], wanted[agree])
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def _fit(given: np.ndarray, wanted: np.ndarray) -> tuple[complex, complex]:
    """Least squares of turn * given + shift = wanted; a complex number turns and scales at once."""
    away, target = given - given.mean(), wanted - wanted.mean()
    turn = complex((away.conj() * target).sum() / (np.abs(away) ** 2).sum())
    return turn, complex(wanted.mean() - turn * given.mean())


def warp(image: Tensor, matrix: np.ndarray, side: int = SIDE) -> Tensor:
    """[3, H, W] in 0..1 -> [3, side, side]: the picture moved by `matrix` [2, 3], bilinear, grey around it."""
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    y, x = np.mgrid[:side, :side].astype(np.float64)
    source = np.stack([x, y, np.ones_like(x)], axis=-1) @ inverse.T  # [side, side, xy] in pixels
    height, width = image.shape[1:]
    grid = (torch.from_numpy(source) + 0.5) / torch.tensor([width, height]) * 2 - 1
    border = torch.tensor(BORDER, device=image.device).view(3, 1, 1) / 255
    moved = F.grid_sample(
        (image.float() - border)[None], grid[None].float().to(image.device), padding_mode="zeros", align_corners=False
    )
    return (moved[0] + border).clamp(0, 1)
