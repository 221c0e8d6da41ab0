"""How good character masks are: whether everybody has a place, how sure the router is, and how much they overlap."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from bya_core.masks import MIN_RELATIVE_AREA
from bya_core.routing.result import confidences


@dataclass(frozen=True)
class LayoutScore:
    """Measurements of character masks.

    Args:
        missing: indices of characters without a region, see `missing_characters`.
        confidence: lowest mean of a mask where it exceeds 0.5; 0 if a mask never does.
        overlap: largest soft intersection over union of two masks, 0 = none.
    """

    missing: tuple[int, ...]
    confidence: float
    overlap: float

    @property
    def rank(self) -> tuple[int, float]:
        """Larger is better: first that nobody is missing, then confidence without overlap."""
        return -len(self.missing), self.confidence - self.overlap


def layout_score(masks: Tensor) -> LayoutScore:
    """Measure masks [N, T, h, w] in 0..1."""
    masks = masks.float()
    pairs = combinations(masks, 2)
    overlaps = [float(torch.minimum(a, b).sum() / torch.maximum(a, b).sum().clamp(min=1e-6)) for a, b in pairs]
    confidence = float(confidences(masks).min())
    return LayoutScore(tuple(missing_characters(masks)), round(confidence, 4), round(max(overlaps, default=0.0), 4))


def missing_characters(masks: Tensor) -> list[int]:
    """Characters without a region.

    Args:
        masks: [N, T, h, w].

    Returns:
        Indices of masks whose area (above 0.5) is less than `MIN_RELATIVE_AREA` of the largest; none if all are empty.
    """
    area = (masks > 0.5).float().mean((1, 2, 3))
    return torch.nonzero(area < MIN_RELATIVE_AREA * area.max()).flatten().tolist()
