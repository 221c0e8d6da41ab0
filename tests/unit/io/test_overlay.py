"""Masks made visible, and the reference canvas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bya_core.encoders.canvas import reference_canvas
from bya_core.errors import InputError
from bya_core.io.overlay import blend_masks, colour, legend, overlay_frames


def test_colours_are_distinct() -> None:
    colours = np.array([colour(i) for i in range(12)], dtype=float)
    apart = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e9 * np.eye(12)
    assert apart.min() > 30


def test_tint_lies_where_the_mask_is() -> None:
    frames = torch.full((2, 4, 6, 3), 100, dtype=torch.uint8)
    masks = torch.zeros(2, 2, 4, 6)
    masks[0, :, :, :2] = 1.0
    masks[1, :, :, 4:] = 1.0
    tinted = blend_masks(frames, masks, opacity=1.0)
    assert tinted[1, 2, 0].tolist() == list(colour(0))
    assert tinted[1, 2, 5].tolist() == list(colour(1))
    assert tinted[1, 2, 3].tolist() == [100, 100, 100]


@pytest.mark.parametrize("size", [(64, 96), (480, 720), (34, 50)])
@pytest.mark.parametrize("count", [1, 3])
def test_overlay_has_even_size_and_every_frame(size: tuple[int, int], count: int) -> None:
    frames = torch.randint(0, 256, (3, *size, 3), dtype=torch.uint8)
    masks = torch.rand(count, 3, size[0] // 16, size[1] // 16)
    made = list(overlay_frames(frames, masks, [f"character {i}" for i in range(count)]))
    assert len(made) == 3 and len({frame.shape for frame in made}) == 1
    assert made[0].dtype == np.uint8
    assert made[0].shape[0] % 2 == 0 and made[0].shape[1] % 2 == 0
    assert made[0].shape[1] >= 384


def test_legend_shows_each_colour() -> None:
    bar = legend(["Ada", "Bo"], 400)
    for index in range(2):
        assert (bar == np.array(colour(index))).all(axis=-1).any()


def test_canvas_of_two_squares_lies_as_in_the_released_code() -> None:
    canvas = reference_canvas([torch.zeros(3, 512, 512), torch.full((3, 512, 512), 0.5)], 480, 720)
    assert canvas.shape == (3, 480, 720)
    assert canvas[:, 60:420, :360].max() < 1e-3
    torch.testing.assert_close(canvas[:, 60:420, 360:], torch.full((3, 360, 360), 0.5))
    assert canvas[:, :60].min() == 1 and canvas[:, 420:].min() == 1


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_canvas_gives_each_its_own_cell(count: int) -> None:
    portraits = [torch.full((3, 30, 20), i / 10) for i in range(count)]
    canvas = reference_canvas(portraits, 64, 96)
    for i in range(count):
        middle = round((i + 0.5) * 96 / count)
        assert float(canvas[0, 32, middle]) == pytest.approx(i / 10, abs=1e-5)


def test_canvas_needs_room() -> None:
    with pytest.raises(InputError):
        reference_canvas([], 64, 96)
    with pytest.raises(InputError):
        reference_canvas([torch.zeros(3, 10, 100)] * 200, 64, 96)
