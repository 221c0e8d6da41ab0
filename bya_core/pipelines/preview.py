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
    codec: VideoCodec, images: Sequence[Tensor], size: tuple[int, int], device: torch.device | str = "cpu"
) -> Tensor:
    """Fit a linear map from latents to colors by least squares over images and their latents.

    Args:
        codec: the VAE, on `device`.
        images: [3, H, W] in 0..1 each.
        size: (height, width) in pixels of the encoded images.

    Returns:
        [C + 1, 3]: color = latent @ factors[:-1] + factors[-1], in 0..1.
    """
    latents, colors = [], []
    for image in images:
        fitted = fit_image(image, *size)
        encoded = codec.encode(rearrange(fitted * 2 - 1, "c h w -> 1 c 1 h w").to(device))[0, 0].float().cpu()
        latents.append(rearrange(encoded, "c h w -> (h w) c"))
        small = F.adaptive_avg_pool2d(fitted, (encoded.shape[1], encoded.shape[2]))
        colors.append(rearrange(small, "c h w -> (h w) c"))
    inputs = F.pad(torch.cat(latents), (0, 1), value=1.0)
    regularization = 1e-3 * len(inputs) * torch.eye(inputs.shape[1])  # for images with few colors
    return torch.linalg.solve(inputs.T @ inputs + regularization, inputs.T @ torch.cat(colors))


def preview_frames(x0: Tensor, factors: Tensor) -> Tensor:
    """All latent frames in colors: predicted clean latents [1, T, C, H, W] -> uint8 [T, H, W, 3]."""
    latents = rearrange(x0[0].float().cpu(), "t c h w -> t h w c")
    return ((latents @ factors[:-1] + factors[-1]).clamp(0, 1) * 255).round().to(torch.uint8)


def preview_picture(x0: Tensor, masks: Tensor | None, factors: Tensor) -> Image.Image:
    """The middle latent frame in colors, tinted and outlined by the masks.

    Args:
        x0: predicted clean latents [1, T, C, H, W].
        masks: [N, T, h, w] in 0..1, or None.
        factors: see `latent_colors`.
    """
    middle = x0.shape[1] // 2
    frame = preview_frames(x0[:, middle : middle + 1], factors)[0]
    regions = torch.zeros(0, *frame.shape[:2]) if masks is None else masks[:, middle].float().cpu()
    return Image.fromarray(tint_frame(frame, regions, OPACITY, outline=True, min_side=MIN_SIDE))


def scene_colors(bundle: ModelBundle, scene: Scene) -> Tensor:
    """The color map of `latent_colors`, fitted to the images of a scene."""
    images = [character.image for character in scene.characters]
    if scene.first_frame is not None:
        images.append(scene.first_frame)
    return latent_colors(bundle.codec, images, (scene.height, scene.width), bundle.device)


def painter_for(bundle: ModelBundle, scene: Scene) -> Callable[[StepInfo], Image.Image]:
    """Preview renderer for the steps of a scene."""
    factors = scene_colors(bundle, scene)
    return lambda info: preview_picture(info.x0, info.masks, factors)
