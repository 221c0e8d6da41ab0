"""Detectors of real faces: what each finds in photos, which one is taken, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bya_core.encoders.face import detection as detector
from bya_core.encoders.face.detection import FaceDetector, LbpDetector, OpenCvDetector, ScrfdDetector, find_detector
from bya_core.errors import InputError
from bya_core.io.media import read_image

SAMPLES = Path(__file__).resolve().parents[4] / "shared" / "samples"
# the middle of the face that looks into the camera, in shares of width and height
FRONTAL = {"001": (0.555, 0.415), "004": (0.675, 0.51), "014": (0.325, 0.28)}
DETECTORS = {"opencv": OpenCvDetector, "skimage": LbpDetector}


@pytest.fixture(params=DETECTORS)
def embedded(request):
    kind = DETECTORS[request.param]
    if not kind.available():
        pytest.skip(f"{request.param} has no cascade here")
    return kind()


@pytest.mark.parametrize("sample", FRONTAL)
def test_a_face_that_looks_into_the_camera_is_found(embedded, sample):
    file = SAMPLES / sample / "first_frame.jpg"
    if not file.is_file():
        pytest.skip("the sample photos are not here")
    image = read_image(file)
    x, y = FRONTAL[sample][0] * image.shape[2], FRONTAL[sample][1] * image.shape[1]
    faces = embedded.detect(image)
    assert any(box[0] < x < box[2] and box[1] < y < box[3] for box in (face.box for face in faces))
    assert [face.score for face in faces] == sorted((face.score for face in faces), reverse=True)
    assert all(0 <= face.score <= 1 for face in faces)


def test_a_wall_has_no_face(embedded):
    assert isinstance(embedded, FaceDetector)
    assert embedded.detect(torch.full((3, 120, 160), 0.5)) == []
    assert embedded.detect(torch.full((3, 16, 16), 0.5)) == []


@pytest.mark.parametrize("below", ["", "antelopev2", "models/antelopev2", "models/antelopev2/antelopev2"])
def test_insightface_models_are_found_also_where_the_archive_unpacks_too_deep(tmp_path, below):
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("glintr100.onnx", "scrfd_10g_bnkps.onnx"):
        (folder / name).touch()
    assert detector.scrfd_file(tmp_path) == folder / "scrfd_10g_bnkps.onnx"


def test_a_folder_without_models_is_an_error_and_nothing_is_downloaded(tmp_path):
    (tmp_path / "glintr100.onnx").touch()  # recognition alone detects nothing
    with pytest.raises(InputError, match="no face detection model"):
        ScrfdDetector(tmp_path)
    assert [file.name for file in tmp_path.rglob("*")] == ["glintr100.onnx"]


def test_without_any_detector_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(detector, "INSIGHTFACE_HOME", tmp_path)
    monkeypatch.setattr(OpenCvDetector, "available", staticmethod(lambda: False))
    monkeypatch.setattr(LbpDetector, "available", staticmethod(lambda: False))
    with pytest.raises(InputError, match="scikit-image"):
        find_detector()


def test_a_cascade_stands_in_where_scrfd_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(detector, "INSIGHTFACE_HOME", tmp_path)
    monkeypatch.setattr(OpenCvDetector, "available", staticmethod(lambda: True))
    monkeypatch.setattr(OpenCvDetector, "__init__", lambda self: None)
    assert find_detector().name == "OpenCV Haar cascades"
