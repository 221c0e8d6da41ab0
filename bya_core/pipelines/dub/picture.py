"""The picture of a dubbed film: the part that the model sees, the regions that are generated, and the composition."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from bya_core.config import DubConfig
from bya_core.pipelines.dub.people import People

# in units of face width and height: center below the top of the face, half sizes
MOUTH = (0.80, 0.38, 0.30)
HEAD = (0.40, 0.60, 0.68)
AROUND = (1.0, 0.8, 1.0)  # of the picture that the model sees: sides, above and below a face
ZOOM = 0.6  # share of the largest possible area above which the model sees as much of the film as possible


@dataclass(frozen=True)
class Box:
    """A part of the picture in pixels, which may exceed it."""

    left: int
    top: int
    width: int
    height: int

    def cut(self, frame: np.ndarray) -> np.ndarray:
        """This part of a frame [H, W, ...]; pixels outside are those of the nearest edge."""
        rows = np.arange(self.top, self.top + self.height).clip(0, frame.shape[0] - 1)
        columns = np.arange(self.left, self.left + self.width).clip(0, frame.shape[1] - 1)
        if self.inside(frame.shape[:2]):
            return frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return np.ascontiguousarray(frame[rows][:, columns])

    def inside(self, size: Sequence[int]) -> bool:
        """Whether it is inside a picture of `size` (height, width)."""
        bottom, right = self.top + self.height, self.left + self.width
        return self.top >= 0 and self.left >= 0 and bottom <= size[0] and right <= size[1]


def choose_box(people: People, size: tuple[int, int], model: tuple[int, int]) -> Box:
    """The part of the film that the model sees: all people, in the aspect ratio of the model.

    Args:
        people: In pixels of the film.
        size: Height and width of the film.
        model: Height and width of the generated video.
    """
    height, width = size
    aspect = model[1] / model[0]
    x, top, across, down = people.boxes[np.isfinite(people.boxes[..., 0])].T
    left = float(np.clip((x - (0.5 + AROUND[0]) * across).min(), 0, width))
    right = float(np.clip((x + (0.5 + AROUND[0]) * across).max(), 0, width))
    upper = float(np.clip((top - AROUND[1] * down).min(), 0, height))
    lower = float(np.clip((top + (1 + AROUND[2]) * down).max(), 0, height))
    needed = max(right - left, (lower - upper) * aspect)
    largest = min(width, height * aspect)
    wide = max(needed, min(model[1], largest))
    if wide**2 > ZOOM * largest**2:
        wide = max(needed, largest)
    box_width, box_height = round(wide), round(wide / aspect)
    return Box(
        _position((left + right) / 2, box_width, width), _position((upper + lower) / 2, box_height, height),
        box_width, box_height,
    )  # fmt: skip


def _position(center: float, side: int, limit: int) -> int:
    """Start of an interval around `center`, inside 0..limit if it fits."""
    if side >= limit:
        return (limit - side) // 2
    return int(np.clip(round(center - side / 2), 0, limit - side))


@dataclass(frozen=True)
class Regions:
    """Soft masks of what is generated.

    Args:
        people: In pixels of the film.
        dubbed: Indices of the characters with a new voice.
        config: Region and feather.
        size: Height and width of the film in pixels.
    """

    people: People
    dubbed: tuple[int, ...]
    config: DubConfig
    size: tuple[int, int]

    def alpha(self, f: int) -> np.ndarray:
        """Weight of the generated picture in frame `f` of the model, float32 [H, W] in 0..1."""
        from scipy.ndimage import distance_transform_edt

        core, blocked = np.zeros(self.size, dtype=bool), np.zeros(self.size, dtype=bool)
        shown = _enlarged(self.people.masks[:, f], self.size)
        for n in range(len(shown)):
            if n not in self.dubbed:
                blocked |= shown[n]
                continue
            hidden = np.delete(shown, n, axis=0).any(axis=0)
            core |= self._region(n, f, shown[n]) & ~hidden
        result = np.zeros(self.size, dtype=np.float32)
        if not core.any():
            return result
        width = self.config.feather
        rows, columns = (np.flatnonzero(core.any(axis=axis)) for axis in (1, 0))
        part = (
            slice(max(0, rows[0] - width - 1), rows[-1] + width + 2),
            slice(max(0, columns[0] - width - 1), columns[-1] + width + 2),
        )
        distance = distance_transform_edt(~core[part])
        result[part] = np.clip(1 - distance / (width + 1), 0, 1)
        result[blocked] = 0
        return result

    def _region(self, n: int, f: int, shown: np.ndarray) -> np.ndarray:
        if self.config.region == "given":
            return shown
        x, top, across, down = self.people.boxes[n, f]
        if not np.isfinite(x):
            return np.zeros(self.size, dtype=bool)
        place, half_width, half_height = MOUTH if self.config.region == "mouth" else HEAD
        cos, sin = np.cos(self.people.roll[n, f]), np.sin(self.people.roll[n, f])
        below = (place - 0.5) * down
        dx = np.arange(self.size[1])[None] + 0.5 - (x - sin * below)
        dy = np.arange(self.size[0])[:, None] + 0.5 - (top + 0.5 * down + cos * below)
        u, v = (cos * dx + sin * dy) / (half_width * across), (cos * dy - sin * dx) / (half_height * down)
        return np.asarray(u**2 + v**2 < 1)


def _enlarged(masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Masks bool [N, h, w] in the size of the film."""
    if masks.shape[1:] == size:
        return masks
    return np.asarray(F.interpolate(torch.from_numpy(masks)[None].float(), size, mode="bilinear")[0].numpy() > 0.5)


