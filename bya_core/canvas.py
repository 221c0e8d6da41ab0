"""The reference canvas: all faces side by side on white, the picture that tells the model who is who."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bya_core.errors import InputError


def reference_canvas(portraits: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Each portrait in a cell of its own, left to right, as large as fits and centred.

    Two square portraits on 480 x 720 lie as in the released code (360 pixels, rows 60 to 420).

    Args:
        portraits: N of [3, h, w] in 0..1 on white, any sizes.

    Returns:
        [3, height, width] in 0..1.

    Raises:
        InputError: no portraits, or cells too narrow for them.
    """
    if not portraits:
        raise InputError("a canvas for 0 characters", "at least 1 portrait", "add a character")
    canvas = torch.ones(3, height, width, device=portraits[0].device)
    edges = [round(i * width / len(portraits)) for i in range(len(portraits) + 1)]
    for portrait, left, right in zip(portraits, edges, edges[1:], strict=False):
        scale = min(height / portrait.shape[1], (right - left) / portrait.shape[2])
        rows, columns = round(portrait.shape[1] * scale), round(portrait.shape[2] * scale)
        if rows < 1 or columns < 1:
            came = f"{len(portraits)} characters on {width} pixels"
            raise InputError(came, "at least one pixel for each", "use a wider video")
        small = F.interpolate(
            portrait[None].float(), size=(rows, columns), mode="bicubic", antialias=True, align_corners=False
        )[0].clamp(0, 1)
        top, start = (height - rows) // 2, left + (right - left - columns) // 2
        canvas[:, top : top + rows, start : start + columns] = small
    return canvas
