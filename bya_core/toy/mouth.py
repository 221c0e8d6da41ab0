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


def mouth_motion(frames: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """How much the lower half of each region changes from frame to frame beyond its upper half, float64 [N, F].

    A weak measure, for people of whom nothing else is known: it tells a talking face from a still one.

    Args:
        frames: uint8 [F, H, W, 3].
        regions: bool [N, F, H, W].
    """
    grey = frames.astype(np.float32).mean(axis=-1) / 255.0
    moved = np.abs(np.diff(grey, axis=0, prepend=grey[:1]))
    made = np.zeros(regions.shape[:2])
    for n, region in enumerate(regions):
        for f, here in enumerate(region):
            rows = np.flatnonzero(here.any(axis=1))
            if rows.size < 2:
                continue
            middle = (rows[0] + rows[-1] + 1) // 2
            upper, lower = here.copy(), here.copy()
            upper[middle:], lower[:middle] = False, False
            made[n, f] = max(0.0, _mean(moved[f], lower) - _mean(moved[f], upper))
    return made


def _mean(values: np.ndarray, where: np.ndarray) -> float:
    return float(values[where].mean()) if where.any() else 0.0
