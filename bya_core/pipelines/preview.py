"""Previews while denoising: latents to colors by a linear map, with mask outlines."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from bya_core.encoders.protocols import VideoCodec
from bya_core.io.media import fit_image
from bya_core.io.overlay import tint_frame
from bya_core.sampling import StepInfo
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle

MIN_SIDE = 256  # pixels; smaller previews are enlarged by an integer factor
OPACITY = 0.3  # of the tint inside the outlines


def latent_colors(
    codec: VideoCodec, pictures: Sequence[Tensor], size: tuple[int, int], device: torch.device | str = "cpu"
) -> Tensor:
    """Fit a linear map from latents to colors by least squares over images and their latents.

    Args:
        codec: the VAE, on `device`.
        pictures: [3, H, W] in 0..1 each.
        size: (height, width) in pixels of the encoded images.

    Returns:
        [C + 1, 3]: color = latent @ factors[:-1] + factors[-1], in 0..1.
    """
    latents, colors = [], []
    for picture in pictures:
        fitted = fit_image(picture, *size)
        video = rearrange(fitted * 2 - 1, "c h w -> 1 c 1 h w").to(device)
        encoded = codec.encode(video)[0, 0].float().cpu()
        latents.append(rearrange(encoded, "c h w -> (h w) c"))
        small = F.adaptive_avg_pool2d(fitted, (encoded.shape[1], encoded.shape[2]))
        colors.append(rearrange(small, "c h w -> (h w) c"))
    known = torch.cat(latents)
    known = torch.cat([known, torch.ones(len(known), 1)], dim=1)
    steady = 1e-3 * len(known) * torch.eye(known.shape[1])  # regularization for images with few colors
    return torch.linalg.solve(known.T @ known + steady, known.T @ torch.cat(colors))


def preview_picture(x0: Tensor, masks: Tensor | None, factors: Tensor) -> Image.Image:
    """The middle latent frame in colors, tinted and outlined by the masks.

    Args:
        x0: predicted clean latents [1, T, C, H, W].
        masks: [N, T, h, w] in 0..1, or None.
        factors: see `latent_colors`.
    """
    middle = x0.shape[1] // 2
    latent = rearrange(x0[0, middle].float().cpu(), "c h w -> h w c")
    colors = (latent @ factors[:-1] + factors[-1]).clamp(0, 1)
    frame = (colors * 255).round().to(torch.uint8)
    shown = torch.zeros(0, *frame.shape[:2]) if masks is None else masks[:, middle].float().cpu()
    return Image.fromarray(tint_frame(frame, shown, OPACITY, outline=True, min_side=MIN_SIDE))


def painter_for(bundle: ModelBundle, scene: Scene) -> Callable[[StepInfo], Image.Image]:
    """Preview renderer for the steps of a scene; the color map is fitted to the images of the scene."""
    pictures = [character.image for character in scene.characters]
    if scene.first_frame is not None:
        pictures.append(scene.first_frame)
    factors = latent_colors(bundle.codec, pictures, (scene.height, scene.width), bundle.device)
    return lambda info: preview_picture(info.x0, info.masks, factors)
