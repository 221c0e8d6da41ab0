"""How far each mouth is open, or how much it moves, from pixels alone."""

from __future__ import annotations

import numpy as np

from bya_core.io.color import unit_pixels


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


def in_view(regions: np.ndarray, share: float = 0.6, fewest: int = 6) -> np.ndarray:
    """Frames in which each character can be seen well enough to read its mouth, bool [N, F].

    Somebody behind another one says nothing with a mouth that nobody sees. A frame counts where the region has at
    least `share` of its size in the frames that show most of it (the 90th percentile); where fewer than `fewest`
    frames would be left, all count, so that nobody gets out of being judged.

    Args:
        regions: [N, F, H, W], bool.
    """
    size = regions.sum(axis=(-2, -1)).astype(np.float64)
    seen = size >= share * np.maximum(np.percentile(size, 90, axis=1, keepdims=True), 1.0)
    return seen | (seen.sum(axis=1, keepdims=True) < fewest)
