"""Refinement of masks: what each step does, and that nothing odd comes of odd masks."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from bya_core.config import RefineConfig
from bya_core.errors import InputError
from bya_core.evaluation import mask_metrics as masking
from bya_core.grid import TokenGrid
from bya_core.routing.refine import refine, refine_masks
from bya_core.routing.result import Routing
from training.benchmark.refinement_suite import CORRUPTIONS, refinement_milliseconds
from training.puppets.world import make_clip

DEFAULT = RefineConfig()
NOTHING = RefineConfig(
    threshold=0, propagate=False, max_regions=0, fill_holes=False, smoothing=0, exclusive=False, grow=0
)
SIZE = (5, 12, 16)


def people(count: int = 2, size: tuple[int, int, int] = SIZE) -> torch.Tensor:
    """Upright blocks side by side, soft at the rims: [N, T, h, w]."""
    frames, height, width = size
    masks = torch.zeros(count, frames, height, width)
    slot = width // count
    for n in range(count):
        masks[n, :, 2:-2, n * slot + 1 : (n + 1) * slot - 1] = 0.95
    return masks


def random_masks(count: int, size=SIZE, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(count + 1, *size, generator=draw)).softmax(0)[:count]


def owned(masks: torch.Tensor) -> torch.Tensor:
    return (masks > 0.5).float()


def test_without_any_step_masks_come_back_as_they_are():
    masks = random_masks(3)
    assert torch.equal(refine_masks(masks, NOTHING), masks)


def test_clean_masks_stay():
    masks = people()
    made = refine_masks(masks, DEFAULT)
    assert torch.equal(made, owned(masks)) and made.dtype == masks.dtype


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "none"])
def test_noise_is_removed(name):
    """On drawn people, from masks as a router that is sure of itself gives them: nearer to the truth, and calmer."""
    grid = TokenGrid.from_pixels(17, 64, 96, space_factor=4)
    before, after = [], []
    for seed in range(2_000_300, 2_000_308):
        truth = grid.pixels_to_tokens(torch.from_numpy(make_clip(seed, 2).masks)).numpy() >= 0.5
        rough = CORRUPTIONS[name](0.95 * truth, np.random.default_rng(seed))
        fine = refine_masks(torch.from_numpy(rough).float(), DEFAULT).numpy()
        for rows, made in ((before, rough), (after, fine)):
            labels = masking.to_labels(made)
            rows.append((masking.mean_iou(labels, truth), masking.flicker(labels)))
    iou_before, flicker_before = np.mean(before, axis=0)
    iou_after, flicker_after = np.mean(after, axis=0)
    assert iou_after > iou_before + 0.005
    assert flicker_after < 0.6 * flicker_before


def test_doubtful_tokens_get_the_label_of_their_neighbours():
    masks = people()
    masks[0, 2, 5:7, 3:5] = torch.tensor(0.45)
    masks[1, 2, 5:7, 3:5] = torch.tensor(0.5)  # a little more, but not sure
    only = replace(NOTHING, exclusive=True)
    assert refine_masks(masks, only)[1, 2, 5, 3] == 1
    spread = refine_masks(masks, replace(only, threshold=0.6, propagate=True))
    assert torch.equal(spread, owned(people()))
    dropped = refine_masks(masks, replace(only, threshold=0.6))
    assert dropped[:, 2, 5:7, 3:5].sum() == 0 and dropped[0, 2, 5, 2] == 1


def test_a_frame_that_is_missing_comes_back():
    for frame in range(SIZE[0]):
        masks = people()
        masks[0, frame] = 0
        made = refine_masks(masks, DEFAULT)
        assert masking.mean_iou(made[0, frame].numpy(), owned(people())[0, frame].numpy()) > 0.8, frame
        assert torch.equal(made[1], owned(people())[1])


def test_one_region_per_character_and_frame_unless_told_otherwise():
    masks = people()
    masks[0, 2, 3:6, 11:14] = 1.0  # a stray piece inside the other one
    masks[1, 2, 3:6, 11:14] = 0.0
    alone = replace(NOTHING, exclusive=True)
    assert refine_masks(masks, alone)[0, 2, 4, 12] == 1
    assert refine_masks(masks, replace(alone, max_regions=2))[0, 2, 4, 12] == 1
    one = refine_masks(masks, replace(alone, max_regions=1))
    assert one[0, 2, 4, 12] == 0 and torch.equal(one[0], owned(people())[0])
    assert torch.equal(refine_masks(masks, DEFAULT), owned(people()))  # and its owner has it back


def test_a_region_that_stays_wins_over_a_larger_one_that_flashes_up():
    masks = torch.zeros(1, 5, 12, 16)
    masks[0, :, 4:8, 2:6] = 1  # 16 tokens in every frame
    masks[0, 2, 2:8, 12:15] = 1  # 18 tokens in one
    made = refine_masks(masks, replace(NOTHING, exclusive=True, max_regions=1))
    assert made[0, 2, 5, 3] == 1 and made[0, 2, 5, 13] == 0


def test_holes_are_filled_but_not_with_somebody_else():
    masks = torch.zeros(2, 2, 12, 16)
    masks[0, :, 1:11, 1:15] = 1
    masks[:, :, 4:6, 3:5] = 0  # nobody
    masks[0, :, 4:8, 9:12] = 0
    masks[1, :, 4:8, 9:12] = 1  # somebody in front
    filled = refine_masks(masks, replace(NOTHING, fill_holes=True))
    assert filled[0, :, 4:6, 3:5].min() == 1
    exclusive = refine_masks(masks, replace(NOTHING, fill_holes=True, exclusive=True))
    assert exclusive[0, :, 4:6, 3:5].min() == 1
    assert exclusive[1, :, 4:8, 9:12].min() == 1 and exclusive.sum(0).max() == 1


def test_smoothing_over_time_is_soft_where_masks_may_be():
    masks = people()
    masks[0, 2] = 0
    soft = refine_masks(masks, replace(NOTHING, smoothing=0.7))
    assert 0 < soft[0, 2, 5, 3] < soft[0, 0, 5, 3] < 0.96
    assert torch.allclose(soft[1], masks[1], atol=1e-6)


def test_growing_never_takes_from_others_and_shrinking_undoes_it():
    masks = owned(people())
    alone = replace(NOTHING, exclusive=True)
    grown = refine_masks(masks, replace(alone, grow=1))
    assert (grown >= masks).all() and grown.sum() > masks.sum() and grown.sum(0).max() == 1
    assert refine_masks(masks, replace(alone, grow=-1)).sum() < masks.sum()
    one = masks[:1]
    back = refine_masks(refine_masks(one, replace(alone, grow=1)), replace(alone, grow=-1))
    assert (back >= one).all()


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("grow", [0, 1])
def test_order_of_characters_does_not_matter(exclusive, grow):
    config = replace(DEFAULT, exclusive=exclusive, grow=grow)
    for seed in range(3):
        masks = random_masks(3, seed=seed)
        masks[1] = masks[0]  # ties
        made = refine_masks(masks, config)
        assert torch.equal(refine_masks(masks, config), made)
        for order in itertools.permutations(range(3)):
            assert torch.equal(refine_masks(masks[list(order)], config), made[list(order)])


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 8, 12), (2, 8, 12), (3, 1, 1), (5, 2, 30), (1, 1, 1)])
def test_odd_sizes_and_odd_masks(count, size):
    shape = (count, *size)
    for masks in (torch.zeros(shape), torch.ones(shape), torch.full(shape, 0.5), random_masks(count, size)):
        for config in (DEFAULT, replace(DEFAULT, exclusive=False), replace(DEFAULT, grow=-1), NOTHING):
            made = refine_masks(masks, config)
            assert made.shape == shape and made.isfinite().all() and made.min() >= 0 and made.max() <= 1
            if config.exclusive:
                assert made.sum(0).max() <= 1
    assert refine_masks(torch.zeros(shape), DEFAULT).sum() == 0
    assert refine_masks(torch.full(shape, float("nan")), DEFAULT).sum() == 0


def test_masks_are_not_written_to():
    masks = random_masks(2)
    copy = masks.clone()
    refine_masks(masks, DEFAULT)
    refine_masks(masks, NOTHING).zero_()
    assert torch.equal(masks, copy)


def test_other_shapes_are_refused():
    with pytest.raises(InputError, match="rows"):
        refine_masks(torch.zeros(5, 8, 12), DEFAULT)


def test_refined_routing_is_forced_and_tells_what_was_lost():
    masks = people()
    masks[1] = 0
    masks[1, 2, 0, 0] = 0.9  # a speck in one frame
    routing = Routing.of("intra", masks, torch.eye(2), strength=0.0, calls=3, notices=("Before.",))
    made = refine(routing, DEFAULT)
    assert made.control.strength.tolist() == [1, 1] and made.calls == 3 and made.state is routing.state
    assert made.masks[1].sum() == 0 and made.masks[0].sum() > 0
    assert made.notices[0] == "Before." and "character 2 is empty" in made.notices[1] and len(made.notices) == 2
    assert made.confidence[0] == pytest.approx(0.95, abs=1e-5) and made.confidence[1] == 0


def test_four_characters_at_full_size_take_at_most_60_milliseconds():
    assert min(refinement_milliseconds(DEFAULT, repeats=5) for _ in range(3)) <= 60
