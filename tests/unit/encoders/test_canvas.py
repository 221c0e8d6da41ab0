"""The pictures a model is given: reference canvas as released and for any number, and the first frame at its size."""

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
from bya_core.scene.types import Character, Scene
from tests.unit.encoders.networks import picture


def image(height: int, width: int, name: str = "picture") -> Tensor:
    return torch.from_numpy(picture(height, width, name)).permute(2, 0, 1).float() / 255


def bytes_of(made: Tensor) -> np.ndarray:
    return (made * 255).round().byte().permute(1, 2, 0).numpy()


def scene(frame: Tensor | None, height: int = 480, width: int = 720, fit="crop") -> Scene:
    ada = Character("Ada", torch.zeros(3, 8, 8))
    return Scene("", [ada], [None], height, width, 49, first_frame=frame, first_frame_fit=fit)


def test_two_faces_lie_on_the_canvas_pixel_for_pixel_as_released() -> None:
    """White 720x480; each crop resized by PIL to 360 and pasted at (0, 60) and (360, 60)."""
    faces = [picture(512, 512, "left"), picture(512, 512, "right")]
    want = Image.new("RGB", (720, 480), "white")
    for index, face in enumerate(faces):
        want.paste(Image.fromarray(face).resize((360, 360)), (360 * index, 60))
    tensors = [torch.from_numpy(face).permute(2, 0, 1).float() / 255 for face in faces]
    assert np.array_equal(bytes_of(reference_canvas(tensors, 480, 720, "released")), np.asarray(want))


@pytest.mark.parametrize(
    ("count", "height", "width", "across"),
    [(1, 480, 720, 1), (2, 480, 720, 2), (3, 480, 720, 3), (4, 480, 720, 2), (5, 480, 720, 3), (2, 720, 480, 1)],
)
def test_more_faces_stand_in_the_grid_that_leaves_them_largest(count, height, width, across) -> None:
    assert columns(count, height, width) == across
    shades = [(40 + 30 * n) / 255 for n in range(count)]
    canvas = reference_canvas([torch.full((3, 50, 50), shade) for shade in shades], height, width, "released")
    down = -(-count // across)
    side = min(width // across, height // down)
    middles = []
    for shade in shades:
        inside = (canvas[0] - shade).abs() < 1e-4
        rows, across_ = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
        assert len(rows) == len(across_) == side and inside.sum() == side * side, "whole, square, as large as it can be"
        middles.append((float(rows.float().mean()), float(across_.float().mean())))
    assert middles == sorted(middles), "in reading order"
    last = [x for y, x in middles if y == middles[-1][0]]
    assert abs(sum(last) / len(last) - (width - 1) / 2) <= 1, "a last row that is not full stands in the middle"


def test_a_frame_of_the_right_size_is_left_alone() -> None:
    frame = image(480, 720)
    for fit in ("crop", "pad", "stretch"):
        assert first_frame(scene(frame, fit=fit)) is frame
    assert first_frame(scene(None)) is None


def test_cropping_covers_and_padding_shows_everything() -> None:
    frame = torch.zeros(3, 400, 400)
    frame[0, :, :40], frame[1, :40] = 1.0, 1.0  # red at the left, green at the top
    cropped, padded = first_frame(scene(frame)), first_frame(scene(frame, fit="pad"))
    assert cropped.shape == padded.shape == (3, 480, 720)
    assert cropped[0, 240, 0] == 1 and cropped[1, 0].max() < 0.01, "what is too much at the top is gone"
    assert padded[:, :, :119].max() == 0 and padded[:, :, 601:].max() == 0, "black bars of 120 pixels"
    assert padded[0, 240, 122] > 0.9 and padded[1, 2, 360] > 0.9, "all of the picture"
    tall = first_frame(scene(image(900, 300), fit="pad"))
    shown = tall.mean(dim=(0, 1)) > 0.1
    assert shown[280:440].all() and not shown[:280].any() and not shown[440:].any()


def test_stretching_is_what_the_released_code_does() -> None:
    frame = picture(559, 1080)
    want = VaeImageProcessor(vae_scale_factor=8).resize(Image.fromarray(frame), 480, 720)
    made = first_frame(scene(torch.from_numpy(frame).permute(2, 0, 1).float() / 255, fit="stretch"))
    assert np.array_equal(bytes_of(made), np.asarray(want))


def test_only_the_released_model_gets_stretched_pictures() -> None:
    check_fit("stretch", "released")
    check_fit("pad", "row")
    with pytest.raises(InputError, match='"crop" or "pad"'):
        check_fit("stretch", "row")


def test_how_a_frame_is_fitted_is_part_of_what_a_stored_probe_was_made_from() -> None:
    from bya_core.routing.state import _may_change

    plain = scene(image(90, 90))
    facts = [_may_change(replace(plain, first_frame_fit=fit)) for fit in ("crop", "pad")]
    assert facts[0]["images"] != facts[1]["images"] and facts[0]["speech"] == facts[1]["speech"]


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
