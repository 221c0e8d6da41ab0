"""Mask metrics: overlap, flicker, swapped characters."""

from __future__ import annotations

import numpy as np


def iou(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union over the last two axes, float64 [...]; NaN where both are empty.

    Args:
        predicted, truth: masks [..., h, w]; soft masks are thresholded at 0.5.
    """
    one, two = _binary(predicted), _binary(truth)
    both = (one & two).sum(axis=(-2, -1))
    either = (one | two).sum(axis=(-2, -1))
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def mean_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mean of `iou` over all masks that are not empty; NaN if all are empty."""
    values = iou(predicted, truth)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def to_labels(masks: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Masks [N, ..., h, w] in 0..1 to bool masks with at most one character per position.

    A position belongs to the character with the largest value, if that is at least `threshold`.
    """
    masks = np.asarray(masks, dtype=np.float64)
    owner = masks.argmax(axis=0)
    index = np.arange(masks.shape[0]).reshape(-1, *[1] * (masks.ndim - 1))
    return (owner == index) & (masks >= threshold)


def flicker(masks: np.ndarray) -> float:
    """Fraction of the area of masks [N, F, h, w] that changes from frame to frame, mean over characters.

    Motion counts as well: compare with the flicker of the true masks.
    """
    binary = _binary(masks)
    if binary.shape[1] < 2:
        return 0.0
    changed = (binary[:, 1:] ^ binary[:, :-1]).sum(axis=(1, 2, 3)) / 2.0
    area = binary[:, 1:].sum(axis=(1, 2, 3))
    present = area > 0
    return float((changed[present] / area[present]).mean()) if present.any() else 0.0


def change(masks: np.ndarray) -> np.ndarray:
    """Mean absolute change of soft masks [..., T, h, w] from frame to frame, float64 [...]; 0 for a single frame.

    This is the temporal part of the smoothness loss (paper eq. 3).
    """
    masks = np.asarray(masks, dtype=np.float64)
    if masks.shape[-3] < 2:
        return np.zeros(masks.shape[:-3])
    return np.abs(np.diff(masks, axis=-3)).mean(axis=(-3, -2, -1))


def assignment(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Optimal one-to-one assignment of predicted to true masks [N, F, h, w] by IoU, per frame: int [F, N].

    Ties are resolved in favor of the identity.
    """
    from scipy.optimize import linear_sum_assignment

    one, two = _binary(predicted), _binary(truth)
    pairs = np.nan_to_num(iou(one[:, None], two[None]))  # [N, N, F]
    own = 1e-6 * np.eye(one.shape[0])
    return np.stack([linear_sum_assignment(-(pairs[:, :, f] + own))[1] for f in range(one.shape[1])])


def swap_rate(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Fraction of characters and frames whose mask [N, F, h, w] is assigned to another character."""
    found = assignment(predicted, truth)
    return float((found != np.arange(found.shape[1])).mean())


def _binary(masks: np.ndarray) -> np.ndarray:
    masks = np.asarray(masks)
    return masks if masks.dtype == bool else masks >= 0.5
