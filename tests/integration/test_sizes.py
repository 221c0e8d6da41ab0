"""Any size that the model's units divide: landscape, portrait, square, smaller and larger than it was trained at."""

from __future__ import annotations

import pytest
import torch

from bya_core.encoders.canvas import reference_canvas
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.pipelines.generate import generate
from bya_core.weights.loader import load_bundle
from bya_core.weights.registry import MODELS
from tests.unit.routing.puppet_scene import VALIDATION, puppet_scene
from training.puppets import make_clip

SIZES = [(64, 64), (96, 64), (80, 128), (40, 56), (128, 72)]


@pytest.fixture(scope="module")
def toy():
    if not MODELS["toy"].available:
        pytest.skip("the toy model's weights are not here")
    return load_bundle("toy")


def scene_of(bundle, height, width, steps=1):
    return puppet_scene(bundle, make_clip(VALIDATION + 7, 2, height, width, 5, motion="still"), steps)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_video_and_masks_have_the_size_asked_for(toy, height, width):
    video = generate(scene_of(toy, height, width), toy)
    unit = toy.defaults.size_unit
    assert video.frames.shape == (5, height, width, 3)
    assert video.masks.shape == (2, 2, height // unit, width // unit)
    assert video.grid.tokens_to_pixels(video.masks).shape == (2, 5, height, width)
    (notice,) = [notice for notice in video.notices if "pixels" in notice]
    assert f"{width}x{height}" in notice and "trained at 96x64" in notice


def test_no_word_about_the_trained_size(toy):
    assert not [notice for notice in generate(scene_of(toy, 64, 96), toy).notices if "pixels" in notice]


@pytest.mark.parametrize(("height", "width", "near"), [(68, 96, 64), (64, 100, 96), (4, 96, 8)])
def test_a_size_that_does_not_fit_names_the_nearest_that_does(toy, height, width, near):
    with pytest.raises(InputError, match=f"a multiple of 8; use {near}"):
        toy.grid(5, height, width)


@pytest.mark.parametrize(("height", "width"), [(480, 720), (720, 480), (512, 512), (768, 1360)])
def test_sizes_of_the_real_weights_are_multiples_of_16(height, width):
    grid = TokenGrid.from_pixels(49, height, width)
    assert grid.shape == (13, height // 16, width // 16) and grid.pixels == (height, width)
    with pytest.raises(InputError, match="a multiple of 16"):
        TokenGrid.from_pixels(49, height + 8, width)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(480, 720), (720, 480), (512, 512), (64, 96), (128, 72), (64, 256)])
def test_the_canvas_shows_every_portrait_whole_and_in_its_own_cell(height, width, count):
    """Portraits keep their shape, lie in the middle of their cells, and are as large as those allow."""
    shades = [(n + 1) / (count + 2) for n in range(count)]
    portraits = [torch.full((3, 50, 40), shade) for shade in shades]
    canvas = reference_canvas(portraits, height, width)
    assert canvas.shape == (3, height, width)
    edges = [round(n * width / count) for n in range(count + 1)]
    for shade, left, right in zip(shades, edges, edges[1:], strict=False):
        inside = (canvas[0, :, left:right] - shade).abs() < 1e-3
        rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
        tall, wide = len(rows), len(columns)
        assert inside.sum() == tall * wide, "whole"
        assert abs(tall * 40 - wide * 50) <= 50, "in its own shape"
        assert tall == height or wide == right - left, "as large as the cell allows"
        assert abs(rows[0] - (height - 1 - rows[-1])) <= 1, "in the middle, from top to bottom"
        assert abs(columns[0] - (right - left - 1 - columns[-1])) <= 1, "and from left to right"
