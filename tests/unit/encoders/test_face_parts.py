"""Face detection, parsing, recognition and alignment against the libraries of the released code.

reference.safetensors holds the outputs of these libraries for the same weights and images (written by `record.py`).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from bya_core.encoders.face import detection as detection_module
from bya_core.encoders.face.alignment import BORDER, TEMPLATE, similarity, warp
from bya_core.encoders.face.detection import (
    FaceDetector,
    LbpDetector,
    OpenCvDetector,
    ScrfdDetector,
    find_detector,
    non_max_suppression,
)
from bya_core.encoders.face.parsing import BACKGROUND_LABELS, LABELS, BiSeNet, FaceParser
from bya_core.encoders.face.recognition import ArcFace
from bya_core.encoders.face.retinaface import RetinaFace, RetinaFaceDetector
from bya_core.errors import InputError
from bya_core.io.media import read_image
from tests.parity.weight_rule import input_tensor
from tests.unit.encoders.networks import POINTS, SALT, drawn, picture, write_arcface, write_scrfd


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    return load_file(Path(__file__).with_name("reference.safetensors"))


@pytest.fixture(scope="module")
def parser() -> BiSeNet:
    network = BiSeNet()
    network.load_state_dict(drawn(network))
    return network.eval()


@pytest.fixture(scope="module")
def detector() -> RetinaFace:
    network = RetinaFace()
    network.load_state_dict(drawn(network))
    return network.eval()


def image(height: int, width: int, name: str = "picture") -> Tensor:
    return torch.from_numpy(picture(height, width, name)).permute(2, 0, 1).float() / 255


def test_bisenet_is_facexlibs(parser, reference):
    given = input_tensor("parsing", (1, 3, 96, 64), SALT)
    with torch.no_grad():
        scores = parser(given)[0]
    assert_close(scores[:, ::4, ::4], reference["bisenet"], atol=1e-4, rtol=1e-4)
    same = scores.argmax(dim=0) == reference["labels"]
    assert same.float().mean() > 0.999  # a tie may fall either way


def test_the_parser_sees_the_colours_bisenet_was_trained_on(parser):
    crop = image(64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        want = parser(((crop - mean[:, None, None]) / std[:, None, None])[None])[0].argmax(dim=0)
    made = FaceParser(parser)
    assert torch.equal(made.parse(crop), want) and len(want.unique()) > 1
    away = [0, 7, 8, 9, 14, 15, 16, 18]  # as released
    assert [LABELS.index(name) for name in BACKGROUND_LABELS] == away
    assert torch.equal(made.face(crop), ~torch.isin(want, torch.tensor(away)))


def test_retinaface_is_facexlibs(detector, reference):
    with torch.no_grad():
        boxes, scores, points = detector(input_tensor("detection", (1, 3, 72, 104), SALT) * 50)
    assert_close(boxes[0], reference["retina_boxes"], atol=1e-4, rtol=1e-4)
    assert_close(scores[0], reference["retina_scores"], atol=1e-4, rtol=1e-4)
    assert_close(points[0], reference["retina_points"], atol=1e-4, rtol=1e-4)


def test_faces_are_found_where_facexlib_finds_them(detector, reference):
    found = RetinaFaceDetector(detector, min_score=float(reference["retina_least"])).detect(image(150, 200))
    theirs = reference["retina_found"]
    assert len(found) == len(theirs) > 5
    for face, row in zip(found, theirs, strict=True):
        assert face.points is not None
        ours = torch.tensor([*face.box, face.score, *(value for point in face.points for value in point)])
        assert_close(ours, row, atol=2e-2, rtol=1e-4)


def test_weights_come_from_a_file_strictly(tmp_path, parser):
    torch.save({f"module.{key}": value for key, value in parser.state_dict().items()}, tmp_path / "parsing_bisenet.pth")
    crop = image(64, 64)
    assert torch.equal(FaceParser(tmp_path / "parsing_bisenet.pth").parse(crop), FaceParser(parser).parse(crop))
    few = dict(list(parser.state_dict().items())[5:])
    save_file(few, tmp_path / "few.safetensors")
    with pytest.raises(InputError, match="do not fit.*Missing key"):
        FaceParser(tmp_path / "few.safetensors")
    with pytest.raises(InputError, match="parsing_bisenet.pth of facexlib .53 MB"):
        FaceParser(tmp_path / "none.pth")
    (tmp_path / "broken.pth").write_bytes(b"not a file of weights")
    with pytest.raises(InputError, match="cannot be read"):
        FaceParser(tmp_path / "broken.pth")
    with pytest.raises(InputError, match="detection_Resnet50_Final.pth of facexlib .110 MB"):
        RetinaFaceDetector(tmp_path / "none.pth")


def test_code_in_a_weights_file_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="cannot be read"):
        FaceParser(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("batched", [False, True])
def test_scrfd_finds_what_insightface_finds(tmp_path, reference, batched):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    write_scrfd(tmp_path / "scrfd_10g_bnkps.onnx", batched)
    found = ScrfdDetector(tmp_path, min_score=0.5).detect(image(300, 420))
    theirs = reference["scrfd_batched" if batched else "scrfd"]
    # where two boxes overlap by very nearly 0.4 one of the two may stay here and not there
    assert len(found) > 10 and abs(len(found) - len(theirs)) <= 0.05 * len(theirs)
    centres = torch.tensor([face.box for face in found])
    matched = 0
    for row in theirs:
        nearest = found[int((centres - row[:4]).abs().amax(dim=1).argmin())]
        points = torch.tensor(nearest.points).flatten()
        near = (torch.tensor(nearest.box) - row[:4]).abs().max() < 1 and (points - row[5:]).abs().max() < 1
        matched += bool(near) and abs(nearest.score - float(row[4])) < 0.01
    assert matched >= 0.95 * len(theirs)


def test_scrfd_is_the_detector_where_its_model_is_given(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    write_scrfd(tmp_path / "det_10g.onnx")
    detector = find_detector(tmp_path)
    assert isinstance(detector, FaceDetector) and detector.name == "SCRFD"
    scores = [face.score for face in detector.detect(image(200, 120))]
    assert scores == sorted(scores, reverse=True) and scores
    (tmp_path / "det_10g.onnx").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        find_detector(tmp_path)


def test_arcface_gives_what_insightface_gives(tmp_path, reference):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    write_arcface(tmp_path / "glintr100.onnx")
    made = ArcFace(tmp_path / "glintr100.onnx").features(image(512, 512, "crop"))
    assert_close(made, reference["arcface"], atol=0.02, rtol=0)  # theirs shrinks in steps of 1/255 by other rounding
    assert reference["arcface"].std() > 0.25 and abs(float(made.norm()) - 1) > 1  # not normalised
    with pytest.raises(InputError, match="glintr100.onnx of antelopev2 .261 MB"):
        ArcFace(tmp_path / "none.onnx")
    write_scrfd(tmp_path / "other.onnx")
    with pytest.raises(InputError, match="112x112 pixels"):
        ArcFace(tmp_path / "other.onnx")


@pytest.mark.parametrize("name", POINTS)
def test_faces_are_turned_as_opencv_turns_them(reference, name):
    matrix = similarity(POINTS[name])
    theirs = reference[f"matrix {name}"].numpy()
    corners = np.array([[0, 0, 1], [400, 0, 1], [0, 480, 1], [400, 480, 1]]).T
    moved = np.abs(matrix @ corners - theirs @ corners).max()
    assert moved < 1.0, moved  # theirs tries random pairs and then iterates
    crop = (warp(image(480, 400), theirs) * 255).round()[:, ::12, ::12].permute(1, 2, 0)
    difference = (crop - reference[f"crop {name}"].float()).abs()
    assert difference.mean() < 0.2 and difference.max() <= 3


def test_turning_is_undone_and_one_bad_point_does_not_matter():
    angle, scale = 0.4, 0.7
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    given = np.array(TEMPLATE) @ turn.T + [30.0, 12.0]
    whole = np.vstack([similarity([tuple(point) for point in given]), [0, 0, 1]])
    assert_close(whole[:2, :2] @ turn, np.eye(2), atol=1e-6, rtol=0)
    given[4] += [60.0, -40.0]  # a hand before a corner of the mouth
    spoilt = similarity([tuple(point) for point in given])
    assert_close(spoilt, whole[:2], atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="one place"):
        similarity([(5.0, 5.0)] * 5)


def test_beyond_the_picture_there_is_grey():
    moved = warp(torch.ones(3, 20, 20), np.array([[1.0, 0, 100], [0, 1.0, 100]]))
    assert (moved[:, 0, 0] * 255).round().tolist() == list(BORDER) and float(moved[:, 110, 110].min()) == 1.0


def test_of_overlapping_boxes_the_surest_stays():
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [30, 30, 40, 40], [0, 0, 10, 10]], float)
    assert non_max_suppression(boxes, np.array([0.5, 0.9, 0.7, 0.5]), overlap=0.4) == [1, 2]
    assert non_max_suppression(boxes, np.array([0.5, 0.9, 0.7, 0.5]), overlap=1.0) == [1, 2, 0, 3]
    assert non_max_suppression(np.zeros((0, 4)), np.zeros(0), overlap=0.4) == []


SAMPLES = Path(os.environ.get("BYA_SAMPLES_DIR", Path(__file__).resolve().parents[4] / "shared" / "samples"))
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
    assert detection_module.scrfd_file(tmp_path) == folder / "scrfd_10g_bnkps.onnx"


def test_a_folder_without_models_is_an_error_and_nothing_is_downloaded(tmp_path):
    (tmp_path / "glintr100.onnx").touch()  # recognition alone detects nothing
    with pytest.raises(InputError, match="no face detection model"):
        ScrfdDetector(tmp_path)
    assert [file.name for file in tmp_path.rglob("*")] == ["glintr100.onnx"]


def test_without_any_detector_the_error_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(detection_module, "INSIGHTFACE_HOME", tmp_path)
    monkeypatch.setattr(OpenCvDetector, "available", staticmethod(lambda: False))
    monkeypatch.setattr(LbpDetector, "available", staticmethod(lambda: False))
    with pytest.raises(InputError, match="scikit-image"):
        find_detector()


def test_a_cascade_stands_in_where_scrfd_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(detection_module, "INSIGHTFACE_HOME", tmp_path)
    monkeypatch.setattr(OpenCvDetector, "available", staticmethod(lambda: True))
    monkeypatch.setattr(OpenCvDetector, "__init__", lambda self: None)
    assert find_detector().name == "OpenCV Haar cascades"
