"""Likeness of faces by the proportions of the mesh and by colors, to tell the few characters of a scene apart.

Not face recognition: it compares a face with the reference images of one scene. With the weights of FaceNet or ArcFace
those are used instead, see `face_report.FaceTools`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_STABLE = (
    *(33, 133, 362, 263, 70, 105, 107, 336, 334, 300, 168, 6, 197, 1, 2, 98, 327),
    *(10, 67, 297, 234, 454, 132, 361),
)
"""Mesh points that move little in speech: eyes, brows, nose, forehead, cheeks."""
_RIGHT_EYE, _LEFT_EYE, _FOREHEAD, _CHIN = (33, 133), (263, 362), 10, 152
_SKIN = (50, 280, 151)
_BROWS = (105, 334)
_LOOK_AT = 8  # frames of a track that are averaged
_SHAPE_SPREAD, _COLOR_SPREAD = 0.05, 0.25  # typical deviation between images of one person


def face_descriptor(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Descriptor of a face; distances of descriptors are in typical deviations between images of one person.

    Args:
        image: uint8 [H, W, 3].
        points: mesh [468, 3] in pixels.
    """
    shape = _frontal(points)[list(_STABLE)].ravel() / _SHAPE_SPREAD
    color = _colors(image, points) / _COLOR_SPREAD
    return np.concatenate([shape / np.sqrt(shape.size), color / np.sqrt(color.size)])


def track_descriptor(frames: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Median descriptor of a face over time; NaN if it is never visible.

    Args:
        frames: uint8 [F, H, W, 3].
        points: mesh [F, 468, 3]; NaN where the face is not visible.
    """
    visible = np.flatnonzero(np.isfinite(points[:, 0, 0]))
    chosen = visible[np.linspace(0, len(visible) - 1, min(_LOOK_AT, len(visible))).round().astype(int)]
    found = [face_descriptor(frames[f], points[f]) for f in chosen]
    return np.median(found, axis=0) if found else np.full(2 * len(_STABLE) + 11, np.nan)


def likeness(faces: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> np.ndarray:
    """Likeness [K, N] of K faces to N references in 0..1, from their descriptors; 0 for NaN."""
    distance = np.linalg.norm(np.stack(faces)[:, None] - np.stack(references)[None], axis=2)
    return np.nan_to_num(np.exp(-0.5 * distance))


def _frontal(points: np.ndarray) -> np.ndarray:
    """Points (x, y) seen from the front, relative to the distance of the eyes and their middle [468, 2]."""
    points = np.asarray(points, dtype=np.float64)
    right, left = points[list(_RIGHT_EYE)].mean(axis=0), points[list(_LEFT_EYE)].mean(axis=0)
    across = left - right
    size = np.linalg.norm(across)
    across = across / max(size, 1e-9)
    down = points[_CHIN] - points[_FOREHEAD]
    down = down - (down @ across) * across
    down = down / max(np.linalg.norm(down), 1e-9)
    centered = (points - (right + left) / 2) / max(size, 1e-9)
    return np.stack([centered @ across, centered @ down], axis=1)


def _colors(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Colors of skin, lips, brows, hair and clothes, mostly relative to the skin [11]."""
    height, up = float(np.linalg.norm(points[_CHIN, :2] - points[_FOREHEAD, :2])), points[_FOREHEAD] - points[_CHIN]
    radius = max(1, round(0.04 * height))
    places = points[[*_SKIN, 0, 17, *_BROWS], :2]
    hair, clothes = points[_FOREHEAD, :2] + 0.2 * up[:2], points[_CHIN, :2] - 0.45 * up[:2]
    values = [_patch(image, place, radius) for place in (*places, hair, clothes)]
    skin, lips, brows = np.mean(values[:3], axis=0), np.mean(values[3:5], axis=0), np.mean(values[5:7], axis=0)
    tint = skin[[0, 2]] - skin[1]
    relative = [lips[0] - lips[1] - tint[0], (brows - skin).mean(), *(values[7] - skin), *(values[8] - skin)]
    return np.array([skin.mean(), *tint, *relative])


def _patch(image: np.ndarray, place: np.ndarray, radius: int) -> np.ndarray:
    """Mean logarithmic color around a place; of the nearest pixels inside the image."""
    height, width = image.shape[:2]
    x, y = (int(np.clip(value, 0, size - 1)) for value, size in zip(place, (width, height), strict=True))
    pixels = image[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
    return np.log(pixels.reshape(-1, 3).mean(axis=0) / 255 + 0.05)
