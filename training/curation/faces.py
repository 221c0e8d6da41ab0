"""Stage 3: who is to be seen in a shot, and where (sec. 4.1: a face detection model)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from einops import rearrange

from bya_core.encoders.face.detection import FaceDetector
from training.curation.footage import pictures
from training.curation.models import FaceIdentity, ModelChoice, model_of
from training.curation.record import FPS, Record
from training.curation.stage import Resources, Unusable
from training.curation.tracks import Tracker, TrackSettings, flat

_AROUND = 0.15  # share of a face box added on each side before its looks are taken


@dataclass(frozen=True)
class FaceSettings:
    """How faces are found.

    Args:
        detector: the model that finds them.
        identity: the model that tells them apart.
        every: frames (25 a second) from one look to the next, at least; what no other picture refers to is not
            decoded at all. Boxes in between are interpolated.
        longest: pixels of the longer side of what the detector sees.
        least_score: of the detector.
        track: when two sightings are one person.
    """

    detector: ModelChoice = ModelChoice("auto")
    identity: ModelChoice = ModelChoice("colour")
    every: int = 5
    longest: int = 640
    least_score: float = 0.3
    track: TrackSettings = field(default_factory=TrackSettings)


class Faces:
    """Finds and follows faces through a shot; one picture at a time is in memory."""

    name = "faces"
    version = 1

    def __init__(self, settings: FaceSettings, resources: Resources) -> None:
        self.settings, self.resources = settings, resources

    def prepare(self) -> None:
        """Build the models. Raises InputError where they cannot be."""
        model_of("detector", self.settings.detector)
        model_of("identity", self.settings.identity)

    def __call__(self, record: Record) -> list[Record]:
        detector: FaceDetector = model_of("detector", self.settings.detector)
        identity: FaceIdentity = model_of("identity", self.settings.identity)
        tracker = Tracker(self.settings.track, identity, FPS)
        looks, last, due = 0, record.start, record.start
        for picture in pictures(record.source, record.start / FPS, record.end / FPS, rough=True):
            k = max(record.start, round(picture.time * FPS))
            if picture.after_break and looks:
                raise Unusable(f"it cannot be decoded at second {picture.time:.2f}")
            if k < due or k >= record.end:
                continue
            (pixels, scale), last, due = picture.small(self.settings.longest), k, k + self.settings.every
            boxes, scores = self._found(detector, pixels)
            described = [identity.describe(face_of(pixels, box)) for box in boxes]
            tracker.add(k, boxes / scale, scores, np.array(described))
            looks += 1
        people = tracker.people()
        seen = record.with_data(people=len(people), looks=looks, last_look=last, detector=detector.name)
        if not people:
            return [seen.reject("nobody's face is found")]
        return [seen.with_arrays(tracks=flat(people))]

    def _found(self, detector: FaceDetector, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [K,4] in these pixels, and scores [K]."""
        image = rearrange(torch.from_numpy(pixels), "h w c -> c h w").float().div_(255)
        faces = [face for face in detector.detect(image) if face.score >= self.settings.least_score]
        boxes = np.array([face.box for face in faces], np.float64).reshape(-1, 4)
        return boxes, np.array([face.score for face in faces])


def face_of(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The face with a little around it: [H,W,3] -> [h,w,3], at least one pixel."""
    height, width = pixels.shape[:2]
    across, down = _AROUND * (box[2] - box[0]), _AROUND * (box[3] - box[1])
    left, top = int(np.clip(box[0] - across, 0, width - 1)), int(np.clip(box[1] - down, 0, height - 1))
    right = int(np.clip(box[2] + across, left + 1, width))
    return pixels[top : int(np.clip(box[3] + down, top + 1, height)), left:right]
