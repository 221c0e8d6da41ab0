"""Who is where in one picture: characters found by what they look like.

`CharacterFinder` is what a model bundle brings (`ModelBundle.faces`) or leaves to `FaceFinder`, which finds real people
with a face detector and tells them apart with the bundle's own face encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from bya_core.encoders.face.detection import FaceDetector
from bya_core.encoders.protocols import FaceEncoder
from bya_core.errors import InputError

_MARGIN = 0.3  # share of a face box added on each side before its identity is looked at
_MOST = 16  # faces looked at in one picture, the surest first


@dataclass(frozen=True)
class DetectedCharacters:
    """People seen in a picture. Boxes are x0, y0, x1, y1 in pixels.

    Args:
        faces: [K, 4], forehead to chin, ear to ear.
        bodies: [K, 4], all that is seen of the person, head included; may reach beyond the picture.
        likeness: [K, N], how much each looks like each character, -1..1.
    """

    faces: Tensor
    bodies: Tensor
    likeness: Tensor


@runtime_checkable
class CharacterFinder(Protocol):
    """Finds characters in a picture.

    Attributes:
        sure: likeness from which a match needs no word of doubt.
    """

    sure: float

    def find(self, image: Tensor, portraits: Sequence[Tensor]) -> DetectedCharacters:
        """Picture [3, H, W] and N reference pictures [3, h, w], all in 0..1 -> everybody seen.

        Raises:
            InputError: a reference picture without a face.
        """
        ...


class FaceFinder:
    """Real people: faces by a detector, likeness by cosine of the face encoder's identities.

    Args:
        detector: finds faces.
        encoder: of the model; its identity vectors are compared.
        sure: as in the Protocol. ArcFace takes two photos for one person from about 0.3.
    """

    def __init__(self, detector: FaceDetector, encoder: FaceEncoder, sure: float = 0.3) -> None:
        self.detector, self.encoder, self.sure = detector, encoder, sure

    def find(self, image: Tensor, portraits: Sequence[Tensor]) -> DetectedCharacters:
        known = torch.stack([self._identity(portrait) for portrait in portraits])
        boxes, likeness = [], []
        for face in self.detector.detect(image)[:_MOST]:
            try:
                identity = self._identity(_cut(image, face.box))
            except InputError:  # on a second look there is no face
                continue
            boxes.append(torch.tensor(face.box))
            likeness.append(known @ identity)
        if not boxes:
            return DetectedCharacters(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, len(portraits)))
        faces = torch.stack(boxes)
        return DetectedCharacters(faces, people(faces), torch.stack(likeness))

    def _identity(self, image: Tensor) -> Tensor:
        return F.normalize(self.encoder.encode(image).identity.float().cpu().flatten(), dim=0)


def people(faces: Tensor) -> Tensor:
    """Head, shoulders and chest around real people's faces: [K, 4] -> [K, 4].

    A face is some 15 cm wide, shoulders three times that; hair rises half a face above the forehead. The chest is taken
    to be visible for three faces below the chin, which the picture usually cuts.
    """
    x0, y0, x1, y1 = faces.unbind(-1)
    middle, width, height = (x0 + x1) / 2, x1 - x0, y1 - y0
    return torch.stack([middle - 1.5 * width, y0 - 0.5 * height, middle + 1.5 * width, y1 + 3.0 * height], dim=-1)


def _cut(image: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    """The face with its surroundings: [3, H, W] -> [3, h, w]."""
    x0, y0, x1, y1 = box
    across, down = _MARGIN * (x1 - x0), _MARGIN * (y1 - y0)
    left, top = max(0, int(x0 - across)), max(0, int(y0 - down))
    return image[:, top : max(top + 1, round(y1 + down)), left : max(left + 1, round(x1 + across))]
