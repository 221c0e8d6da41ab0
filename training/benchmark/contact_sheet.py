"""Images that show a scene over time, one row per set of masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bya_core.grid import TokenGrid
from bya_core.io.overlay import tint_frame

SHEET_COLUMNS = 5
MIN_SIDE = 192  # pixels of the shorter side of a frame


def contact_sheet(rows: Sequence[tuple[str, np.ndarray, Tensor]], grid: TokenGrid, title: str) -> Image.Image:
    """An image of one scene. Each row: a name, frames [F, H, W, 3] uint8 (five are shown), masks [N, T, h, w]."""
    height, width = rows[0][1].shape[1:3]
    scale = max(1, -(-MIN_SIDE // min(height, width)))
    row_height, column_width, line = height * scale, width * scale, 22
    page = Image.new("RGB", (column_width * SHEET_COLUMNS, line + len(rows) * (row_height + line)), (24, 24, 28))
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=14)
    pen.text((8, line / 2), title, fill=(235, 235, 235), font=font, anchor="lm")
    for r, (name, frames, masks) in enumerate(rows):
        top = line + r * (row_height + line)
        pen.text((8, top + line / 2), name, fill=(180, 180, 185), font=font, anchor="lm")
        for m, f in enumerate(np.linspace(0, len(frames) - 1, SHEET_COLUMNS).round().astype(int)):
            tinted = tint_frame(frames[f], masks[:, grid.latent_index(int(f))])
            large = Image.fromarray(tinted).resize((column_width, row_height), Image.Resampling.BICUBIC)
            page.paste(large, (m * column_width, top + line))
    return page
