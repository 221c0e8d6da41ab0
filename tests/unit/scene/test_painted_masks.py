"""Painted masks: their JSON, their file, and how they change the masks of a router."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.scene.painted_masks import INLINE, PaintedMasks, parse_painted_masks, read_strokes

GRID = TokenGrid(3, 2, 4)
NAMES = ["Ada", "Bo"]
PAINTED = PaintedMasks("strokes.png", GRID.shape, NAMES, columns=4)
SCALE = 4  # pixels per token


def sheet() -> np.ndarray:
    """Transparent RGBA pixels of all tiles."""
    return np.zeros((2 * 2 * SCALE, 4 * 4 * SCALE, 4), dtype=np.uint8)


def tile(pixels: np.ndarray, character: int, frame: int) -> np.ndarray:
    """Part of `sheet` of a character and frame."""
    row, column = divmod(character * 3 + frame, 4)
    return pixels[row * 2 * SCALE : (row + 1) * 2 * SCALE, column * 4 * SCALE : (column + 1) * 4 * SCALE]


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_strokes_replace_only_painted_parts(tmp_path: Path) -> None:
    pixels = sheet()
    tile(pixels, 1, 2)[:, : 2 * SCALE] = 255  # white: the left half belongs to Bo
    tile(pixels, 1, 2)[:, 3 * SCALE :] = (0, 0, 0, 255)  # black: the last column does not
    tile(pixels, 0, 0)[:SCALE, : SCALE // 2] = 255  # half of one token
    strokes = read_strokes(PAINTED, save(tmp_path / "strokes.png", pixels), NAMES, GRID)
    masks = torch.full((2, *GRID.shape), 0.25)
    control = strokes.control(masks, 0.5, 0.1, 0.9)
    assert control.strength.tolist() == [[0.5, 0, 0], [0, 0, 0.5]]
    assert control.masks[1, 2, 0].tolist() == [1, 1, 0.25, 0]
    assert control.masks[0, 0, 0, 0].item() == pytest.approx(0.5 * 0.25 + 0.5, abs=1e-3)
    untouched = control.masks.clone()
    untouched[1, 2] = untouched[0, 0, 0, 0] = 0.25
    assert torch.allclose(untouched, masks)
    assert float(control.start_percent[0]) == pytest.approx(0.1) and float(control.end_percent[1]) == pytest.approx(0.9)


def test_characters_are_matched_by_name(tmp_path: Path) -> None:
    pixels = sheet()
    tile(pixels, 0, 1)[:] = 255
    path = save(tmp_path / "strokes.png", pixels)
    strokes = read_strokes(PAINTED, path, ["Bo", "Cy", "Ada"], GRID)
    assert strokes.alpha.amax((1, 2, 3)).tolist() == [0, 0, 1]
    with pytest.raises(InputError, match="painted_masks of Ada, Bo; expected masks of Ada, Cy"):
        read_strokes(PAINTED, path, ["Ada", "Cy"], GRID)


def test_file_has_to_match_the_scene(tmp_path: Path) -> None:
    path = save(tmp_path / "strokes.png", sheet())
    with pytest.raises(InputError, match=r"grid of 3 x 2 x 4 tokens; expected 3 x 4 x 4 .*clear the painting"):
        read_strokes(PAINTED, path, NAMES, TokenGrid(3, 4, 4))
    with pytest.raises(InputError, match="window from latent frame 1; expected the one from 11"):
        read_strokes(PAINTED, path, NAMES, GRID, start=10)
    with pytest.raises(InputError, match="of painted_masks is missing"):
        read_strokes(PAINTED, tmp_path / "gone.png", NAMES, GRID)
    for name, message in (("a" * 300, "cannot be accessed"), ("a\0b", "contains a character")):
        with pytest.raises(InputError, match=f"the file of painted_masks .*{message}"):
            read_strokes(PAINTED, tmp_path / name, NAMES, GRID)
    with pytest.raises(InputError, match="63 x 16 pixels; expected 16 x 4 or an integer multiple"):
        read_strokes(PAINTED, save(path, sheet()[:, 1:]), NAMES, GRID)
    path.write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read"):
        read_strokes(PAINTED, path, NAMES, GRID)


def test_image_in_the_description(tmp_path: Path) -> None:
    content = save(tmp_path / "strokes.png", sheet()).read_bytes()
    painted = replace(PAINTED, file=INLINE + base64.b64encode(content).decode())
    assert painted.image() == content and PAINTED.image() is None
    with pytest.raises(InputError, match="the image in painted_masks is not base64"):
        replace(PAINTED, file=INLINE + "a%").image()
    with pytest.raises(InputError, match="the image in painted_masks with 63 x 16 pixels"):
        read_strokes(painted, save(tmp_path / "cut.png", sheet()[:, 1:]), NAMES, GRID)


def test_parse() -> None:
    assert parse_painted_masks("") is None and parse_painted_masks(" \n") is None
    data: dict[str, Any] = {"file": "a/b.png [input]", "grid": [3, 2, 4], "characters": NAMES, "columns": 4, "start": 2}
    painted = parse_painted_masks(json.dumps(data))
    assert painted == PaintedMasks("a/b.png [input]", (3, 2, 4), NAMES, 4, 2)
    for change, message in (
        ({"grid": [3, 2]}, "grid"),
        ({"grid": [3, 2, 0]}, "at least 1"),
        ({"characters": []}, "at least 1"),
        ({"file": ""}, "is empty"),
        ({"layers": 1}, 'unknown key "layers"'),
    ):
        with pytest.raises(InputError, match=f"painted_masks.*{message}"):
            parse_painted_masks(json.dumps(data | change))
    with pytest.raises(InputError, match="painted_masks is not valid JSON"):
        parse_painted_masks("painting.png")
