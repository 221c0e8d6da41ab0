"""Stages "segments" and "distance": clips with exactly N characters that are close to each other (paper sec. 4.1).

The paper states the second rule in words: "the bounding-box-to-inter-character-distance ratio to exclude segments where
the characters' bodies are too distant". It is implemented as follows. With s_i = sqrt(width_i * height_i) the size of a
face box and c_i its center,

    r = min over i of  max over j != i of  ((s_i + s_j) / 2) / |c_i - c_j|,    averaged over the frames of a clip.

r is the distance of the most isolated character to its nearest neighbor, in units of face size, inverted. A face is
about 15 cm wide and shoulders about three faces, so r is about 1/3 for people who touch and 1/10 at a distance of
1.5 m. The paper gives no value; the default of 0.12 corresponds to about 1.25 m. The rule does not apply to N = 1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np

from bya_core.errors import InputError
from bya_core.validation import Field, validated
from training.curation.faces import box_iou, boxes_at
from training.curation.record import Record, digest
from training.curation.stage import Stage


@validated
class SegmentSettings:
    """Options of clip extraction.

    Args:
        characters: exact number of visible characters N.
        lengths: allowed clip lengths in frames (25 fps), each 4k + 1 for the video VAE; the longest that fits is taken
            repeatedly.
        context: frames kept on each side of a clip, with the same people visible, for models with temporal context.
        max_missed: frames without a detection after which a person is no longer visible.
        max_occluded: the same for a person behind another one.
        min_face_height: faces below this fraction of the frame height are background and are not counted.
        min_face_pixels: minimum mean height of every face in pixels.
        size: height and width of the clips; a crop of this aspect ratio that contains all faces is extracted.
    """

    characters: Annotated[int, Field(ge=1)] = 2
    lengths: tuple[int, ...] = (49,)
    context: int = 25
    max_missed: Annotated[int, Field(ge=0)] = 8
    max_occluded: Annotated[int, Field(ge=0)] = 25
    min_face_height: float = 0.04
    min_face_pixels: int = 48
    size: tuple[int, int] = (480, 720)

    def __post_init__(self) -> None:
        if not self.lengths or any(n < 5 or n % 4 != 1 for n in self.lengths):
            problem = f"segments: lengths {list(self.lengths)}"
            raise InputError(problem, "lengths of 5, 9, 13 ... frames", "change the curation config")


@dataclass(frozen=True)
class Track:
    """One person in a shot: rows of the array "tracks", and mesh points [D,468,2] relative to the boxes, if known."""

    rows: np.ndarray
    points: np.ndarray | None


class Segments(Stage):
    """Extracts clips with exactly N visible characters from a shot."""

    name = "segments"
    version = 2

    def __call__(self, record: Record) -> list[Record]:
        settings: SegmentSettings = self.settings
        rows, points = record.array("tracks"), record.array("points") if "points" in record.arrays else None
        min_height = settings.min_face_height * float(record.data["height"])
        tracks = []
        for index in np.unique(rows[:, 0]):
            own = rows[:, 0] == index
            if np.mean(rows[own, 5] - rows[own, 3]) >= min_height:
                tracks.append(Track(rows[own], None if points is None else points[own]))
        if not tracks:
            return [record.reject(f"all faces are smaller than {settings.min_face_height:g} of the frame height")]
        visible = self._visible(record, tracks)
        counts = visible.sum(axis=0)
        fractions = {str(k): round(float((counts == k).mean()), 4) for k in np.unique(counts)}
        shot = replace(record, arrays={}).with_data(visible=fractions)
        clips, longest, unsuitable = [], 0, 0
        for first, last in _constant_runs(visible, settings.characters):
            longest = max(longest, last - first)
            for start, end in self._clip_ranges(first, last):
                clip = self._clip(
                    shot, [tracks[n] for n in visible[:, start].nonzero()[0]], (start, end), (first, last)
                )
                unsuitable += clip is None
                clips += [clip] if clip is not None else []
        if clips:
            return clips
        if unsuitable:
            size = f"{settings.min_face_pixels} pixels of face height in {settings.size[1]}x{settings.size[0]}"
            return [shot.reject(f"{unsuitable} clips with faces too small or too far apart for {size}")]
        reason = f"no {min(settings.lengths)} frames with exactly {settings.characters} characters"
        return [shot.reject(f"{reason}: at most {longest} consecutive")]

    def _visible(self, record: Record, tracks: list[Track]) -> np.ndarray:
        """Frames of the shot in which each person is visible, bool [tracks, F].

        Short gaps between detections are filled, longer ones if the person is behind another face.
        """
        visible = np.zeros((len(tracks), record.num_frames), bool)
        for row, track in zip(visible, tracks, strict=True):
            row[track.rows[:, 1].astype(int) - record.start] = True
        detected = visible.copy()
        boxes = [boxes_at(track.rows, np.arange(record.start, record.end)) for track in tracks]
        max_missed = max(self.settings.max_missed, 2 * record.data["stride"])
        for n, track in enumerate(tracks):
            frames = track.rows[:, 1].astype(int) - record.start
            for first, last in zip(frames, frames[1:], strict=False):
                gap = slice(first + 1, last)
                others = [boxes[k][gap] for k in range(len(tracks)) if k != n and detected[k][gap].any()]
                hidden = last - first <= self.settings.max_occluded and any(
                    np.mean([box_iou(box, other[None])[0] for box, other in zip(boxes[n][gap], each, strict=True)])
                    > 0.1
                    for each in others
                )
                if last - first <= max_missed or hidden:
                    visible[n, gap] = True
            if track.rows[-1, 1] >= record.data["last_detection"]:  # visible until the end of the shot
                visible[n, frames[-1] :] = True
        return visible

    def _clip_ranges(self, first: int, last: int) -> list[tuple[int, int]]:
        """Consecutive clips, centered in the range."""
        lengths, remaining = [], last - first
        while fitting := [n for n in self.settings.lengths if n <= remaining]:
            lengths.append(max(fitting))
            remaining -= max(fitting)
        starts = first + remaining // 2 + np.concatenate([[0], np.cumsum(lengths)]).astype(int)
        return [(int(a), int(b)) for a, b in zip(starts, starts[1:], strict=False)]

    def _clip(self, shot: Record, tracks: list[Track], span: tuple[int, int], run: tuple[int, int]) -> Record | None:
        """Build the record of a clip with its face boxes, or return None if the faces do not fit.

        Characters are shuffled, so that training on stored slots does not learn that the first speech belongs to the
        leftmost character.
        """
        context = (
            shot.start + max(run[0], span[0] - self.settings.context),
            shot.start + min(run[1], span[1] + self.settings.context),
        )
        start, end = shot.start + span[0], shot.start + span[1]
        order = np.random.default_rng(int(digest(shot.content, start)[:8], 16)).permutation(len(tracks))
        tracks = [tracks[n] for n in order]
        boxes = np.stack([boxes_at(track.rows, np.arange(*context)) for track in tracks])
        clip_boxes = boxes[:, start - context[0] : end - context[0]]
        crop = self._crop(clip_boxes, shot.data["width"], shot.data["height"])
        face_height = np.mean(clip_boxes[..., 3] - clip_boxes[..., 1], axis=-1)
        if crop is None or float(face_height.min()) < self.settings.min_face_pixels:
            return None
        clip = shot.child(
            "clip",
            start,
            end,
            context=list(context),
            crop=[round(v, 2) for v in crop],
            face_height=[round(float(v), 1) for v in face_height],
            left_to_right=np.argsort(clip_boxes[:, 0, [0, 2]].mean(axis=-1), kind="stable").tolist(),
            reference=[_select_reference(track.rows, start, end) for track in tracks],
        )
        found = [track.points for track in tracks if track.points is not None]
        if len(found) == len(tracks):
            points = np.full((*boxes.shape[:2], *found[0].shape[1:]), np.nan, np.float16)
            for own, track, stored in zip(points, tracks, found, strict=True):
                inside = (track.rows[:, 1] >= context[0]) & (track.rows[:, 1] < context[1])
                own[track.rows[inside, 1].astype(int) - context[0]] = stored[inside]
            clip = clip.with_arrays(points=points)
        return clip.with_arrays(boxes=boxes.astype(np.float32))

    def _crop(self, boxes: np.ndarray, width: int, height: int) -> tuple[float, float, float, float] | None:
        """Largest crop of the requested aspect ratio, centered on all faces where possible."""
        aspect = self.settings.size[1] / self.settings.size[0]
        crop_width, crop_height = min(width, height * aspect), min(height, width / aspect)
        x0, x1 = float(boxes[..., 0].min()), float(boxes[..., 2].max())
        y0, y1 = float(boxes[..., 1].min()), float(boxes[..., 3].max())
        if min(x1, width) - max(x0, 0) > crop_width or min(y1, height) - max(y0, 0) > crop_height:
            return None
        left = float(np.clip((x0 + x1) / 2 - crop_width / 2, 0, width - crop_width))
        top = float(np.clip((y0 + y1) / 2 - crop_height / 2, 0, height - crop_height))
        return left, top, left + crop_width, top + crop_height


def _select_reference(track: np.ndarray, start: int, end: int) -> dict[str, Any]:
    """Select the detection for the reference image: outside the clip if possible, then by score and size.

    A frame of the clip itself would teach the model to copy it.
    """
    outside = (track[:, 1] < start) | (track[:, 1] >= end)
    candidates = track[outside] if outside.any() else track
    areas = (candidates[:, 4] - candidates[:, 2]) * (candidates[:, 5] - candidates[:, 3])
    best = candidates[int(np.argmax(candidates[:, 6] * np.sqrt(areas)))]
    box = [round(float(v), 1) for v in best[2:6]]
    return {"frame": int(best[1]), "box": box, "inside": not bool(outside.any())}


def _constant_runs(visible: np.ndarray, n: int) -> list[tuple[int, int]]:
    """(first, end) of every run of frames in which the same n tracks are visible; `visible` is [tracks, frames]."""
    changes = np.flatnonzero((visible[:, 1:] != visible[:, :-1]).any(axis=0)) + 1
    edges = [0, *changes.tolist(), visible.shape[1]]
    return [(a, b) for a, b in zip(edges, edges[1:], strict=False) if b > a and visible[:, a].sum() == n]


@validated
class DistanceSettings:
    """Options of the distance filter.

    Args:
        min_ratio: minimum ratio r of face size to distance (see the module docstring).
    """

    min_ratio: float = 0.12


class Distance(Stage):
    """Rejects clips whose characters are too far apart."""

    name = "distance"

    def __call__(self, record: Record) -> list[Record]:
        boxes = record.array("boxes")
        if len(boxes) < 2:
            return [record]
        ratio = distance_ratio(boxes)
        record = record.with_data(distance_ratio=round(ratio, 4))
        if ratio < self.settings.min_ratio:
            reason = f"characters too far apart: ratio {ratio:.3f}, at least {self.settings.min_ratio:g}"
            return [record.reject(reason)]
        return [record]


def distance_ratio(boxes: np.ndarray) -> float:
    """Compute r for face boxes [N,F,4] with N >= 2."""
    size = np.sqrt(np.prod(np.clip(boxes[..., 2:] - boxes[..., :2], 0, None), axis=-1))
    center = (boxes[..., :2] + boxes[..., 2:]) / 2
    distance = np.linalg.norm(center[:, None] - center[None], axis=-1)
    ratio = (size[:, None] + size[None]) / 2 / np.maximum(distance, 1e-6)
    ratio[np.arange(len(boxes)), np.arange(len(boxes))] = 0.0
    return float(ratio.max(axis=1).min(axis=0).mean())
