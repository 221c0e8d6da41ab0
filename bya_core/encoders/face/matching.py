"""Locating characters in an image by their appearance.

A model bundle provides a `CharacterFinder` (`ModelBundle.character_finder`) or leaves it to `FaceFinder`, which
combines a face detector with the face encoder of the bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from bya_core.encoders.face.alignment import similarity, warp
from bya_core.encoders.face.detection import Face, FaceDetector
from bya_core.encoders.face.encoder import PhotoFaceEncoder
from bya_core.encoders.protocols import FaceEncoder
from bya_core.errors import InputError

_MARGIN = 0.3  # margin around a face box, as a fraction of its size, for the identity embedding
_MAX_FACES = 16  # detections considered per image, best score first


@dataclass(frozen=True)
class DetectedCharacters:
    """K characters detected in an image. Boxes are (x0, y0, x1, y1) in pixels.

    Args:
        faces: Face boxes [K, 4], forehead to chin and ear to ear.
        bodies: Boxes [K, 4] of the visible body including the head; may extend beyond the image.
        likeness: Similarity [K, N] to the reference images, in [-1, 1].
    """

    faces: Tensor
    bodies: Tensor
    likeness: Tensor

    @staticmethod
    def none(count: int) -> DetectedCharacters:
        """No detections for `count` reference images."""
        return DetectedCharacters(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, count))


@runtime_checkable
class CharacterFinder(Protocol):
    """Locates characters in an image.

    Attributes:
        threshold: Likeness below which a match is reported with a warning.
    """

    threshold: float

    def find(self, image: Tensor, portraits: Sequence[Tensor]) -> DetectedCharacters:
        """Detect all characters.

        Args:
            image: [3, H, W] in [0, 1].
            portraits: N reference images [3, h, w] in [0, 1].

        Raises:
            InputError: If a reference image shows no face.
        """
        ...


class FaceFinder:
    """`CharacterFinder` for photos: a face detector, and the cosine similarity of a face encoder's identity vectors.

    Args:
        detector: Face detector.
        encoder: Face encoder of the model.
        threshold: See `CharacterFinder`; ArcFace similarities of one person start at about 0.3.
    """

    def __init__(self, detector: FaceDetector, encoder: FaceEncoder, threshold: float = 0.3) -> None:
        self.detector, self.encoder, self.threshold = detector, encoder, threshold

    def find(self, image: Tensor, portraits: Sequence[Tensor]) -> DetectedCharacters:
        """See `CharacterFinder`."""
        known = torch.stack([self._identity(portrait) for portrait in portraits])
        boxes, likeness = [], []
        for face in self.detector.detect(image)[:_MAX_FACES]:
            try:
                identity = self._identity(_crop(image, face.box))
            except InputError:  # a false detection: the encoder finds no face in the crop
                continue
            boxes.append(torch.tensor(face.box))
            likeness.append(known @ identity)
        if not boxes:
            return DetectedCharacters.none(len(portraits))
        faces = torch.stack(boxes)
        return DetectedCharacters(faces, body_boxes(faces), torch.stack(likeness))

    def _identity(self, image: Tensor) -> Tensor:
        return F.normalize(self.encoder.encode(image).identity.float().cpu().flatten(), dim=0)


class PhotoCharacterFinder:
    """`CharacterFinder` of the released weights: the detector of its face path and ArcFace similarity.

    Args:
        face: The face encoder whose networks are used.
        threshold: See `CharacterFinder`; ArcFace similarities of one person start at about 0.3.
    """

    def __init__(self, face: PhotoFaceEncoder, threshold: float = 0.3) -> None:
        self.face, self.threshold = face, threshold

    @torch.no_grad()
    def find(self, image: Tensor, portraits: Sequence[Tensor]) -> DetectedCharacters:
        """See `CharacterFinder`; low-confidence faces, such as drawings, are used if there are no others."""
        known = torch.stack([self._embed(self.face.crop(portrait).crop) for portrait in portraits])
        try:
            faces, _ = self.face.detect(image)
        except InputError:
            return DetectedCharacters.none(len(portraits))
        faces = sorted(faces, key=lambda face: -face.score)[:_MAX_FACES]
        embeddings = torch.stack([self._embed(self._aligned(image, face)) for face in faces])
        boxes = torch.tensor([face.box for face in faces])
        return DetectedCharacters(boxes, body_boxes(boxes), embeddings @ known.T)

    def _embed(self, crop: Tensor) -> Tensor:
        assert self.face.models.recognizer is not None
        return F.normalize(self.face.models.recognizer.features(crop), dim=0)

    def _aligned(self, image: Tensor, face: Face) -> Tensor:
        assert face.points is not None
        return warp(image, similarity(face.points))


def body_boxes(faces: Tensor) -> Tensor:
    """Boxes [K, 4] of head, shoulders and chest around face boxes [K, 4].

    Assumes shoulders three times as wide as the face, hair half a face above it, and a chest visible for three face
    heights below the chin, which usually exceeds the image.
    """
    x0, y0, x1, y1 = faces.unbind(-1)
    middle, width, height = (x0 + x1) / 2, x1 - x0, y1 - y0
    return torch.stack([middle - 1.5 * width, y0 - 0.5 * height, middle + 1.5 * width, y1 + 3.0 * height], dim=-1)


def _crop(image: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    """Crop of [3, H, W] around a face box, with a margin."""
    x0, y0, x1, y1 = box
    across, down = _MARGIN * (x1 - x0), _MARGIN * (y1 - y0)
    left, top = max(0, int(x0 - across)), max(0, int(y0 - down))
    return image[:, top : max(top + 1, round(y1 + down)), left : max(left + 1, round(x1 + across))]
