"""Image conditions of the model: the reference canvas, which shows all faces, and the first frame."""

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
    """Arrange portraits in equal cells on a white canvas, in reading order, centered and as large as possible.

    Args:
        portraits: N portraits [3, h, w] in [0, 1] on white, of any size.
        height: Height of the canvas in pixels.
        width: Width of the canvas in pixels.
        layout: "row" places all portraits side by side. "released" follows the released code, with 8-bit bicubic
            resizing: two square portraits on 480 x 720 are 360 pixels wide and cover rows 60 to 420. Three and more,
            which the released code does not support, are arranged in the grid that leaves them largest.

    Returns:
        [3, height, width] in [0, 1].

    Raises:
        InputError: If there are no portraits or the cells are too narrow.
    """
    if not portraits:
        raise InputError("a canvas for 0 characters", "at least 1 portrait", "add a character")
    count = len(portraits)
    across = count if layout == "row" else columns(count, height, width)
    down = math.ceil(count / across)
    canvas = torch.ones(3, height, width, device=portraits[0].device)
    for index, portrait in enumerate(portraits):
        row, column = divmod(index, across)
        filled = min(across, count - row * across)  # an incomplete last row is centered
        side = width / across
        start = (width - filled * side) / 2 + column * side
        left, right = round(start), round(start + side)
        top, bottom = round(row * height / down), round((row + 1) * height / down)
        scale = min((bottom - top) / portrait.shape[1], (right - left) / portrait.shape[2])
        size = round(portrait.shape[1] * scale), round(portrait.shape[2] * scale)
        if min(size) < 1:
            problem = f"{count} characters on a width of {width} pixels"
            raise InputError(problem, "at least one pixel each", "use a wider video")
        small = _resized(portrait, size) if layout == "released" else _interpolated(portrait, size)
        y, x = top + (bottom - top - size[0]) // 2, left + (right - left - size[1]) // 2
        canvas[:, y : y + size[0], x : x + size[1]] = small.to(canvas)
    return canvas


def columns(count: int, height: int, width: int) -> int:
    """Number of grid columns that leaves `count` square portraits largest, then has fewer rows and empty cells."""

    def rank(across: int) -> tuple[float, int, int]:
        down = math.ceil(count / across)
        return min(width / across, height / down), -down, -across

    return max(range(1, count + 1), key=rank)


def first_frame(scene: Scene) -> Tensor | None:
    """First frame of a scene resized to the video: [3, height, width] in [0, 1], or `None`.

    `first_frame_fit` selects how: "crop" fills the frame and crops evenly on both sides, "pad" adds black bars, and
    "stretch" ignores the aspect ratio, as in the released code (Lanczos).
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
    """Raise `InputError` if the first frame would be stretched for a model trained without stretched images."""
    if fit == "stretch" and layout != "released":
        raise InputError(
            'first_frame_fit "stretch" with a model that is not the released one',
            '"crop" or "pad"; only the released weights are trained with stretched images',
            "choose one of them",
        )


def _interpolated(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image[None].float(), size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def _resized(image: Tensor, size: tuple[int, int], how: Image.Resampling = Image.Resampling.BICUBIC) -> Tensor:
    """Resize [3, H, W] to [3, *size] with Pillow in 8 bits."""
    pixels = (image.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    resized = np.array(Image.fromarray(pixels).resize((size[1], size[0]), how))
    return torch.from_numpy(resized).permute(2, 0, 1).float() / 255
