"""Mask overlays: frames tinted in one color per character, with a legend."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bya_core.grid import TokenGrid
from bya_core.masks import mask_statistics

# distinguishable with color vision deficiency (after Okabe and Ito); further colors are spread over the hue circle
COLORS = ((230, 120, 0), (60, 160, 240), (0, 160, 110), (220, 90, 170), (235, 220, 50), (130, 80, 200))
MIN_SIDE = 384  # smaller frames are enlarged by an integer factor so that the legend is readable
MAX_WIDTH = 4096  # of `tile_sheet`, in pixels
GOLDEN_RATIO = 0.618034

Frame = Tensor | np.ndarray


def character_color(index: int) -> tuple[int, int, int]:
    """RGB color of character `index`."""
    if index < len(COLORS):
        return COLORS[index]
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN_RATIO % 1.0, 0.4, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def tint_frame(
    frame: Frame, masks: Tensor, opacity: float = 0.5, *, outline: bool = False, min_side: int = 0
) -> np.ndarray:
    """Tint one frame by the masks of its characters; colors mix where masks overlap.

    Args:
        frame: uint8 [H, W, 3].
        masks: [N, h, w] in 0..1 at any resolution; resized bilinearly.
        opacity: of the tint where a mask is 1.
        outline: draw the contour of each mask at 0.5.
        min_side: enlarge the frame by an integer factor until its shorter side has so many pixels.

    Returns:
        uint8 [H * k, W * k, 3].
    """
    height, width = frame.shape[:2]
    scale = max(1, -(-min_side // min(height, width)))
    size = (height * scale, width * scale)
    picture = rearrange(torch.as_tensor(frame).float(), "h w c -> 1 c h w")
    if scale > 1:
        picture = F.interpolate(picture, size=size, mode="bicubic", align_corners=False).clamp(0, 255)
    if not len(masks):
        return rearrange(picture, "1 c h w -> h w c").round().to(torch.uint8).numpy()
    masks = masks[None].float()
    if masks.shape[-2:] != size:
        masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
    colors = torch.tensor([character_color(n) for n in range(masks.shape[1])], dtype=torch.float32)
    total = masks[0].sum(dim=0)
    tint = einsum(masks[0], colors, "n h w, n c -> h w c") / total.clamp(min=1e-6)[..., None]
    alpha = opacity * total.clamp(0, 1)[..., None]
    tinted = rearrange(picture, "1 c h w -> h w c") * (1 - alpha) + tint * alpha
    if outline:
        inside = (masks > 0.5).float()
        edges = F.max_pool2d(inside, 5, stride=1, padding=2) > inside
        for color, edge in zip(colors, edges[0], strict=True):
            tinted[edge] = color
    return tinted.round().clamp(0, 255).to(torch.uint8).numpy()


def render_overlay(
    frames: Iterable[Frame], masks: Tensor, grid: TokenGrid, names: Sequence[str] = (), opacity: float = 0.5
) -> Iterator[np.ndarray]:
    """Render masks over frames, one frame at a time, with a legend below.

    Args:
        frames: uint8 [H, W, 3] each, the video frames in order.
        masks: [N, T, h, w] in 0..1 on `grid`.
        grid: token grid of the masks.
        names: of the N characters; empty = no legend.
        opacity: of the tint where a mask is 1.

    Yields:
        uint8 [H', W', 3] with even sides.
    """
    caption: np.ndarray | None = None
    for index, frame in enumerate(frames):
        picture = tint_frame(frame, masks[:, grid.latent_index(index)], opacity, min_side=MIN_SIDE)
        if names:
            caption = legend(names, masks, picture.shape[1]) if caption is None else caption
            picture = np.concatenate([picture, caption])
        yield picture


def render_sheet(
    frames: Sequence[Frame] | Tensor, masks: Tensor, grid: TokenGrid, names: Sequence[str] = (), columns: int = 4
) -> np.ndarray:
    """Render a few evenly spaced frames side by side above one legend: uint8 [H', W', 3].

    Args:
        frames, masks, grid, names: as in `render_overlay`.
        columns: number of frames.
    """
    chosen = np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)
    pictures = [tint_frame(frames[k], masks[:, grid.latent_index(k)], min_side=MIN_SIDE) for k in chosen.tolist()]
    sheet = np.concatenate(pictures, axis=1)
    return np.concatenate([sheet, legend(names, masks, sheet.shape[1])]) if names else sheet


def tile_sheet(tiles: Tensor) -> tuple[np.ndarray, int]:
    """Arrange tiles in rows of at most `MAX_WIDTH` pixels, such as to send them as one picture.

    Args:
        tiles: uint8 [K, h, w] or [K, h, w, 3].

    Returns:
        uint8 [rows * h, columns * w] or [rows * h, columns * w, 3], black where no tiles are left, and the number of
        columns.
    """
    count, _, width = tiles.shape[:3]
    columns = max(1, min(count, MAX_WIDTH // width))
    missing = -count % columns
    padded = torch.cat([tiles, tiles.new_zeros(missing, *tiles.shape[1:])])
    return rearrange(padded, "(r c) h w ... -> (r h) (c w) ...", c=columns).numpy(), columns


def legend(names: Sequence[str], masks: Tensor, width: int) -> np.ndarray:
    """One line per character with its color, coverage and confidence: uint8 [height, width, 3], even height.

    Args:
        names: of the N characters.
        masks: [N, T, h, w] in 0..1.
        width: in pixels.
    """
    line = min(40, max(20, width // 24))
    bar = Image.new("RGB", (width, 2 * ((line * len(names) + line // 2) // 2)), (24, 24, 28))
    draw, font = ImageDraw.Draw(bar), ImageFont.load_default(size=line * 0.62)
    for index, (name, statistics) in enumerate(zip(names, mask_statistics(masks), strict=True)):
        top, detail = line // 4 + index * line, f": {statistics}"
        draw.rectangle((line // 3, top + line // 6, line, top + line - line // 6), fill=character_color(index))
        room = width - line * 1.4 - draw.textlength(detail, font=font) - line / 3
        shown = name
        while len(shown) > 1 and draw.textlength(shown, font=font) > room:
            shown = shown.rstrip("…")[:-1] + "…"
        draw.text((line * 1.4, top + line / 2), shown + detail, fill=(235, 235, 235), font=font, anchor="lm")
    return np.asarray(bar)
