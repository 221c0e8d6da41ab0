"""Pictures of a clip as models want them: the cut-out window at any size, faces as SyncNet sees them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from bya_core.evaluation.face_tracks import crops
from training.curation.footage import read_window
from training.curation.record import Record


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
    """[F,H,W,3] and [N,F,4] -> uint8 [N,F,224,224,3], framed as SyncNet sees them."""
    return np.stack([crops(frames, track) for track in boxes])