def scaled(pixels: np.ndarray | Tensor, size: tuple[int, int]) -> np.ndarray:
    """Pixels [h, w, C] resized to `size`, float32 in the same range."""
    image = torch.as_tensor(np.ascontiguousarray(pixels)).float()
    if tuple(image.shape[:2]) == size:
        return image.numpy()
    large = F.interpolate(rearrange(image, "h w c -> 1 c h w"), size, mode="bicubic", antialias=True)
    return np.asarray(rearrange(large[0], "c h w -> h w c").clamp(0, 255).numpy())


def compose(
    film: Iterable[np.ndarray], fps: float, generated: Iterable[Tensor], model_fps: float, box: Box, regions: Regions
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The frames of the film with the generated regions, uint8 [H, W, 3], and their weights, float32 [H, W].

    Pixels with a weight of 0 are those of the film. Between two generated frames, both are mixed.

    Args:
        film: Its frames, uint8 [H, W, 3].
        fps: Their rate.
        generated: The frames of the model, uint8 [h, w, 3].
        model_fps: Their rate.
        box: The part of the film that the model has seen.
        regions: What is generated.
    """
    pair = _Pair(generated, box, regions)
    for k, frame in enumerate(film):
        pixels, alpha = pair.at(k * model_fps / fps)
        result = np.array(frame)
        rows, columns = np.nonzero(alpha)
        if rows.size:
            part = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
            inside = part[0].start - box.top, part[1].start - box.left
            new = pixels[inside[0] :, inside[1] :][: part[0].stop - part[0].start, : part[1].stop - part[1].start]
            old, weight = frame[part].astype(np.float32), alpha[part][..., None]
            mixed = (old + weight * (new - old)).round().clip(0, 255).astype(np.uint8)
            result[part] = np.where(weight > 0, mixed, frame[part])
        yield result, alpha


class _Pair:
    """The generated pictures around a moment, in the size of the box."""

    def __init__(self, generated: Iterable[Tensor], box: Box, regions: Regions) -> None:
        self.source, self.box = iter(generated), box
        self.kept: dict[int, np.ndarray] = {}
        self.read = 0
        self.last: int | None = None
        self.inside = _clipped(box, regions.size)
        self.alpha: Callable[[int], np.ndarray] = lru_cache(2)(lambda f: regions.alpha(f) * self.inside)

    def at(self, position: float) -> tuple[np.ndarray, np.ndarray]:
        first = int(position + 1e-6)
        share = position - first
        one, weight = self._picture(first)
        if share < 1e-3:
            return one, weight
        other, next_weight = self._picture(first + 1)
        return one + share * (other - one), weight + np.float32(share) * (next_weight - weight)

    def _picture(self, f: int) -> tuple[np.ndarray, np.ndarray]:
        while self.last is None and self.read <= f:
            frame = next(self.source, None)
            if frame is None:
                self.last = self.read - 1
                break
            self.kept[self.read] = scaled(frame, (self.box.height, self.box.width))
            self.kept.pop(self.read - 3, None)
            self.read += 1
        f = f if self.last is None else min(f, self.last)
        return self.kept[f], self.alpha(f)


def _clipped(box: Box, size: tuple[int, int]) -> np.ndarray:
    """1 inside of the box, 0 outside, float32 [H, W]."""
    inside = np.zeros(size, dtype=np.float32)
    inside[max(0, box.top) : box.top + box.height, max(0, box.left) : box.left + box.width] = 1
    return inside
