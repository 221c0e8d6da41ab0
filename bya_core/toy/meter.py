"""Measurements of drawn puppets by their colors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from scipy.ndimage import binary_erosion, sobel
from torch import Tensor

from bya_core.encoders.domains import PixelBox
from bya_core.io.color import color_descriptor, histogram_similarity
from bya_core.io.media import fit_image
from bya_core.toy.mouth import mouth_opening
from bya_core.toy.segmentation import foreground, segment_characters

MOUTH_RGB = (0.20, 0.01, 0.07)
"""Color of the inside of every puppet's mouth."""
_MIN_SHARE = 0.005  # share of the frame below which a character counts as missing
_CHECK_SIZE = (64, 96)  # height and width of the frame in `missing_characters`
_CHECK_PORTRAIT = (128, 128)
_LOOK = 48  # side in pixels at which the look of a reference image is measured
_WHITE, _FLAT, _SATURATION, _COMMON = 0.92, 0.13, (0.18, 0.58), 0.36  # puppets: 0.20 and more, 0.20 to 0.54, 0.41

_EYES = (0.31, 0.56, 0.25, 0.75)  # top, bottom, left and right of the eyes in a reference image of side 1
_HEAD_RADIUS = 0.32  # in a reference image of side 1
_RADII = np.geomspace(0.14, 0.30, 8)  # head radii, in image heights


class PuppetMeter:
    """`PixelMeter` for puppets on white reference images."""

    def is_portrait(self, image: Tensor) -> bool:
        """Whether the upper corners are white and the rest has the flat, saturated colors of a drawn puppet.

        Drawn puppets pass and photographs do not (`tests/unit/pipelines/test_notices.py`); a person cut out of a
        photograph on white may pass.
        """
        small = F.interpolate(image[None].float(), size=(_LOOK, _LOOK), mode="area")[0].clamp(0, 1)
        corner = _LOOK // 12
        if float(min(small[:, :corner, :corner].min(), small[:, :corner, -corner:].min())) < _WHITE:
            return False
        pixels = small.permute(1, 2, 0).numpy()
        inside = binary_erosion(foreground(pixels))
        if not inside.any():
            return False
        slopes = [sobel(pixels[..., channel], axis) ** 2 for channel in range(3) for axis in (0, 1)]
        flat = float((np.sqrt(sum(slopes)) / 8 < 0.02)[inside].mean())
        saturation = float((pixels.max(axis=-1) - pixels.min(axis=-1))[inside].mean())
        counts = np.sort(np.unique((pixels[inside] * 16).astype(int), axis=0, return_counts=True)[1])
        common = float(counts[-8:].sum() / counts.sum())  # share of the eight most frequent colors
        return flat > _FLAT and _SATURATION[0] < saturation < _SATURATION[1] and common > _COMMON

    def face_box(self, image: Tensor) -> PixelBox | None:
        if float(image.std(dim=(1, 2)).max()) < 0.01:
            return None
        body = foreground(image.permute(1, 2, 0).numpy())
        if not body.any():
            return None
        rows, columns = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    def segment(self, frames: Tensor, portraits: Sequence[Tensor]) -> Tensor:
        side = max(portrait.shape[1] for portrait in portraits)
        images = np.stack([fit_image(portrait, side, side).permute(1, 2, 0).numpy() for portrait in portraits])
        return torch.from_numpy(segment_characters(frames.numpy(), images, shared_rgb=MOUTH_RGB)).float()

    def missing_characters(self, frame: Tensor, portraits: Sequence[Tensor]) -> list[int]:
        images = torch.stack([F.interpolate(portrait[None], size=_CHECK_PORTRAIT)[0] for portrait in portraits])
        small = F.interpolate(frame[None], size=_CHECK_SIZE, mode="bilinear", antialias=True)
        regions = segment_characters(small.permute(0, 2, 3, 1).numpy(), images.permute(0, 2, 3, 1).numpy())
        return [n for n, region in enumerate(regions) if region.mean() < _MIN_SHARE]

    def mouth_opening(self, frames: np.ndarray, regions: np.ndarray) -> np.ndarray:
        opening = mouth_opening(frames, regions, MOUTH_RGB)
        return opening - opening.min(axis=1, keepdims=True)

    def likeness(self, frames: np.ndarray, regions: np.ndarray, portraits: Sequence[Tensor]) -> np.ndarray:
        images = [(portrait.permute(1, 2, 0) * 255).round().byte().numpy() for portrait in portraits]
        references = np.stack([color_descriptor(image, foreground(image)) for image in images])
        likeness = np.full((*regions.shape[:2], len(references)), np.nan)
        for n, f in np.argwhere(regions.any(axis=(2, 3))):
            likeness[n, f] = histogram_similarity(color_descriptor(frames[f], regions[n, f]), references)
        return likeness

    def eye_likeness(self, frames: Tensor, regions: Tensor, portraits: Sequence[Tensor]) -> Tensor:
        top, bottom, left, right = _EYES
        pixels = rearrange(frames.float() / 255, "f h w c -> f c h w")
        likeness = torch.zeros(regions.shape[:2])
        for radius in _RADII * frames.shape[1]:
            side = max(8, round(radius / _HEAD_RADIUS))
            for n, portrait in enumerate(portraits):
                head = F.interpolate(portrait[None].float(), size=(side, side), mode="bilinear", antialias=True)
                eyes = head[..., round(top * side) : round(bottom * side), round(left * side) : round(right * side)]
                found = _correlation(pixels, eyes).masked_fill(~regions[n], 0.0)
                likeness[n] = torch.maximum(likeness[n], found.amax(dim=(1, 2)))
        return likeness


def _correlation(frames: Tensor, patch: Tensor) -> Tensor:
    """Normalized correlation [F, H, W] of the surroundings of each pixel of [F, 3, H, W] with a patch [1, 3, h, w]."""
    height, width = patch.shape[2:]
    padding = (width // 2, width - 1 - width // 2, height // 2, height - 1 - height // 2)
    padded, box = F.pad(frames, padding, mode="replicate"), torch.ones(3, 1, height, width)
    patch = patch - patch.mean(dim=(2, 3), keepdim=True)
    sums, squares = F.conv2d(padded, box, groups=3), F.conv2d(padded.square(), box, groups=3)
    energy = (squares - sums.square() / (height * width)).clamp(min=0).sum(dim=1)
    return F.conv2d(padded, patch)[:, 0] / (energy * patch.square().sum() + 1e-6).sqrt()
