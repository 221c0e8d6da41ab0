"""Real people found in a picture by the parts of the released face path: its detector and its face recognition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bya_core.encoders.face.alignment import similarity, warp
from bya_core.encoders.face.detection import Face
from bya_core.encoders.face.encoder import PhotoFaceEncoder
from bya_core.encoders.face.matching import DetectedCharacters, people
from bya_core.errors import InputError

_MOST = 16  # faces looked at in one picture, the surest first


class PhotoCharacterFinder:
    """`CharacterFinder` of the released weights: likeness is the cosine of ArcFace features.

    Args:
        face: its networks are used.
        sure: as in the Protocol. ArcFace takes two photos for one person from about 0.3.
    """

    def __init__(self, face: PhotoFaceEncoder, sure: float = 0.3) -> None:
        self.face, self.sure = face, sure

    @torch.no_grad()
    def find(self, image: Tensor, portraits: Sequence[Tensor]) -> DetectedCharacters:
        """As in the Protocol; drawn faces of which the detector is not sure count where there are no others."""
        known = torch.stack([self._who(self.face.look(portrait).crop) for portrait in portraits])
        try:
            faces, _ = self.face.found(image)
        except InputError:
            return DetectedCharacters(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, len(portraits)))
        faces = sorted(faces, key=lambda face: -face.score)[:_MOST]
        seen = torch.stack([self._who(self._crop(image, face)) for face in faces])
        boxes = torch.tensor([face.box for face in faces])
        return DetectedCharacters(boxes, people(boxes), seen @ known.T)

    def _who(self, crop: Tensor) -> Tensor:
        return F.normalize(self.face.parts.recognizer.features(crop), dim=0)

    def _crop(self, image: Tensor, face: Face) -> Tensor:
        assert face.points is not None
        return warp(image, similarity(face.points))
