"""Mask refinement: each step, invariances and extreme inputs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from bya_core.config import RefineConfig
from bya_core.errors import InputError
from bya_core.evaluation import mask_metrics as masking
from bya_core.grid import TokenGrid
from bya_core.routing.refine import refine, refine_masks
from bya_core.routing.result import Routing
from training.benchmark.refinement_suite import measure_refinement, refinement_milliseconds
from training.puppets.world import make_clip

DEFAULT = RefineConfig()
NOTHING = RefineConfig(
    threshold=0, propagate=False, max_regions=0, fill_holes=False, smoothing=0, exclusive=False, grow=0
)
SIZE = (5, 12, 16)


def rectangles(count: int = 2, size: tuple[int, int, int] = SIZE) -> torch.Tensor:
    """Rectangles side by side with value 0.95: [N, T, h, w]."""
    frames, height, width = size
    masks = torch.zeros(count, frames, height, width)
    slot = width // count
    for n in range(count):
        masks[n, :, 2:-2, n * slot + 1 : (n + 1) * slot - 1] = 0.95
    return masks


def random_masks(count: int, size=SIZE, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(count + 1, *size, generator=draw)).softmax(0)[:count]


def binary(masks: torch.Tensor) -> torch.Tensor:
    return (masks > 0.5).float()


def test_no_steps_change_nothing():
    masks = random_masks(3)
    assert torch.equal(refine_masks(masks, NOTHING), masks)


def test_clean_masks_become_binary():
    masks = rectangles()
    refined = refine_masks(masks, DEFAULT)
    assert torch.equal(refined, binary(masks)) and refined.dtype == masks.dtype


def test_corruptions_are_reduced():
    """Corrupted masks of synthetic characters get closer to the truth and flicker less."""
    grid = TokenGrid.from_pixels(17, 64, 96, space_factor=4)
    pairs = []
    for seed in range(2_000_300, 2_000_308):
        truth = grid.pixels_to_tokens(torch.from_numpy(make_clip(seed, 2).masks)).numpy() >= 0.5
        pairs.append((seed, 0.95 * truth, truth))
    for name, row in measure_refinement(pairs, DEFAULT).items():
        if name != "none":
            assert row["iou after"] > row["iou before"] + 0.005, name
            assert row["flicker after"] < 0.6 * row["flicker before"], name


def test_low_confidence_tokens():
    masks = rectangles()
    masks[0, 2, 5:7, 3:5] = torch.tensor(0.45)
    masks[1, 2, 5:7, 3:5] = torch.tensor(0.5)  # higher, but below the threshold
    only = replace(NOTHING, exclusive=True)
    assert refine_masks(masks, only)[1, 2, 5, 3] == 1
    spread = refine_masks(masks, replace(only, threshold=0.6, propagate=True))
    assert torch.equal(spread, binary(rectangles()))
    dropped = refine_masks(masks, replace(only, threshold=0.6))
    assert dropped[:, 2, 5:7, 3:5].sum() == 0 and dropped[0, 2, 5, 2] == 1


def test_missing_frame_is_restored():
    for frame in range(SIZE[0]):
        masks = rectangles()
        masks[0, frame] = 0
        refined = refine_masks(masks, DEFAULT)
        assert masking.mean_iou(refined[0, frame].numpy(), binary(rectangles())[0, frame].numpy()) > 0.8, frame
        assert torch.equal(refined[1], binary(rectangles())[1])


def test_max_regions():
    masks = rectangles()
    masks[0, 2, 3:6, 11:14] = 1.0  # a small region inside the other character
    masks[1, 2, 3:6, 11:14] = 0.0
    base = replace(NOTHING, exclusive=True)
    assert refine_masks(masks, base)[0, 2, 4, 12] == 1
    assert refine_masks(masks, replace(base, max_regions=2))[0, 2, 4, 12] == 1
    one = refine_masks(masks, replace(base, max_regions=1))
    assert one[0, 2, 4, 12] == 0 and torch.equal(one[0], binary(rectangles())[0])
    assert torch.equal(
        refine_masks(masks, DEFAULT), binary(rectangles())
    )  # the region is assigned to the other character


def test_persistent_region_wins_over_a_larger_short_one():
    masks = torch.zeros(1, 5, 12, 16)
    masks[0, :, 4:8, 2:6] = 1  # 16 tokens in every frame
    masks[0, 2, 2:8, 12:15] = 1  # 18 tokens in one
    refined = refine_masks(masks, replace(NOTHING, exclusive=True, max_regions=1))
    assert refined[0, 2, 5, 3] == 1 and refined[0, 2, 5, 13] == 0


def test_fill_holes():
    masks = torch.zeros(2, 2, 12, 16)
    masks[0, :, 1:11, 1:15] = 1
    masks[:, :, 4:6, 3:5] = 0  # background
    masks[0, :, 4:8, 9:12] = 0
    masks[1, :, 4:8, 9:12] = 1  # another character in front
    filled = refine_masks(masks, replace(NOTHING, fill_holes=True))
    assert filled[0, :, 4:6, 3:5].min() == 1
    exclusive = refine_masks(masks, replace(NOTHING, fill_holes=True, exclusive=True))
    assert exclusive[0, :, 4:6, 3:5].min() == 1
    assert exclusive[1, :, 4:8, 9:12].min() == 1 and exclusive.sum(0).max() == 1


def test_smoothing():
    masks = rectangles()
    masks[0, 2] = 0
    soft = refine_masks(masks, replace(NOTHING, smoothing=0.7))
    assert 0 < soft[0, 2, 5, 3] < soft[0, 0, 5, 3] < 0.96
    assert torch.allclose(soft[1], masks[1], atol=1e-6)


def test_grow():
    masks = binary(rectangles())
    base = replace(NOTHING, exclusive=True)
    grown = refine_masks(masks, replace(base, grow=1))
    assert (grown >= masks).all() and grown.sum() > masks.sum() and grown.sum(0).max() == 1
    assert refine_masks(masks, replace(base, grow=-1)).sum() < masks.sum()
    one = masks[:1]
    back = refine_masks(refine_masks(one, replace(base, grow=1)), replace(base, grow=-1))
    assert (back >= one).all()


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("grow", [0, 1])
def test_character_order_equivariance(exclusive, grow):
    config = replace(DEFAULT, exclusive=exclusive, grow=grow)
    for seed in range(3):
        masks = random_masks(3, seed=seed)
        masks[1] = masks[0]  # ties
        refined = refine_masks(masks, config)
        assert torch.equal(refine_masks(masks, config), refined)
        for order in itertools.permutations(range(3)):
            assert torch.equal(refine_masks(masks[list(order)], config), refined[list(order)])


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 8, 12), (2, 8, 12), (3, 1, 1), (5, 2, 30), (1, 1, 1)])
def test_extreme_sizes_and_values(count, size):
    shape = (count, *size)
    for masks in (torch.zeros(shape), torch.ones(shape), torch.full(shape, 0.5), random_masks(count, size)):
        for config in (DEFAULT, replace(DEFAULT, exclusive=False), replace(DEFAULT, grow=-1), NOTHING):
            refined = refine_masks(masks, config)
            assert refined.shape == shape and refined.isfinite().all() and refined.min() >= 0 and refined.max() <= 1
            if config.exclusive:
                assert refined.sum(0).max() <= 1
    assert refine_masks(torch.zeros(shape), DEFAULT).sum() == 0
    assert refine_masks(torch.full(shape, float("nan")), DEFAULT).sum() == 0


def test_input_is_not_modified():
    masks = random_masks(2)
    copy = masks.clone()
    refine_masks(masks, DEFAULT)
    refine_masks(masks, NOTHING).zero_()
    assert torch.equal(masks, copy)


def test_invalid_shape_raises():
    with pytest.raises(InputError):
        refine_masks(torch.zeros(5, 8, 12), DEFAULT)


def test_refined_routing():
    masks = rectangles()
    masks[1] = 0
    masks[1, 2, 0, 0] = 0.9  # one token in one frame
    routing = Routing.of("intra", masks, torch.eye(2), strength=0.0, calls=3, notices=("Before.",))
    refined = refine(routing, DEFAULT)
    assert refined.control.strength.tolist() == [1, 1] and refined.calls == 3 and refined.state is routing.state
    assert refined.masks[1].sum() == 0 and refined.masks[0].sum() > 0
    assert (
        refined.notices[0] == "Before." and "character 2 is empty" in refined.notices[1] and len(refined.notices) == 2
    )
    assert refined.confidence[0] == pytest.approx(0.95, abs=1e-5) and refined.confidence[1] == 0


def test_duration_of_four_characters_at_full_size():
    assert min(refinement_milliseconds(DEFAULT, repeats=5) for _ in range(3)) <= 60
