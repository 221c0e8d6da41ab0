"""Face tracks: one box per frame and character, and the crops for SyncNet and face recognition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from bya_core.encoders.face.detection import Face
from bya_core.errors import InputError

_GRAY = 110  # padding outside the frame, as in the reference implementation
_MARGIN = 0.4  # fraction of half the box added on each side, twice of it below
_MEDIAN = 13  # frames of the median filter


def assign_faces(detections: Sequence[Sequence[Face]], masks: np.ndarray) -> np.ndarray:
    """Assign detected faces to characters: boxes [N, F, 4], NaN where a character has no face.

    Each character gets the face that its mask covers most, at most one per frame. The assignment uses masks instead of
    similarity so that a swapped identity is measured as such.

    Args:
        detections: detected faces of each of F frames.
        masks: bool [N, F, H, W].
    """
    from scipy.optimize import linear_sum_assignment

    count, length = masks.shape[:2]
    boxes = np.full((count, length, 4), np.nan)
    for f, faces in enumerate(detections):
        if not faces:
            continue
        share = np.zeros((count, len(faces)))
        for k, face in enumerate(faces):
            x0, y0, x1, y1 = (max(0, round(value)) for value in face.box)
            inside = masks[:, f, y0:y1, x0:x1]
            share[:, k] = inside.mean(axis=(1, 2)) if inside.size else 0.0
        for n, k in zip(*linear_sum_assignment(-share), strict=True):
            if share[n, k] > 0.2:
                boxes[n, f] = faces[k].box
    return boxes


def fill_gaps(track: np.ndarray, gap: int = 12) -> np.ndarray:
    """Interpolate gaps of up to `gap` frames in a track [F, 4]; the ends are held.

    Raises:
        InputError: no face in any frame, or a longer gap.
    """
    known = np.flatnonzero(np.isfinite(track).all(axis=1))
    if known.size == 0:
        raise InputError("a character without a face in any frame", "a visible face", "check the masks")
    longest = int(np.diff(np.concatenate([[-1], known, [len(track)]])).max()) - 1
    if longest > gap:
        raise InputError(f"a face that is missing for {longest} frames", f"at most {gap}", "split the video there")
    frames = np.arange(len(track))
    return np.stack([np.interp(frames, known, track[known, side]) for side in range(4)], axis=1)


def lip_crops(frames: np.ndarray, track: np.ndarray, size: int = 224) -> np.ndarray:
    """Face crops for SyncNet: uint8 [F, size, size, 3] from frames uint8 [F, H, W, 3] and boxes [F, 4].

    As in the reference implementation: a square around the center of the box, as wide as its longer side, smoothed by a
    median over 13 frames; larger by 0.4 of half its side on the sides and by 0.8 below; gray outside the frame.
    """
    from scipy.signal import medfilt

    x0, y0, x1, y1 = track.T
    half = medfilt(np.maximum(x1 - x0, y1 - y0) / 2, _MEDIAN)
    center_x, center_y = medfilt((x0 + x1) / 2, _MEDIAN), medfilt((y0 + y1) / 2, _MEDIAN)
    images = np.empty((len(frames), size, size, 3), dtype=np.uint8)
    for f, frame in enumerate(frames):
        s = half[f]
        border = int(s * (1 + 2 * _MARGIN))
        padded = np.pad(frame, ((border, border), (border, border), (0, 0)), constant_values=_GRAY)
        y, x = center_y[f] + border, center_x[f] + border
        rows = slice(max(0, int(y - s)), int(y + s * (1 + 2 * _MARGIN)))
        columns = slice(max(0, int(x - s * (1 + _MARGIN))), int(x + s * (1 + _MARGIN)))
        images[f] = _resize(padded[rows, columns], size)
    return images


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize an image uint8 [h, w, 3] bilinearly without antialiasing; gray if it is empty."""
    if 0 in image.shape:
        return np.full((size, size, 3), _GRAY, dtype=np.uint8)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    resized = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)
    return resized[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()


def face_crops(frames: np.ndarray, track: np.ndarray, size: int = 160, margin: float = 0.1) -> np.ndarray:
    """Crops for face recognition: uint8 [F, size, size, 3]; the box plus `margin` of its size on each side.

    Frames without a face (NaN in `track` [F, 4]) are gray; exclude them with `np.isfinite(track)`.
    """
    images = np.full((len(frames), size, size, 3), _GRAY, dtype=np.uint8)
    height, width = frames.shape[1:3]
    for f in np.flatnonzero(np.isfinite(track).all(axis=1)):
        x0, y0, x1, y1 = track[f]
        wider, taller = margin * (x1 - x0), margin * (y1 - y0)
        rows = slice(max(0, int(y0 - taller)), min(height, int(np.ceil(y1 + taller))))
        columns = slice(max(0, int(x0 - wider)), min(width, int(np.ceil(x1 + wider))))
        images[f] = _resize(frames[f, rows, columns], size)
    return images
