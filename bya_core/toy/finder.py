"""Finding drawn puppets, which no detector of human faces sees.

Their colours, learned from the portraits alone, say which pixels are whose; a head with shoulders is fitted to each
such region; and the toy model's own face network judges, with the colours, whether that is the character.
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

_LONGEST = 96  # pixels of the longer side that are looked at
_PORTRAIT = 64  # portraits are brought to this side
_LEAST = 0.002  # share of the picture below which a region is nobody
_HEAD = (0.98, 1.12, -0.08)  # half width, half height and middle of a puppet's head with hair, in head radii
_SHOULDERS = (1.22, 1.18)  # half width, and where they start below the middle of the head
_FACE = (0.86, 0.85, 0.95)  # half width, up and down from the middle: forehead to chin
_IN_VIEW = 0.7  # head radii: the middle of a head is at least that far from the upper and the lower edge
_HIDDEN = 0.7  # how much less an outline is missed where somebody else is seen
_NEARLY = 0.1  # IoU that a fit may be worse than the best
_RADII = np.geomspace(0.10, 0.40, 14)  # head radii tried, in picture heights


class PuppetFinder:
    """`CharacterFinder` of the toy model.

    Args:
        network: its face network.
        threshold: See `CharacterFinder`.
        stranger: likeness below which a region is nobody's.
    """

    def __init__(self, network: FaceNetwork, threshold: float = 0.6, stranger: float = 0.45) -> None:
        self.network, self.threshold, self.stranger = network, threshold, stranger

    @torch.no_grad()
    def find(self, image: Tensor, portraits: Sequence[Tensor]) -> DetectedCharacters:
        weight = next(self.network.parameters())
        scale = min(1.0, _LONGEST / max(image.shape[1:]))
        picture = _resized(image, round(image.shape[1] * scale), round(image.shape[2] * scale))
        known = torch.stack([_resized(portrait, _PORTRAIT, _PORTRAIT) for portrait in portraits])
        identities = self.network(known.to(weight))[0].cpu()
        pixels, looks = _channels_last(picture), _channels_last(known)
        palettes = np.stack([_palette(look) for look in looks])
        regions = segment_characters(pixels[None], looks)[:, 0]

        faces, bodies, likeness = [], [], []
        for n, region in enumerate(regions):
            if region.mean() < _LEAST:
                continue
            # of heads that fit nearly as well the one that looks most like the character
            heads = _fits(region, np.any(np.delete(regions, n, axis=0), axis=0))
            cuts = torch.stack([_portrait(picture, region, *head) for head in heads])
            cosine = self.network(cuts.to(weight))[0].cpu() @ identities.T
            best = int(cosine[:, n].argmax())
            x, y, radius = heads[best]
            colours = histogram_similarity(color_descriptor(pixels, region), palettes)
            alike = (cosine[best] + torch.from_numpy(2.0 * colours - 1.0).float()) / 2
            if float(alike.max()) < self.stranger:
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
    """Soft histogram of the person in a portrait [P, Q, 3]; of all of it where nothing is white."""
    body = foreground(portrait)
    return color_descriptor(portrait, body) if body.any() else histogram(lab(portrait).reshape(-1, 3))


def _fits(region: np.ndarray, others: np.ndarray) -> list[tuple[float, float, float]]:
    """Middle (x, y) and radius of heads whose outlines with shoulders cover a region [H, W] about as well as the best.

    By IoU; of each radius the best place in view and the best outline. What `others` hide counts little.
    """
    from scipy.signal import fftconvolve

    height, width = region.shape
    own, free = region.astype(np.float32), 1.0 - _HIDDEN * others.astype(np.float32)
    found: list[tuple[float, float, float, float]] = []
    for radius in _RADII * height:
        tries = []
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
            tries.append((float(share[y, x]), float(x) + 0.5, float(y) + 0.5, float(radius)))
        found.append(max(tries))
    least = max(found)[0] - _NEARLY
    return [head[1:] for head in found if head[0] >= least]


def _outline(radius: float, hat: bool, hair: bool) -> tuple[np.ndarray, int, int]:
    """A puppet's outline, with a top hat or long hair, and the row and column of the middle of its head in it."""
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


def _portrait(picture: Tensor, region: np.ndarray, x: float, y: float, radius: float) -> Tensor:
    """The person cut out on white and framed as portraits are: [3, H, W] -> [3, 48, 48]."""
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
