"""Pictures of a clip as models want them: the cut-out window at any size, faces as SyncNet sees them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from training.curation.footage import read_window
from training.curation.record import Record

FACE = 224
"""Side of a face crop."""

_MARGIN = 0.4  # of SyncNet's crop (syncnet_python, also AV_MossFormer2_TSE): share of half a face added around
_GREY = 110  # beyond the picture
_SMOOTH = 13  # frames of the median filter on the boxes


def work_size(record: Record, longest: int) -> tuple[int, int]:
    """Height and width, even, at which models see a clip: its window, not enlarged, its longer side at most this."""
    x0, y0, x1, y1 = record.data["window"]
    scale = min(1.0, longest / max(x1 - x0, y1 - y0))
    return max(2, round((y1 - y0) * scale / 2) * 2), max(2, round((x1 - x0) * scale / 2) * 2)


def clip_frames(record: Record, size: tuple[int, int], context: bool = False) -> np.ndarray:
    """uint8 [F, *size, 3] of a clip, or of all its context. The last one read is kept."""
    first, last = record.data["context"] if context else (record.start, record.end)
    return _read(record.source, first, last, tuple(record.data["window"]), size)


@lru_cache(maxsize=2)
def _read(
    source: str, first: int, last: int, window: tuple[float, float, float, float], size: tuple[int, int]
) -> np.ndarray:
    frames = read_window(source, first, last, window, size)
    frames.flags.writeable = False  # several stages see the same
    return frames


def boxes_in(record: Record, size: tuple[int, int], context: bool = False) -> np.ndarray:
    """Face boxes [N,F,4] in pixels of the window at this size."""
    x0, y0, x1, y1 = record.data["window"]
    scale = np.array([size[1] / (x1 - x0), size[0] / (y1 - y0)] * 2)
    boxes = (record.array("boxes") - np.array([x0, y0, x0, y0])) * scale
    if context:
        return boxes
    offset = record.start - record.data["context"][0]
    return boxes[:, offset : offset + record.frames]


def face_crops(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[F,H,W,3] and [N,F,4] -> uint8 [N,F,224,224,3], framed as SyncNet was trained.

    With s half the longer side of a box, smoothed over time: s above its middle, 1.8 s below, 1.4 s to both sides.
    """
    from scipy.signal import medfilt

    made = np.empty((*boxes.shape[:2], FACE, FACE, 3), np.uint8)
    for n, track in enumerate(boxes):
        half = np.maximum(track[:, 2] - track[:, 0], track[:, 3] - track[:, 1]) / 2
        middle = (track[:, :2] + track[:, 2:]) / 2
        padded = [np.pad(values, _SMOOTH // 2, mode="edge") for values in (half, middle[:, 0], middle[:, 1])]
        inner = slice(_SMOOTH // 2, -(_SMOOTH // 2))
        half, x, y = (medfilt(values, _SMOOTH)[inner] for values in padded)
        for f, frame in enumerate(frames):
            s = max(1.0, float(half[f]))
            made[n, f] = _square(frame, x[f] - s * (1 + _MARGIN), y[f] - s, 2 * s * (1 + _MARGIN))
    return made


def _square(frame: np.ndarray, left: float, top: float, side: float) -> np.ndarray:
    """A square of the picture, grey beyond it, as [224,224,3]."""
    x, y, wide = round(left), round(top), max(1, round(side))
    height, width = frame.shape[:2]
    square = np.full((wide, wide, 3), _GREY, np.uint8)
    x0, y0, x1, y1 = max(0, x), max(0, y), min(width, x + wide), min(height, y + wide)
    if x1 > x0 and y1 > y0:
        square[y0 - y : y1 - y, x0 - x : x1 - x] = frame[y0:y1, x0:x1]
    return np.asarray(Image.fromarray(square).resize((FACE, FACE), Image.Resampling.BILINEAR))
