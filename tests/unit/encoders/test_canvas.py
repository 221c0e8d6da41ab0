"""Reference canvas in both layouts, and the first frame at the size of the video."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from bya_core.encoders.canvas import check_fit, columns, first_frame, reference_canvas
from bya_core.errors import InputError
from bya_core.scene.types import Character, FrameFit, Scene
from tests.unit.encoders.networks import image, picture


def to_bytes(tensor: Tensor) -> np.ndarray:
    return (tensor * 255).round().byte().permute(1, 2, 0).numpy()


def scene(frame: Tensor | None, height: int = 480, width: int = 720, fit: FrameFit = "crop") -> Scene:
    ada = Character("Ada", torch.zeros(3, 8, 8))
    return Scene("", [ada], [None], height, width, 49, first_frame=frame, first_frame_fit=fit)


def test_two_faces_match_the_released_code() -> None:
    """White 720x480; each crop resized by Pillow to 360 and pasted at (0, 60) and (360, 60)."""
    expected = Image.new("RGB", (720, 480), "white")
    for index, name in enumerate(("left", "right")):
        expected.paste(Image.fromarray(picture(512, 512, name)).resize((360, 360)), (360 * index, 60))
    faces = [image(512, 512, "left"), image(512, 512, "right")]
    assert np.array_equal(to_bytes(reference_canvas(faces, 480, 720, "released")), np.asarray(expected))


@pytest.mark.parametrize(
    ("count", "height", "width", "across"),
    [(1, 480, 720, 1), (2, 480, 720, 2), (3, 480, 720, 3), (4, 480, 720, 2), (5, 480, 720, 3), (2, 720, 480, 1)],
)
def test_released_layout_is_a_grid(count: int, height: int, width: int, across: int) -> None:
    assert columns(count, height, width) == across
    shades = [(40 + 30 * n) / 255 for n in range(count)]
    canvas = reference_canvas([torch.full((3, 50, 50), shade) for shade in shades], height, width, "released")
    side = min(width // across, height // -(-count // across))
    centers = []
    for shade in shades:
        inside = (canvas[0] - shade).abs() < 1e-4
        rows, cells = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
        assert len(rows) == len(cells) == side and inside.sum() == side * side, "complete squares of maximum size"
        centers.append((float(rows.float().mean()), float(cells.float().mean())))
    assert centers == sorted(centers), "in reading order"
    last = [x for y, x in centers if y == centers[-1][0]]
    assert abs(sum(last) / len(last) - (width - 1) / 2) <= 1, "the last row is centered"


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(480, 720), (720, 480), (512, 512), (64, 96), (128, 72), (64, 256)])
def test_row_layout_shows_each_portrait_in_its_own_cell(height: int, width: int, count: int) -> None:
    shades = [(n + 1) / (count + 2) for n in range(count)]
    canvas = reference_canvas([torch.full((3, 50, 40), shade) for shade in shades], height, width)
    assert canvas.shape == (3, height, width)
    edges = [round(n * width / count) for n in range(count + 1)]
    for shade, left, right in zip(shades, edges, edges[1:], strict=False):
        inside = (canvas[0, :, left:right] - shade).abs() < 1e-3
        rows, cells = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
        tall, wide = len(rows), len(cells)
        assert inside.sum() == tall * wide and abs(tall * 40 - wide * 50) <= 50, "complete, aspect ratio kept"
        assert tall == height or wide == right - left, "maximum size"
        assert abs(rows[0] - (height - 1 - rows[-1])) <= 1, "centered vertically"
        assert abs(cells[0] - (right - left - 1 - cells[-1])) <= 1, "centered horizontally"


@pytest.mark.parametrize("portraits", [[], [torch.zeros(3, 10, 100)] * 200])
def test_no_or_too_many_portraits_raise(portraits: list[Tensor]) -> None:
    with pytest.raises(InputError):
        reference_canvas(portraits, 64, 96)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_first_frame_of_the_right_size_is_unchanged(fit: FrameFit) -> None:
    frame = image(480, 720)
    assert first_frame(scene(frame, fit=fit)) is frame
    assert first_frame(scene(None, fit=fit)) is None


def test_crop_covers_and_pad_shows_everything() -> None:
    frame = torch.zeros(3, 400, 400)
    frame[0, :, :40], frame[1, :40] = 1.0, 1.0  # red on the left, green at the top
    cropped, padded = first_frame(scene(frame)), first_frame(scene(frame, fit="pad"))
    assert cropped.shape == padded.shape == (3, 480, 720)
    assert cropped[0, 240, 0] == 1 and cropped[1, 0].max() < 0.01, "the top is cropped"
    assert padded[:, :, :119].max() == 0 and padded[:, :, 601:].max() == 0, "black bars of 120 pixels"
    assert padded[0, 240, 122] > 0.9 and padded[1, 2, 360] > 0.9, "the whole image"
    visible = first_frame(scene(image(900, 300), fit="pad")).mean(dim=(0, 1)) > 0.1
    assert visible[280:440].all() and not visible[:280].any() and not visible[440:].any()


def test_stretch_matches_the_released_code() -> None:
    expected = VaeImageProcessor(vae_scale_factor=8).resize(Image.fromarray(picture(559, 1080)), 480, 720)
    assert np.array_equal(to_bytes(first_frame(scene(image(559, 1080), fit="stretch"))), np.asarray(expected))


def test_stretch_is_for_the_released_layout_only() -> None:
    check_fit("stretch", "released")
    check_fit("pad", "row")
    with pytest.raises(InputError, match='"crop" or "pad"'):
        check_fit("stretch", "row")


def test_fit_is_part_of_the_saved_routing_state() -> None:
    from bya_core.routing.state import _changeable_inputs

    crop, pad = (_changeable_inputs(replace(scene(image(90, 90)), first_frame_fit=fit)) for fit in ("crop", "pad"))
    assert {name for name in crop if crop[name] != pad[name]} == {"images"}
