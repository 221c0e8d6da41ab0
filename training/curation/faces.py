"""Stage "faces": face detection and tracking within a shot (paper sec. 4.1).

The default detector, "blazeface", is part of the package. It tracks faces itself and fits a mesh of 468 points in every
frame, which later stages use for lip sync and masks. Detections of other detectors are assigned to tracks by the
Hungarian method. The cost is (1 - IoU) plus the weighted (1 - similarity). A pair is admissible if the boxes overlap,
or if the faces are similar and the person could have moved that far.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from einops import rearrange
from scipy.optimize import linear_sum_assignment

from bya_core.encoders.face.detection import FaceDetector
from bya_core.encoders.face.mesh import FaceMesh
from bya_core.encoders.face.tracking import track_faces
from bya_core.validation import Field, validated
from training.curation.footage import decode_frames, read_shot
from training.curation.models import FaceIdentity, ModelChoice, ModelOption
from training.curation.record import FPS, Record
from training.curation.stage import Resources, Stage, UnusableFootage

_MARGIN = 0.15  # fraction of a face box added on each side for the embedding
_INADMISSIBLE = 1e6
MESH_DETECTOR = "blazeface"
"""Name of the detector that also tracks faces and fits their meshes."""
_MOMENTUM = 0.8  # of a track's embedding


@validated
class TrackSettings:
    """Options of face tracking.

    Args:
        min_iou: minimum IoU of two consecutive boxes of a track.
        max_gap_seconds: longest time a person may be out of sight.
        max_speed: maximum motion during that time in face widths per second (plus one face width).
        similarity_weight: weight of face similarity relative to IoU.
        min_seconds: shorter tracks are discarded as false detections.
    """

    min_iou: float = 0.2
    max_gap_seconds: float = 1.0
    max_speed: float = 4.0
    similarity_weight: float = 1.0
    min_seconds: float = 0.4


@validated
class FaceSettings:
    """Options of face detection.

    Args:
        detector: face detection model.
        identity: face embedding model; not used by "blazeface".
        stride: minimum number of frames between two detections. Non-reference frames are never decoded; boxes in
            between are interpolated. "blazeface" detects faces in every fourth frame.
        max_side: longer side of the detector input in pixels.
        min_score: minimum detection score in 0..1; with "blazeface", of the mean over a track.
        track: options of tracking; "blazeface" uses the durations only.
    """

    detector: ModelOption = ModelChoice("blazeface")
    identity: ModelOption = ModelChoice("color")
    stride: Annotated[int, Field(ge=1)] = 5
    max_side: Annotated[int, Field(ge=128)] = 960
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.5
    track: TrackSettings = field(default_factory=TrackSettings)


class Faces(Stage):
    """Detects and tracks faces. Holds one frame in memory; with "blazeface", the frames of a shot on disk."""

    name = "faces"
    version = 2
    models = {"detector": "detector", "identity": "identity"}

    def __init__(self, settings: FaceSettings, resources: Resources | None = None) -> None:
        super().__init__(settings, resources)
        if settings.detector.name == MESH_DETECTOR:
            self.models = {"detector": "detector"}

    def __call__(self, record: Record) -> list[Record]:
        detector: FaceDetector = self.model("detector")
        if isinstance(detector, FaceMesh):
            return [self._track_meshes(record, detector)]
        identity: FaceIdentity = self.model("identity")
        tracker = Tracker(self.settings.track, identity, FPS)
        count, last, due = 0, record.start, record.start
        for frame in decode_frames(record.source, record.start / FPS, record.end / FPS, fast=True):
            k = max(record.start, round(frame.time * FPS))
            if frame.after_gap and count:
                raise UnusableFootage(f"not decodable at {frame.time:.2f} s")
            if k < due or k >= record.end:
                continue
            (pixels, scale), last, due = frame.resized(self.settings.max_side), k, k + self.settings.stride
            boxes, scores = self._detect(detector, pixels)
            embeddings = np.array([identity.embed(crop_face(pixels, box)) for box in boxes])
            tracker.add(k, boxes / scale, scores, embeddings)
            count += 1
        tracks = tracker.finished_tracks()
        record = record.with_data(
            num_people=len(tracks),
            num_detections=count,
            last_detection=last,
            detector=detector.name,
            stride=self.settings.stride,
        )
        if not tracks:
            return [record.reject("no face detected")]
        return [record.with_arrays(tracks=tracks_to_array(tracks))]

    def _track_meshes(self, record: Record, mesh: FaceMesh) -> Record:
        """Tracks and meshes of a shot by `track_faces`."""
        settings: FaceSettings = self.settings
        frames, scale = read_shot(record.source, record.start, record.end, settings.max_side)
        min_frames = min(settings.track.min_seconds * FPS, len(frames))
        tracks = [
            track
            for track in track_faces(frames, mesh)
            if track.visible.sum() >= min_frames and track.scores[track.visible].mean() >= settings.min_score
        ]
        record = record.with_data(
            num_people=len(tracks),
            num_detections=len(frames),
            last_detection=record.end - 1,
            detector=mesh.name,
            stride=1,
        )
        if not tracks:
            return record.reject("no face detected")
        rows, points = [], []
        for index, track in enumerate(tracks):
            visible = np.flatnonzero(track.visible)
            boxes = track.boxes[visible].astype(np.float64)
            columns = [np.full(len(visible), index), record.start + visible, *(boxes / scale).T, track.scores[visible]]
            rows.append(np.stack(columns, axis=1))
            points.append(relative_points(track.points[visible, :, :2], boxes))
        return record.with_arrays(tracks=np.concatenate(rows), points=np.concatenate(points).astype(np.float16))

    def _detect(self, detector: FaceDetector, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes [K,4] in pixels and scores [K]."""
        image = rearrange(torch.from_numpy(pixels), "h w c -> c h w").float().div_(255)
        faces = [face for face in detector.detect(image) if face.score >= self.settings.min_score]
        boxes = np.array([face.box for face in faces], np.float64).reshape(-1, 4)
        return boxes, np.array([face.score for face in faces])


