"""Mouth movement of people in photos, estimated from frame differences."""

from __future__ import annotations

import numpy as np


def mouth_motion(frames: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Frame difference in the lower half of each region minus that in its upper half, float64 [N, F].

    A weak measure: it distinguishes a talking face from a still one, but not speech from other facial movement.

    Args:
        frames: uint8 [F, H, W, 3].
        regions: bool [N, F, H, W].
    """
    gray = frames.astype(np.float32).mean(axis=-1) / 255.0
    difference = np.abs(np.diff(gray, axis=0, prepend=gray[:1]))
    motion = np.zeros(regions.shape[:2])
    for n, region in enumerate(regions):
        for f, mask in enumerate(region):
            rows = np.flatnonzero(mask.any(axis=1))
            if rows.size < 2:
                continue
            middle = (rows[0] + rows[-1] + 1) // 2
            upper, lower = mask.copy(), mask.copy()
            upper[middle:], lower[:middle] = False, False
            motion[n, f] = max(0.0, _mean(difference[f], lower) - _mean(difference[f], upper))
    return motion


def _mean(values: np.ndarray, mask: np.ndarray) -> float:
    return float(values[mask].mean()) if mask.any() else 0.0
