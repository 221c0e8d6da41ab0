"""The two pictures a model is given: all faces on one canvas, which tells it who is who, and the first frame."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bya_core.encoders.domains import CanvasLayout
from bya_core.errors import InputError
from bya_core.io.media import fit_image
from bya_core.scene.types import FrameFit, Scene


def reference_canvas(portraits: Sequence[Tensor], height: int, width: int, layout: CanvasLayout = "row") -> Tensor:
    """Each portrait in a cell of its own, in reading order, as large as fits and centred, on white.

    Args:
        portraits: N of [3, h, w] in 0..1 on white, any sizes.
        layout: "row" = all side by side; "released" = as the released code does it, in 8 bits by PIL's bicubic: two
            square portraits on 480 x 720 are 360 pixels wide and fill rows 60 to 420. More than it knows (two) stand in
            the grid that leaves them largest.

    Returns:
        [3, height, width] in 0..1.

    Raises:
        InputError: no portraits, or cells too narrow for them.
    """
    if not portraits:
        raise InputError("a canvas for 0 characters", "at least 1 portrait", "add a character")
    count = len(portraits)
    across = count if layout == "row" else columns(count, height, width)
    down = math.ceil(count / across)
    canvas = torch.ones(3, height, width, device=portraits[0].device)
    for index, portrait in enumerate(portraits):
        row, column = divmod(index, across)
        here = min(across, count - row * across)  # a last row that is not full stands in the middle
        side = width / across
        start = (width - here * side) / 2 + column * side
        left, right = round(start), round(start + side)
        top, bottom = round(row * height / down), round((row + 1) * height / down)
        scale = min((bottom - top) / portrait.shape[1], (right - left) / portrait.shape[2])
        size = round(portrait.shape[1] * scale), round(portrait.shape[2] * scale)
        if min(size) < 1:
            came = f"{count} characters on {width} pixels"
            raise InputError(came, "at least one pixel for each", "use a wider video")
        small = _resized(portrait, size) if layout == "released" else _interpolated(portrait, size)
        y, x = top + (bottom - top - size[0]) // 2, left + (right - left - size[1]) // 2
        canvas[:, y : y + size[0], x : x + size[1]] = small.to(canvas)
    return canvas


def columns(count: int, height: int, width: int) -> int:
    """Cells side by side that leave `count` square portraits largest; of equals fewer rows, then fewer empty cells."""

    def good(across: int) -> tuple[float, int, int]:
        down = math.ceil(count / across)
        return min(width / across, height / down), -down, -across

    return max(range(1, count + 1), key=good)


def first_frame(scene: Scene) -> Tensor | None:
    """The picture a video starts from, at its size: [3, height, width] in 0..1, or None.

    "crop" covers the video and loses what does not fit, evenly on both sides; "pad" shows all of it between black bars,
    as films are shown; "stretch" pulls it to the size, as the released code does (PIL's Lanczos).
    """
    if scene.first_frame is None:
        return None
    size, image = (scene.height, scene.width), scene.first_frame
    if tuple(image.shape[1:]) == size:
        return image
    if scene.first_frame_fit == "stretch":
        return _resized(image, size, Image.Resampling.LANCZOS)
    if scene.first_frame_fit == "crop":
        return fit_image(image, *size)
    scale = min(size[0] / image.shape[1], size[1] / image.shape[2])
    inner = [max(1, min(most, round(side * scale))) for side, most in zip(image.shape[1:], size, strict=True)]
    small = _interpolated(image, (inner[0], inner[1]))
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    return F.pad(small, (left, size[1] - inner[1] - left, top, size[0] - inner[0] - top))


def check_fit(fit: FrameFit, layout: CanvasLayout) -> None:
    """Raises InputError where a picture would be stretched for a model that never saw stretched ones."""
    if fit == "stretch" and layout != "released":
        raise InputError(
            'first_frame_fit "stretch" with a model that is not the released one',
            '"crop" or "pad"; only the released weights are used with stretched pictures',
            "choose one of them",
        )


def _interpolated(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image[None].float(), size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def _resized(image: Tensor, size: tuple[int, int], how: Image.Resampling = Image.Resampling.BICUBIC) -> Tensor:
    """[3, H, W] -> [3, *size] in steps of 1/255, as PIL resizes a picture."""
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    made = np.array(Image.fromarray(pixels).resize((size[1], size[0]), how))
    return torch.from_numpy(made).permute(2, 0, 1).float() / 255
