"""Ranking of masks."""

from __future__ import annotations

import pytest
import torch

from bya_core.routing.layout import layout_score


def halves(left: float, right: float, shared: float = 0.0) -> torch.Tensor:
    """Two masks on 2 x 4 tokens, each high in its half of the frame and `shared` in the other."""
    masks = torch.full((2, 3, 2, 4), shared)
    masks[0, ..., :2], masks[1, ..., 2:] = left, right
    return masks


def test_better_masks_rank_higher() -> None:
    clear, unsure, mixed = halves(0.95, 0.95), halves(0.95, 0.6), halves(0.95, 0.95, 0.4)
    missing = halves(1.0, 0.1)
    ranks = [layout_score(masks).rank for masks in (clear, mixed, missing)]
    assert ranks == sorted(ranks, reverse=True)
    assert layout_score(clear).rank > layout_score(unsure).rank > layout_score(missing).rank


def test_numbers() -> None:
    score = layout_score(halves(0.9, 0.8, 0.1))
    assert score.missing == () and score.confidence == pytest.approx(0.8)
    assert score.overlap == pytest.approx((0.1 + 0.1) / (0.9 + 0.8), abs=1e-3)
    assert layout_score(halves(1.0, 0.2)).missing == (1,) and layout_score(torch.zeros(1, 2, 2, 2)).overlap == 0
