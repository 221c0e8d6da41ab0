"""Mouth opening of puppets, measured from pixels."""

from __future__ import annotations

import numpy as np

from bya_core.io.color import unit_pixels


def mouth_opening(
    frames: np.ndarray, regions: np.ndarray, mouth_rgb: tuple[float, float, float], tolerance: float = 0.30
) -> np.ndarray:
    """Fraction of each character's region with the color of the inside of a mouth, float64 [N, F].

    A pixel is weighted by 1 - distance / tolerance in RGB, so blurred mouths count in part. The area is divided by the
    mean size of the region over the clip rather than that in the frame, so that occlusion does not look like speech.
    Only changes over time are meaningful: dark hair adds a constant.

    Args:
        frames: [F, H, W, 3], uint8 or float in [0, 1].
        regions: [N, F, H, W], bool or float in [0, 1].
        mouth_rgb: Color of the inside of the mouth, in [0, 1].
        tolerance: RGB distance at which a pixel no longer counts.
    """
    distance = np.linalg.norm(unit_pixels(frames) - np.asarray(mouth_rgb, dtype=np.float32), axis=-1)
    likeness = np.clip(1.0 - distance / tolerance, 0.0, 1.0)
    regions = np.asarray(regions, dtype=np.float64)
    area = np.einsum("fhw,nfhw->nf", likeness, regions)
    size = regions.sum(axis=(-2, -1)).mean(axis=-1, keepdims=True)
    return area / np.maximum(size, 1.0)


def in_view(regions: np.ndarray, share: float = 0.6, fewest: int = 6) -> np.ndarray:
    """Frames in which each character is visible enough to measure its mouth, bool [N, F].

    Args:
        regions: bool [N, F, H, W].
        share: Required size of the region relative to its 90th percentile over the clip.
        fewest: If fewer frames qualify, all frames are used.
    """
    size = regions.sum(axis=(-2, -1)).astype(np.float64)
    seen = size >= share * np.maximum(np.percentile(size, 90, axis=1, keepdims=True), 1.0)
    return seen | (seen.sum(axis=1, keepdims=True) < fewest)
