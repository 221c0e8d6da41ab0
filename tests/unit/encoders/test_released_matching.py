"""People found in a picture by the released face path."""

from __future__ import annotations

import pytest
import torch

from bya_core.encoders.face.encoder import FaceModels, PhotoFaceEncoder
from bya_core.encoders.face.matching import CharacterFinder, PhotoCharacterFinder
from bya_core.encoders.face.recognition import ArcFace
from tests.unit.encoders.networks import POINTS, picture, write_arcface
from tests.unit.encoders.test_face_encoder import Keeps, Told, face, moved

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ADA, BO = POINTS["001/face_2"], POINTS["004/face_1"]


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory) -> ArcFace:
    write_arcface(tmp_path_factory.mktemp("arcface") / "glintr100.onnx")
    return ArcFace(tmp_path_factory.getbasetemp() / "arcface0" / "glintr100.onnx")


def test_everybody_is_recognised_where_they_stand(recognizer) -> None:
    """Two reference pictures pasted into one wide picture, the other way round."""
    ada, bo = (torch.from_numpy(picture(540, 400, name)).permute(2, 0, 1).float() / 255 for name in ("ada", "bo"))
    wide = torch.cat([bo, ada], dim=2)
    detector = Told({800: [face(BO, 0.99), face(moved(ADA, 400, 0), 0.98)]})
    shown = iter([face(ADA), face(BO)])

    class Asked(Told):
        def detect(self, image):
            return [next(shown)] if image.shape[2] == 400 else detector.detect(image)

    finder = PhotoCharacterFinder(PhotoFaceEncoder(FaceModels(Asked({}), Keeps(), recognizer, None)))
    assert isinstance(finder, CharacterFinder)
    seen = finder.find(wide, [ada, bo])
    assert seen.faces.shape == (2, 4) and seen.likeness.shape == (2, 2)
    own, other = seen.likeness[[0, 1], [1, 0]], seen.likeness[[0, 1], [0, 1]]
    assert own.min() > 0.8 and (own - other).min() > 0.3, seen.likeness  # what is around a face differs
    assert bool((seen.bodies[:, 3] > seen.faces[:, 3]).all())


def test_nobody_in_the_picture_is_no_error(recognizer) -> None:
    ada = torch.from_numpy(picture(540, 400, "ada")).permute(2, 0, 1).float() / 255
    finder = PhotoCharacterFinder(PhotoFaceEncoder(FaceModels(Told({400: [face(ADA)]}), Keeps(), recognizer, None)))
    seen = finder.find(torch.zeros(3, 300, 500), [ada])
    assert seen.faces.shape == (0, 4) and seen.likeness.shape == (0, 1)
