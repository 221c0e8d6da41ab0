"""Frechet distance of two sets of features: FID of pictures, FVD of videos. What makes features is a Protocol here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bya_core.errors import InputError


@dataclass(frozen=True)
class Gaussian:
    """Mean [D] and covariance [D, D] of features, float64, and how many there were."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int


def gaussian(features: np.ndarray) -> Gaussian:
    """Of features [K, D]. Raises InputError for fewer than two, or for values that are not finite."""
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise InputError(f"features of shape {features.shape}", "two or more rows of features", "measure more")
    if not np.isfinite(features).all():
        raise InputError("features that are not finite", "numbers", "look for broken pictures")
    return Gaussian(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)), len(features))


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) (Dowson and Landau 1982), never below 0.

    The trace of the root is that of the root of C1^(1/2) C2 C1^(1/2), which is symmetric: no complex numbers, and no
    trouble with the singular covariances that fewer samples than features give.
    """
    shift = one.mean - other.mean
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    inner = np.linalg.eigvalsh(root @ other.covariance @ root)
    cross = np.sqrt(np.maximum(inner, 0.0)).sum()
    return max(0.0, float(shift @ shift + np.trace(one.covariance) + np.trace(other.covariance) - 2 * cross))


class PictureFeatures(Protocol):
    """Makes features of pictures."""

    def pictures(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 [K, H, W, 3] -> [K, D]."""
        ...


class VideoFeatures(Protocol):
    """Makes features of videos."""

    def videos(self, videos: np.ndarray) -> np.ndarray:
        """uint8 [K, F, H, W, 3] -> [K, D]."""
        ...


def fid(network: PictureFeatures, made: Iterable[np.ndarray], real: Iterable[np.ndarray]) -> float:
    """Frechet distance of pictures (paper sec. 5.2.2: of face regions); each part uint8 [K, H, W, 3]."""
    one, other = (gaussian(np.concatenate([network.pictures(part) for part in parts])) for parts in (made, real))
    return frechet_distance(one, other)


def fvd(network: VideoFeatures, made: Iterable[np.ndarray], real: Iterable[np.ndarray]) -> float:
    """Frechet distance of videos; each part uint8 [K, F, H, W, 3]."""
    one, other = (gaussian(np.concatenate([network.videos(part) for part in parts])) for parts in (made, real))
    return frechet_distance(one, other)
