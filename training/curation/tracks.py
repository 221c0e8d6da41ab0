"""From faces found in single pictures to people followed through a shot: by overlap and by looks.

A face goes on with the track that costs least, all pairs of a moment decided together (Hungarian method, scipy). Cost
is what is missing to full overlap of the boxes and to full likeness; a pair must either overlap, or look alike within
a time and distance that a person could have moved.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from training.curation.models import FaceIdentity

_NEVER = 1e6
_MEMORY = 0.8  # share of a track's old looks that a new sighting leaves


@dataclass(frozen=True)
class TrackSettings:
    """When two sightings are one person.

    Args:
        overlap: least IoU of boxes of two moments that follow each other.
        memory: seconds a person may be out of sight and still be known again.
        reach: how far a person may have moved meanwhile, in face widths a second (and one more).
        looks: weight of likeness beside overlap.
        least_seconds: people seen for less are mistakes of the detector.
    """

    overlap: float = 0.2
    memory: float = 1.0
    reach: float = 4.0
    looks: float = 1.0
    least_seconds: float = 0.4


@dataclass
class Track:
    """One person: frames, boxes x0 y0 x1 y1, scores, and what the face looks like."""

    frames: list[int] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    looks: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, frame: int, box: np.ndarray, score: float, looks: np.ndarray) -> None:
        """One more sighting."""
        self.looks = looks if not self.frames else _MEMORY * self.looks + (1 - _MEMORY) * looks
        self.frames.append(frame)
        self.boxes.append(box)
        self.scores.append(score)


class Tracker:
    """Follows people through one shot.

    Args:
        identity: tells faces apart.
        fps: frames a second of the frame numbers.
    """

    def __init__(self, settings: TrackSettings, identity: FaceIdentity, fps: float) -> None:
        self.settings, self.identity, self.fps = settings, identity, fps
        self.tracks: list[Track] = []

    def add(self, frame: int, boxes: np.ndarray, scores: np.ndarray, looks: np.ndarray) -> None:
        """Faces of one moment: boxes [K,4], scores [K], looks [K,D]."""
        live = [t for t in self.tracks if frame - t.frames[-1] <= self.settings.memory * self.fps]
        taken: set[int] = set()
        if live and len(boxes):
            cost = np.stack([self._cost(track, frame, boxes, looks) for track in live])
            for row, column in zip(*linear_sum_assignment(cost), strict=True):
                if cost[row, column] < _NEVER:
                    live[row].add(frame, boxes[column], float(scores[column]), looks[column])
                    taken.add(int(column))
        for k in range(len(boxes)):
            if k not in taken:
                self.tracks.append(Track())
                self.tracks[-1].add(frame, boxes[k], float(scores[k]), looks[k])

    def _cost(self, track: Track, frame: int, boxes: np.ndarray, looks: np.ndarray) -> np.ndarray:
        """[K]: of each face going on with this track; `_NEVER` where it cannot be the same person."""
        last = track.boxes[-1]
        overlaps = overlap(last, boxes)
        likeness = self.identity.likeness(track.looks, looks)
        width = max(1.0, float(last[2] - last[0]))
        centre = np.array([last[0] + last[2], last[1] + last[3]]) / 2
        moved = np.linalg.norm((boxes[:, :2] + boxes[:, 2:]) / 2 - centre, axis=1) / width
        near = moved <= 1.0 + self.settings.reach * (frame - track.frames[-1]) / self.fps
        fits = (overlaps >= self.settings.overlap) | (near & (likeness >= self.identity.same))
        cost = (1.0 - overlaps) + self.settings.looks * (1.0 - likeness)
        return np.where(fits, cost, _NEVER)

    def people(self) -> list[Track]:
        """Tracks that are no mistakes, in the order in which they appeared."""
        least = self.settings.least_seconds * self.fps
        return [t for t in self.tracks if t.frames[-1] - t.frames[0] >= least and len(t.frames) >= 2]


def overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of one box [4] with each of [K,4]: [K]."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    both = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return both / np.maximum(np.prod(box[2:] - box[:2]) + areas - both, 1e-9)


def flat(tracks: list[Track]) -> np.ndarray:
    """float32 [D,7]: number of the track, frame, box, score; one row a sighting."""
    rows = [
        [number, frame, *box, score]
        for number, track in enumerate(tracks)
        for frame, box, score in zip(track.frames, track.boxes, track.scores, strict=True)
    ]
    return np.array(rows, np.float64).reshape(-1, 7)


def boxes_at(rows: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """[F,4]: boxes of one track (its rows of `flat`) at these frames, interpolated; the nearest beyond its ends."""
    return np.stack([np.interp(frames, rows[:, 1], rows[:, 2 + axis]) for axis in range(4)], axis=-1)
