"""Masks made visible: each character in a colour of its own over the video, with a legend."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# told apart by colour-blind eyes too (Okabe and Ito); further ones are spread around the colour circle
COLOURS = ((230, 120, 0), (60, 160, 240), (0, 160, 110), (220, 90, 170), (235, 220, 50), (130, 80, 200))
LEAST_SIDE = 384  # smaller videos are enlarged by a whole number, or the legend could not be read
GOLDEN = 0.618034


def colour(index: int) -> tuple[int, int, int]:
    """RGB of character number `index`."""
    if index < len(COLOURS):
        return COLOURS[index]
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN % 1.0, 0.9, 0.55)  # darker than the named ones
    return round(red * 255), round(green * 255), round(blue * 255)


def blend_masks(frames: Tensor, masks: Tensor, opacity: float = 0.5) -> Tensor:
    """Frames tinted by masks.

    Args:
        frames: uint8 [F, H, W, 3].
        masks: [N, F, H, W] in 0..1.
        opacity: of the tint where a mask is 1.

    Returns:
        uint8 [F, H, W, 3]. Where masks overlap, their colours mix.
    """
    colours = torch.tensor([colour(i) for i in range(masks.shape[0])], dtype=torch.float32)
    total = masks.sum(dim=0)
    tint = einsum(masks, colours, "n f h w, n c -> f h w c") / total.clamp(min=1e-6)[..., None]
    share = opacity * total.clamp(0, 1)[..., None]
    return (frames.float() * (1 - share) + tint * share).round().clamp(0, 255).to(torch.uint8)


def overlay_frames(frames: Tensor, masks: Tensor, labels: Sequence[str], opacity: float = 0.5) -> Iterator[np.ndarray]:
    """Tinted frames above a legend, one after the other, of even size.

    Args:
        frames: uint8 [F, H, W, 3].
        masks: [N, F, h, w] in 0..1 at any resolution; enlarged smoothly.
        labels: N lines of the legend.

    Yields:
        uint8 [H', W', 3].
    """
    height, width = frames.shape[1:3]
    scale = max(1, -(-LEAST_SIDE // min(height, width)))
    size = (height * scale, width * scale)
    bar = legend(labels, size[1])
    for index in range(frames.shape[0]):
        picture = rearrange(frames[index : index + 1], "f h w c -> f c h w").float()
        large = F.interpolate(picture, size=size, mode="bicubic", align_corners=False).clamp(0, 255)
        mask = F.interpolate(masks[:, index][None].float(), size=size, mode="bilinear", align_corners=False)[0]
        tinted = blend_masks(rearrange(large, "f c h w -> f h w c"), mask[:, None], opacity)[0]
        yield np.concatenate([tinted.numpy(), bar])


def legend(labels: Sequence[str], width: int) -> np.ndarray:
    """A dark bar with one line per character, its colour in front: uint8 [height, width, 3], even height."""
    line = max(20, width // 24)
    bar = Image.new("RGB", (width, line * len(labels) + line // 2 // 2 * 2), (24, 24, 28))
    bar = bar if bar.height % 2 == 0 else bar.resize((width, bar.height + 1))
    draw = ImageDraw.Draw(bar)
    font = ImageFont.load_default(size=line * 0.62)
    for index, label in enumerate(labels):
        top = line // 4 + index * line
        draw.rectangle((line // 3, top + line // 6, line, top + line - line // 6), fill=colour(index))
        draw.text((line * 1.4, top + line / 2), label, fill=(235, 235, 235), font=font, anchor="lm")
    return np.asarray(bar)
