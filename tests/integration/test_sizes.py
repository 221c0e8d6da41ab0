"""Video sizes: landscape, portrait, square, smaller and larger than the training size."""

from __future__ import annotations

import pytest

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
        pytest.skip("the weights of the toy model are missing")
    return load_bundle("toy")


def scene_of(bundle, height, width, steps=1):
    return puppet_scene(bundle, make_clip(VALIDATION + 7, 2, height, width, 5, motion="still"), steps)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_video_and_masks_have_the_requested_size(toy, height, width):
    video = generate(scene_of(toy, height, width), toy)
    unit = toy.defaults.size_unit
    assert video.frames.shape == (5, height, width, 3)
    assert video.masks.shape == (2, 2, height // unit, width // unit)
    assert video.grid.tokens_to_pixels(video.masks).shape == (2, 5, height, width)
    (notice,) = [notice for notice in video.notices if "pixels" in notice]
    assert f"{width}x{height}" in notice and "trained at 96x64" in notice


def test_trained_size_has_no_notice(toy):
    assert not [notice for notice in generate(scene_of(toy, 64, 96), toy).notices if "pixels" in notice]


@pytest.mark.parametrize(("height", "width", "near"), [(68, 96, 64), (64, 100, 96), (4, 96, 8)])
def test_invalid_size_suggests_the_nearest(toy, height, width, near):
    with pytest.raises(InputError, match=f"a multiple of 8; use {near}"):
        toy.grid(5, height, width)


@pytest.mark.parametrize(("height", "width"), [(480, 720), (720, 480), (512, 512), (768, 1360)])
def test_sizes_of_the_released_model(height, width):
    grid = TokenGrid.from_pixels(49, height, width)
    assert grid.shape == (13, height // 16, width // 16) and grid.pixels == (height, width)
    with pytest.raises(InputError, match="a multiple of 16"):
        TokenGrid.from_pixels(49, height + 8, width)
