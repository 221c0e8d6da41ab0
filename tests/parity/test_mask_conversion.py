"""Segmented video -> token masks and loss weights, against the released conversion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bya_core.masks import objects_to_tokens, time_union
from training.engine.losses import released_mask_weights

FRAMES, HEIGHT, WIDTH = 49, 480, 720
"""Size of the drawn video, as the rule in the fixture's config says."""


@pytest.fixture(scope="module")
def stored(tensors) -> dict[str, Tensor]:
    return tensors("sam_mask_to_tokens")


@pytest.fixture(scope="module")
def ellipses(settings) -> Tensor:
    """[N, F, height, width] bool, drawn in float64 by the fixture's rule."""
    t, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (FRAMES, HEIGHT, WIDTH)), indexing="ij")
    drawn = []
    for e in settings("sam_mask_config")["ellipses"]:
        across = ((x - (e["cx"] + e["vx"] * t)) / e["rx"]) ** 2
        down = ((y - (e["cy"] + e["vy"] * t)) / e["ry"]) ** 2
        drawn.append(across + down <= 1)
    return torch.stack(drawn)


def _grid(stored: dict[str, Tensor]) -> tuple[int, int, int]:
    rows, columns = stored["time_max"].shape[:2]
    return len(stored["routing_logits"]) // (rows * columns), rows, columns


def test_token_masks_are_equal(stored, ellipses) -> None:
    shape = _grid(stored)
    ours = objects_to_tokens(ellipses, shape)
    theirs = stored["routing_logits"].T.unflatten(1, shape).float()
    assert torch.equal(ours, theirs)
    assert torch.equal(time_union(ours)[:, 0], stored["time_max"].permute(2, 0, 1).float())


def test_weights_of_the_dynamic_mask_loss(stored, ellipses, settings) -> None:
    theirs = stored["loss_mask_latent"]
    ours = released_mask_weights(ellipses[None], tuple(theirs.shape))
    assert_close(ours[0, :, 0], theirs, atol=1e-6, rtol=0)
    assert ours.sum().item() == pytest.approx(settings("sam_mask_config")["loss_mask_sum"], rel=1e-6)
