"""Mask overlays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bya_core.grid import TokenGrid
from bya_core.io.overlay import character_color, legend, render_overlay, render_sheet, tint_frame


def test_colors_are_distinct() -> None:
    colors = np.array([character_color(i) for i in range(12)], dtype=float)
    distance = np.linalg.norm(colors[:, None] - colors[None], axis=-1) + 1e9 * np.eye(12)
    assert distance.min() > 30


def test_tint_frame() -> None:
    frame = torch.full((4, 12, 3), 100, dtype=torch.uint8)
    masks = torch.zeros(2, 4, 12)
    masks[0, :, :2] = 1.0
    masks[1, :, 10:] = 1.0
    tinted = tint_frame(frame, masks, opacity=1.0)
    assert tinted[2, 0].tolist() == list(character_color(0))
    assert tinted[2, 11].tolist() == list(character_color(1))
    assert tinted[2, 6].tolist() == [100, 100, 100]
    outlined = tint_frame(frame, masks, opacity=0.0, outline=True)
    assert outlined[2, 2].tolist() == list(character_color(0)) and outlined[2, 0].tolist() == [100, 100, 100]


@pytest.mark.parametrize("size", [(64, 96), (480, 720), (34, 50)])
@pytest.mark.parametrize("count", [1, 3])
def test_render_overlay(size: tuple[int, int], count: int) -> None:
    frames = torch.randint(0, 256, (5, *size, 3), dtype=torch.uint8)
    masks, grid = torch.rand(count, 2, 3, 4), TokenGrid(2, 3, 4)
    overlay = list(render_overlay(iter(frames), masks, grid, [f"character {i}" for i in range(count)]))
    assert len(overlay) == 5 and len({frame.shape for frame in overlay}) == 1
    assert overlay[0].dtype == np.uint8
    assert overlay[0].shape[0] % 2 == 0 and overlay[0].shape[1] % 2 == 0
    assert overlay[0].shape[1] >= 384


def test_overlay_uses_the_masks_of_the_latent_frame() -> None:
    frames, masks = torch.zeros(5, 384, 384, 3, dtype=torch.uint8), torch.zeros(1, 2, 3, 4)
    masks[:, 1] = 1
    overlay = list(render_overlay(frames, masks, TokenGrid(2, 3, 4)))
    assert [bool(frame.any()) for frame in overlay] == [False, True, True, True, True]


def test_render_sheet() -> None:
    frames, masks = torch.zeros(5, 384, 400, 3, dtype=torch.uint8), torch.zeros(2, 2, 3, 4)
    sheet = render_sheet(frames, masks, TokenGrid(2, 3, 4), ["Ada", "Bo"], columns=3)
    bare = render_sheet(frames, masks, TokenGrid(2, 3, 4), columns=3)
    assert bare.shape == (384, 1200, 3) and sheet.shape[1] == 1200
    assert np.array_equal(sheet[384:], legend(["Ada", "Bo"], masks, 1200))


def test_legend() -> None:
    bar = legend(["Ada", "x" * 200], torch.zeros(2, 1, 1, 1), 400)
    assert bar.shape[:2] == (50, 400)
    for index in range(2):
        assert (bar == np.array(character_color(index))).all(axis=-1).any()
