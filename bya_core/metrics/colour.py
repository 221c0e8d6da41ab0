"""Colours as people tell them apart: CIE Lab and soft histograms over it."""

from __future__ import annotations

import numpy as np

_LOW = np.array([0.0, -96.0, -112.0])
_STEP = np.array([10.0, 8.0, 8.0])
_BINS = (11, 25, 27)
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])


def unit_pixels(pixels: np.ndarray) -> np.ndarray:
    """uint8 or float pixels -> float32 in 0..1, any shape."""
    pixels = np.asarray(pixels)
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255.0)
    return np.clip(pixels.astype(np.float32), 0.0, 1.0)


def lab(pixels: np.ndarray) -> np.ndarray:
    """sRGB pixels [..., 3] (uint8, or float in 0..1) -> CIE Lab (D65) float32 [..., 3]."""
    srgb = unit_pixels(pixels)
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ (_TO_XYZ / _WHITE[:, None]).T.astype(np.float32)
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16.0 / 116.0)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], axis=-1).astype(np.float32)


def lab_bins(colours: np.ndarray) -> np.ndarray:
    """Index of the histogram cell of each Lab colour: [..., 3] -> int [...]."""
    cell = np.floor((colours - _LOW) / _STEP).astype(np.int64)
    cell = np.clip(cell, 0, np.array(_BINS) - 1)
    return (cell[..., 0] * _BINS[1] + cell[..., 1]) * _BINS[2] + cell[..., 2]


def histogram(
    colours: np.ndarray, weights: np.ndarray | None = None, spread: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """Soft Lab histogram of unit sum, flat [cells].

    Args:
        colours: Lab, [P, 3].
        weights: [P]; default all 1.
        spread: blur in cells along lightness (10 units a cell) and along a and b (8 units a cell).
    """
    from scipy.ndimage import gaussian_filter

    bins = lab_bins(colours.reshape(-1, 3))
    counts = np.bincount(bins, None if weights is None else weights.ravel(), minlength=int(np.prod(_BINS)))
    cells = counts.reshape(_BINS).astype(np.float64)
    soft = gaussian_filter(cells, (spread[0], spread[1], spread[1]), mode="constant")
    return soft.ravel() / max(soft.sum(), 1e-12)
