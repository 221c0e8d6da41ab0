"""How far each mouth is open, from pixels: the area of the mouth's inside within a character's region."""

from __future__ import annotations

import numpy as np

from bya_core.metrics.colour import unit_pixels


def mouth_opening(
    frames: np.ndarray, regions: np.ndarray, mouth_rgb: tuple[float, float, float], tolerance: float = 0.30
) -> np.ndarray:
    """Share of each character's region that looks like the inside of a mouth, float64 [N, F].

    A pixel counts by 1 - distance / tolerance (distance in RGB, 0 beyond `tolerance`), so a blurred mouth
    counts in part. The area is divided by the character's mean region size over the clip, not by that of the
    frame: being half hidden for a moment must not look like speaking. Only changes over time mean anything:
    dark hair adds a constant.

    Args:
        frames: [F, H, W, 3], uint8 or float in 0..1.
        regions: [N, F, H, W], bool or 0..1.
        mouth_rgb: colour of the inside of every mouth, 0..1.
    """
    distance = np.linalg.norm(unit_pixels(frames) - np.asarray(mouth_rgb, dtype=np.float32), axis=-1)
    likeness = np.clip(1.0 - distance / tolerance, 0.0, 1.0)
    regions = np.asarray(regions, dtype=np.float64)
    area = np.einsum("fhw,nfhw->nf", likeness, regions)
    size = regions.sum(axis=(-2, -1)).mean(axis=-1, keepdims=True)
    return area / np.maximum(size, 1.0)
