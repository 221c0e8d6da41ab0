"""CIE Lab conversion and soft color histograms."""

from __future__ import annotations

import numpy as np

_LOW = (0.0, -96.0, -112.0)
_STEP = (10.0, 8.0, 8.0)
_BINS = (11, 25, 27)
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
_DESCRIPTOR_SPREAD = (1.6, 1.0)


def unit_pixels(pixels: np.ndarray) -> np.ndarray:
    """Convert uint8 or float pixels of any shape to float32 in [0, 1]."""
    pixels = np.asarray(pixels)
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32) / np.float32(255.0)
    return np.clip(pixels.astype(np.float32), 0.0, 1.0)


def lab(pixels: np.ndarray) -> np.ndarray:
    """Convert sRGB pixels [..., 3] (uint8, or float in [0, 1]) to CIE Lab (D65), float32 [..., 3]."""
    srgb = unit_pixels(pixels)
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = linear @ (_TO_XYZ / _WHITE[:, None]).T.astype(np.float32)
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16.0 / 116.0)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)], axis=-1).astype(np.float32)


def lab_bins(colors: np.ndarray) -> np.ndarray:
    """Histogram bin index of each Lab color: [..., 3] -> int32 [...]."""
    index = np.zeros(colors.shape[:-1], dtype=np.int32)
    for axis, (low, step, bins) in enumerate(zip(_LOW, _STEP, _BINS, strict=True)):
        cell = ((colors[..., axis] - np.float32(low)) * np.float32(1.0 / step)).astype(np.int32)
        index = index * bins + np.minimum(np.maximum(cell, 0), bins - 1)
    return index


def histogram(
    colors: np.ndarray, weights: np.ndarray | None = None, spread: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """Soft histogram of Lab colors [P, 3]; see `bins_histogram`."""
    return bins_histogram(lab_bins(colors.reshape(-1, 3)), weights, spread)


def bins_histogram(
    bins: np.ndarray, weights: np.ndarray | None = None, spread: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """Soft Lab histogram that sums to 1, flattened to [bins].

    Args:
        bins: Output of `lab_bins`, any shape.
        weights: Weight of each entry, same shape as `bins`; `None` weights all entries equally.
        spread: Standard deviation of the blur in bins, along lightness (10 units per bin) and along a and b
            (8 units per bin).
    """
    from scipy.ndimage import gaussian_filter

    weights = None if weights is None else weights.ravel()
    counts = np.bincount(bins.ravel(), weights, minlength=int(np.prod(_BINS)))
    cells = counts.reshape(_BINS).astype(np.float64)
    soft = gaussian_filter(cells, (spread[0], spread[1], spread[1]), mode="constant")
    return soft.ravel() / max(soft.sum(), 1e-12)


def color_descriptor(pixels: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Soft Lab histogram of the pixels [..., H, W, 3] inside the boolean `region` [..., H, W]."""
    inside = np.asarray(region, dtype=bool)
    return histogram(lab(np.asarray(pixels)[inside]), spread=_DESCRIPTOR_SPREAD)


def histogram_similarity(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Bhattacharyya coefficients in [0, 1] of one histogram [D] with K histograms [K, D]: [K]."""
    return np.sqrt(many) @ np.sqrt(one)
