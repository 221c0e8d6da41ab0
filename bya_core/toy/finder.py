"""Detection of puppets, which face detectors do not find.

The image is segmented by the colors of the reference images, an outline of head and shoulders is fitted to each region,
and the face network of the toy model verifies the identity together with the colors.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from bya_core.encoders.face.matching import DetectedCharacters
from bya_core.io.color import color_descriptor, histogram, histogram_similarity, lab
from bya_core.toy.encoders import FaceNetwork
from bya_core.toy.segmentation import foreground, segment_characters

_MAX_SIDE = 96  # in pixels; larger images are downscaled
_PORTRAIT = 64  # side of the resized reference images in pixels
_MIN_SHARE = 0.002  # of the image; smaller regions are ignored
_HEAD = (0.98, 1.12, -0.08)  # half width, half height and center of the head with hair, in head radii
_SHOULDERS = (1.22, 1.18)  # half width, and start below the center of the head
_FACE = (0.86, 0.85, 0.95)  # half width, and extent above and below the center: forehead to chin
_IN_VIEW = 0.7  # minimum distance of the center from the upper and lower edge, in head radii
_OCCLUSION = 0.7  # discount for parts of the outline occluded by other characters
_IOU_MARGIN = 0.1  # fits within this IoU of the best are verified
_RADII = np.geomspace(0.10, 0.40, 14)  # candidate head radii, in image heights


class PuppetFinder:
    """`CharacterFinder` of the toy model.

    Args:
        network: Face network of the model.
        threshold: See `CharacterFinder`.
        min_likeness: Regions with a lower likeness are discarded.
    """

    def __init__(self, network: FaceNetwork, threshold: float = 0.6, min_likeness: float = 0.45) -> None:
        self.network, self.threshold, self.min_likeness = network, threshold, min_likeness

    @torch.no_grad()
    def find(self, image: Tensor, portraits: Sequence[Tensor]) -> DetectedCharacters:
        """See `CharacterFinder`."""
        weight = next(self.network.parameters())
        scale = min(1.0, _MAX_SIDE / max(image.shape[1:]))
        picture = _resized(image, round(image.shape[1] * scale), round(image.shape[2] * scale))
        known = torch.stack([_resized(portrait, _PORTRAIT, _PORTRAIT) for portrait in portraits])
        identities = self.network(known.to(weight))[0].cpu()
        pixels, references = _channels_last(picture), _channels_last(known)
        palettes = np.stack([_palette(reference) for reference in references])
        regions = segment_characters(pixels[None], references)[:, 0]

        faces, bodies, likeness = [], [], []
        for n, region in enumerate(regions):
            if region.mean() < _MIN_SHARE:
                continue
            # among the best fits, select the one most similar to the character
            heads = _fits(region, np.any(np.delete(regions, n, axis=0), axis=0))
            crops = torch.stack([_cut_out(picture, region, *head) for head in heads])
            cosine = self.network(crops.to(weight))[0].cpu() @ identities.T
            best = int(cosine[:, n].argmax())
            x, y, radius = heads[best]
            colors = histogram_similarity(color_descriptor(pixels, region), palettes)
            alike = (cosine[best] + torch.from_numpy(2.0 * colors - 1.0).float()) / 2
            if float(alike.max()) < self.min_likeness:
                continue
            rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
            faces.append([x - _FACE[0] * radius, y - _FACE[1] * radius, x + _FACE[0] * radius, y + _FACE[2] * radius])
            bodies.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            likeness.append(alike)
        count = len(portraits)
        return DetectedCharacters(
            torch.tensor(faces, dtype=torch.float32).reshape(-1, 4) / scale,
            torch.tensor(bodies, dtype=torch.float32).reshape(-1, 4) / scale,
            torch.stack(likeness) if likeness else torch.zeros(0, count),
        )


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    if tuple(image.shape[1:]) == (height, width):
        return image.detach().float().cpu()
    small = F.interpolate(
        image.detach()[None].float().cpu(), size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return small[0].clamp(0, 1)


def _channels_last(images: Tensor) -> np.ndarray:
    return np.ascontiguousarray(rearrange(images, "... c h w -> ... h w c").numpy())


def _palette(portrait: np.ndarray) -> np.ndarray:
    """Soft color histogram of the foreground of a portrait [P, Q, 3], or of all of it if there is none."""
    body = foreground(portrait)
    return color_descriptor(portrait, body) if body.any() else histogram(lab(portrait).reshape(-1, 3))


def _fits(region: np.ndarray, others: np.ndarray) -> list[tuple[float, float, float]]:
    """Center (x, y) and radius of the heads whose outlines fit a region [H, W] best, by IoU.

    One candidate per radius, at its best position and with its best outline. Parts occluded by `others` are discounted.
    """
    from scipy.signal import fftconvolve

    height, width = region.shape
    own, free = region.astype(np.float32), 1.0 - _OCCLUSION * others.astype(np.float32)
    fits: list[tuple[float, float, float, float]] = []
    for radius in _RADII * height:
        candidates = []
        for hat, hair in product((False, True), (False, True)):
            outline, row, column = _outline(radius, hat, hair)
            tail = outline.shape[0] - 1 - row, outline.shape[1] - 1 - column
            window = slice(tail[0], tail[0] + height), slice(tail[1], tail[1] + width)
            flipped = outline[::-1, ::-1]
            covered = fftconvolve(own, flipped)[window]
            drawn = fftconvolve(free, flipped)[window]
            share = covered / np.maximum(drawn + own.sum() - covered, 1.0)
            edge = int(_IN_VIEW * radius)
            share[:edge], share[height - edge :] = 0.0, 0.0
            y, x = np.unravel_index(int(share.argmax()), share.shape)
            candidates.append((float(share[y, x]), float(x) + 0.5, float(y) + 0.5, float(radius)))
        fits.append(max(candidates))
    threshold = max(fits)[0] - _IOU_MARGIN
    return [head[1:] for head in fits if head[0] >= threshold]


def _outline(radius: float, hat: bool, hair: bool) -> tuple[np.ndarray, int, int]:
    """Outline of a puppet, optionally with hat or long hair, and row and column of the center of its head."""
    up, side, down = (int(np.ceil(reach * radius)) for reach in (1.7, 1.3, 5.0))
    v, u = np.mgrid[-up : down + 1, -side : side + 1].astype(np.float32) / radius
    shape = (u / _HEAD[0]) ** 2 + ((v - _HEAD[2]) / _HEAD[1]) ** 2 < 1
    shape |= (np.abs(u) < _SHOULDERS[0]) & (v > _SHOULDERS[1])
    shape |= (np.abs(u) < 0.34) & (v > 0.9)  # neck
    if hat:
        shape |= (np.abs(u) < 0.66) & (v > -1.58) & (v < 0)
    if hair:
        shape |= (np.abs(u) < 1.08) & (v > -0.7) & (v < 1.34)
    return shape.astype(np.float32), up, side


def _cut_out(picture: Tensor, region: np.ndarray, x: float, y: float, radius: float) -> Tensor:
    """The character of an image [3, H, W] on white, framed like a reference image: [3, 48, 48]."""
    height, width = region.shape
    side = radius / 0.32  # the head's radius in a portrait of side 1
    theta = torch.tensor(
        [
            [side / width, 0.0, 2.0 * x / width - 1.0],
            [0.0, side / height, 2.0 * (y + 0.01 * side) / height - 1.0],
        ]
    )
    place = F.affine_grid(theta[None], [1, 3, 48, 48], align_corners=False)
    ink = (1.0 - picture) * torch.from_numpy(region).float()
    return 1.0 - F.grid_sample(ink[None], place, align_corners=False)[0]