def crop_face(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Crop a face with a small margin from [H,W,3]: [h,w,3], at least one pixel."""
    height, width = pixels.shape[:2]
    dx, dy = _MARGIN * (box[2] - box[0]), _MARGIN * (box[3] - box[1])
    left, top = int(np.clip(box[0] - dx, 0, width - 1)), int(np.clip(box[1] - dy, 0, height - 1))
    right = int(np.clip(box[2] + dx, left + 1, width))
    return pixels[top : int(np.clip(box[3] + dy, top + 1, height)), left:right]


@dataclass
class Track:
    """Detections of one person: frame indices, boxes x0 y0 x1 y1, scores, and the running mean embedding."""

    frames: list[int] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    embedding: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, frame: int, box: np.ndarray, score: float, embedding: np.ndarray) -> None:
        self.embedding = _MOMENTUM * self.embedding + (1 - _MOMENTUM) * embedding if self.frames else embedding
        self.frames.append(frame)
        self.boxes.append(box)
        self.scores.append(score)


class Tracker:
    """Multi-person tracker for one shot.

    Args:
        settings: options.
        identity: face embedding model.
        fps: rate of the frame indices.
    """

    def __init__(self, settings: TrackSettings, identity: FaceIdentity, fps: float) -> None:
        self.settings, self.identity, self.fps = settings, identity, fps
        self.tracks: list[Track] = []

    def add(self, frame: int, boxes: np.ndarray, scores: np.ndarray, embeddings: np.ndarray) -> None:
        """Add the detections of one frame: boxes [K,4], scores [K], embeddings [K,D]."""
        active = [t for t in self.tracks if frame - t.frames[-1] <= self.settings.max_gap_seconds * self.fps]
        assigned: set[int] = set()
        if active and len(boxes):
            cost = np.stack([self._cost(track, frame, boxes, embeddings) for track in active])
            for row, column in zip(*linear_sum_assignment(cost), strict=True):
                if cost[row, column] < _INADMISSIBLE:
                    active[row].add(frame, boxes[column], float(scores[column]), embeddings[column])
                    assigned.add(int(column))
        for k in range(len(boxes)):
            if k not in assigned:
                self.tracks.append(Track())
                self.tracks[-1].add(frame, boxes[k], float(scores[k]), embeddings[k])

    def _cost(self, track: Track, frame: int, boxes: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
        """Cost [K] of appending each detection to a track; `_INADMISSIBLE` if it cannot be the same person."""
        settings, last = self.settings, track.boxes[-1]
        ious = box_iou(last, boxes)
        similarity = self.identity.similarity(track.embedding, embeddings)
        width = max(1.0, float(last[2] - last[0]))
        center = np.array([last[0] + last[2], last[1] + last[3]]) / 2
        motion = np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - center, axis=1) / width
        reachable = motion <= 1.0 + settings.max_speed * (frame - track.frames[-1]) / self.fps
        admissible = (ious >= settings.min_iou) | (reachable & (similarity >= self.identity.threshold))
        cost = (1.0 - ious) + settings.similarity_weight * (1.0 - similarity)
        return np.where(admissible, cost, _INADMISSIBLE)

    def finished_tracks(self) -> list[Track]:
        """Tracks of sufficient length, in order of appearance."""
        min_frames = self.settings.min_seconds * self.fps
        return [t for t in self.tracks if t.frames[-1] - t.frames[0] >= min_frames and len(t.frames) >= 2]


def box_iou(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of one box [4] with each of [K,4]: [K]."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    intersection = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return intersection / np.maximum(np.prod(box[2:] - box[:2]) + areas - intersection, 1e-9)


def tracks_to_array(tracks: list[Track]) -> np.ndarray:
    """One row per detection: track index, frame, box, score; float64 [D,7]."""
    rows = [
        [index, frame, *box, score]
        for index, track in enumerate(tracks)
        for frame, box, score in zip(track.frames, track.boxes, track.scores, strict=True)
    ]
    return np.array(rows, np.float64).reshape(-1, 7)


def boxes_at(rows: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Linearly interpolated boxes [F,4] of one track (its rows of `tracks_to_array`), constant beyond its ends."""
    return np.stack([np.interp(frames, rows[:, 1], rows[:, 2 + axis]) for axis in range(4)], axis=-1)


def relative_points(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Mesh points [..., P, 2] in pixels as fractions of their boxes [..., 4]."""
    return (points - boxes[..., None, :2]) / np.maximum(boxes[..., None, 2:] - boxes[..., None, :2], 1e-6)
