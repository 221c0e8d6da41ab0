"""Face tracks: one box per frame and character, and the crops for SyncNet and face recognition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from bya_core.encoders.face.tracking import FaceTrack
from bya_core.errors import InputError

_GRAY = 110  # padding outside the frame, as in the reference implementation
_MARGIN = 0.4  # fraction of half the box added on each side, twice of it below
_MEDIAN = 13  # frames of the median filter


def cover(tracks: Sequence[FaceTrack], masks: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Mean fraction of the box of each of K tracks that each of N masks covers [K, N].

    Args:
        tracks: over F frames.
        masks: bool [N, F, h, w].
        size: height and width of the frames in pixels.
    """
    scale = np.tile([masks.shape[3] / size[1], masks.shape[2] / size[0]], 2)
    shares = np.zeros((len(tracks), len(masks)))
    for k, track in enumerate(tracks):
        frames = np.flatnonzero(track.visible)
        for f in frames:
            x0, y0, x1, y1 = (track.boxes[f] * scale).round().astype(int).clip(0)
            inside = masks[:, f, y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
            shares[k] += inside.mean(axis=(1, 2)) / len(frames) if inside.size else 0.0
    return shares


def cast_tracks(
    scores: np.ndarray, tracks: Sequence[FaceTrack], margin: float = 0.0
) -> tuple[list[list[int]], set[int]]:
    """Assign tracks to characters by scores.

    Each character gets the track of the best assignment, and further tracks that resemble it most and are visible only
    when it is not: a person who was lost and found again.

    Args:
        scores: of K tracks and N characters [K, N]; pairs with scores of 0 are not made.
        tracks: K tracks.
        margin: smallest gain over the best assignment without a pair.

    Returns:
        Indices of the tracks of each character, and the characters left out because the gain is smaller.
    """
    from scipy.optimize import linear_sum_assignment

    count = scores.shape[1]
    share = np.array([track.visible.mean() for track in tracks])[:, None]
    cast: list[list[int]] = [[] for _ in range(count)]
    unsure: set[int] = set()
    rows, columns = linear_sum_assignment(scores * share, maximize=True)
    total = (scores * share)[rows, columns].sum()
    for k, n in zip(rows.tolist(), columns.tolist(), strict=True):
        without = scores * share
        without[k, n] = -1e3
        others = without[linear_sum_assignment(without, maximize=True)]
        alternative = others[others > -1e2].sum()
        if scores[k, n] <= 0:
            continue
        if count > 1 and total - alternative < margin * share[k, 0]:
            unsure.add(n)
        else:
            cast[n].append(k)
    for k in sorted(set(range(len(tracks))) - set(rows.tolist()), key=lambda k: -share[k, 0]):
        n = int(scores[k].argmax())
        seen = [tracks[other].visible for other in cast[n]]
        if seen and scores[k, n] > 0 and not (np.any(seen, axis=0) & tracks[k].visible).any():
            cast[n].append(k)
    return cast, unsure


def merge_tracks(tracks: Sequence[FaceTrack], length: int) -> FaceTrack:
    """One track over `length` frames of tracks that are visible at different times; never visible if there are none."""
    merged = FaceTrack(
        np.full((length, 4), np.nan, np.float32),
        np.zeros(length, np.float32),
        np.full((length, 468, 3), np.nan, np.float32),
        np.zeros(length, np.float32),
    )
    for track in tracks:
        for name in ("boxes", "scores", "points", "presence"):
            getattr(merged, name)[track.visible] = getattr(track, name)[track.visible]
    return merged


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
