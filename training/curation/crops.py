"""Frames and face boxes of a clip at the resolution of a model."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from bya_core.evaluation.face_tracks import lip_crops
from training.curation.footage import read_crop
from training.curation.record import Record


def model_size(record: Record, max_side: int) -> tuple[int, int]:
    """Even height and width of a clip's crop, downscaled so that the longer side is at most `max_side`."""
    x0, y0, x1, y1 = record.data["crop"]
    scale = min(1.0, max_side / max(x1 - x0, y1 - y0))
    return max(2, round((y1 - y0) * scale / 2) * 2), max(2, round((x1 - x0) * scale / 2) * 2)


def clip_frames(record: Record, size: tuple[int, int], context: bool = False) -> np.ndarray:
    """Frames of a clip, or of its context range: uint8 [F, *size, 3], read-only. The most recent results are cached."""
    first, last = record.data["context"] if context else (record.start, record.end)
    return _read(record.source, first, last, tuple(record.data["crop"]), size)


@lru_cache(maxsize=2)
def _read(
    source: str, first: int, last: int, crop: tuple[float, float, float, float], size: tuple[int, int]
) -> np.ndarray:
    frames = read_crop(source, first, last, crop, size)
    frames.flags.writeable = False  # shared by several stages
    return frames


def clip_boxes(record: Record, size: tuple[int, int], context: bool = False) -> np.ndarray:
    """Face boxes [N,F,4] in pixels of the clip's crop resized to `size`."""
    x0, y0, x1, y1 = record.data["crop"]
    scale = np.array([size[1] / (x1 - x0), size[0] / (y1 - y0)] * 2)
    boxes = (record.array("boxes") - np.array([x0, y0, x0, y0])) * scale
    if context:
        return boxes
    offset = record.start - record.data["context"][0]
    return boxes[:, offset : offset + record.num_frames]


def face_crops(record: Record, max_side: int, context: bool) -> np.ndarray:
    """Face crops of a clip, framed as SyncNet expects: uint8 [N,F,224,224,3]."""
    size = model_size(record, max_side)
    frames, boxes = clip_frames(record, size, context), clip_boxes(record, size, context)
    return np.stack([lip_crops(frames, track) for track in boxes])
