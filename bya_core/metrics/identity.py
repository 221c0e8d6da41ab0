"""Is it the right person? The nearest of several references."""

from __future__ import annotations

import numpy as np

from bya_core.metrics.colour import histogram, lab

_SPREAD = (1.6, 1.0)


def colour_descriptor(pixels: np.ndarray, region: np.ndarray) -> np.ndarray:
    """Soft Lab histogram of the pixels [..., H, W, 3] inside `region` [..., H, W], flat."""
    inside = np.asarray(region, dtype=bool)
    return histogram(lab(np.asarray(pixels)[inside]), spread=_SPREAD)


def histogram_similarity(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Bhattacharyya coefficient of one histogram [D] with each of [K, D]: [K] in 0..1."""
    return np.sqrt(many) @ np.sqrt(one)


def cosine_similarity(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Cosine of one embedding [D] with each of [K, D]: [K] in -1..1. For embeddings of a face encoder."""
    one, many = np.asarray(one, dtype=np.float64), np.asarray(many, dtype=np.float64)
    length = np.linalg.norm(many, axis=1) * np.linalg.norm(one)
    return many @ one / np.maximum(length, 1e-12)


def nearest(similarity: np.ndarray) -> int:
    """Index of the most similar reference."""
    return int(np.argmax(similarity))
