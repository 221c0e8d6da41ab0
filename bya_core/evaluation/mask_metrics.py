"""How well masks fit, how much they flicker, how often people are mixed up."""

from __future__ import annotations

import numpy as np


def iou(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union over the last two axes, float64 [...]; NaN where both are empty.

    Args:
        predicted, truth: bool [..., h, w] (any numbers are cut at 0.5).
    """
    one, two = _binary(predicted), _binary(truth)
    both = (one & two).sum(axis=(-2, -1))
    either = (one | two).sum(axis=(-2, -1))
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def mean_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mean of `iou` over everything that exists; NaN where nothing does."""
    values = iou(predicted, truth)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def to_labels(masks: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Masks [N, ..., h, w] in 0..1 -> bool of the same shape, at most one owner per place.

    A place belongs to the character with the largest value there, if that reaches `threshold`.
    """
    masks = np.asarray(masks, dtype=np.float64)
    owner = masks.argmax(axis=0)
    index = np.arange(masks.shape[0]).reshape(-1, *[1] * (masks.ndim - 1))
    return (owner == index) & (masks >= threshold)


def flicker(masks: np.ndarray) -> float:
    """Share of a mask's area that changes from one frame to the next, mean over characters.

    Masks [N, F, h, w]; 0 = still. Motion counts too: compare with the flicker of the truth.
    """
    binary = _binary(masks)
    if binary.shape[1] < 2:
        return 0.0
    changed = (binary[:, 1:] ^ binary[:, :-1]).sum(axis=(1, 2, 3)) / 2.0
    area = binary[:, 1:].sum(axis=(1, 2, 3))
    seen = area > 0
    return float((changed[seen] / area[seen]).mean()) if seen.any() else 0.0


def change(masks: np.ndarray) -> np.ndarray:
    """Mean absolute change of soft masks [..., T, h, w] from one frame to the next, float64 [...]; 0 with one frame.

    Taken over the whole picture, as the smoothness of masks is trained (paper eq. 3, its temporal part).
    """
    masks = np.asarray(masks, dtype=np.float64)
    if masks.shape[-3] < 2:
        return np.zeros(masks.shape[:-3])
    return np.abs(np.diff(masks, axis=-3)).mean(axis=(-3, -2, -1))


def assignment(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Which true character each predicted mask fits best, one to one, per frame: int [F, N].

    Masks [N, F, h, w]; found by the Hungarian method on IoU. Where nothing overlaps the own number is kept.
    """
    from scipy.optimize import linear_sum_assignment

    one, two = _binary(predicted), _binary(truth)
    pairs = np.nan_to_num(iou(one[:, None], two[None]))  # [N, N, F]
    own = 1e-6 * np.eye(one.shape[0])
    return np.stack([linear_sum_assignment(-(pairs[:, :, f] + own))[1] for f in range(one.shape[1])])


def swap_rate(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Share of characters and frames whose mask fits another better than its own; [N, F, h, w]."""
    found = assignment(predicted, truth)
    return float((found != np.arange(found.shape[1])).mean())


def _binary(masks: np.ndarray) -> np.ndarray:
    masks = np.asarray(masks)
    return masks if masks.dtype == bool else masks >= 0.5
