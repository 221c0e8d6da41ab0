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
    ScrfdDetector,
    non_max_suppression,
)
from bya_core.encoders.face.mesh import FaceMesh
from bya_core.encoders.face.parsing import BACKGROUND_LABELS, LABELS, BiSeNet, FaceParser
from bya_core.encoders.face.recognition import ArcFace
from bya_core.encoders.face.retinaface import RetinaFace, RetinaFaceDetector
from bya_core.errors import InputError
from bya_core.io.media import read_image
from tests.parity.weight_rule import input_tensor
from tests.unit.encoders.networks import POINTS, SALT, drawn, image, write_arcface, write_scrfd


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


def test_bisenet_matches_facexlib(parser, reference):
    with torch.no_grad():
        scores = parser(input_tensor("parsing", (1, 3, 96, 64), SALT))[0]
    assert_close(scores[:, ::4, ::4], reference["bisenet"], atol=1e-4, rtol=1e-4)
    same = scores.argmax(dim=0) == reference["labels"]
    assert same.float().mean() > 0.999


def test_parser_normalizes_and_selects_labels(parser):
    crop = image(64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        expected = parser(((crop - mean[:, None, None]) / std[:, None, None])[None])[0].argmax(dim=0)
    face_parser = FaceParser(parser)
    assert torch.equal(face_parser.parse(crop), expected) and len(expected.unique()) > 1
    background = [0, 7, 8, 9, 14, 15, 16, 18]  # indices in the released code
    assert [LABELS.index(name) for name in BACKGROUND_LABELS] == background
    assert torch.equal(face_parser.face(crop), ~torch.isin(expected, torch.tensor(background)))


def test_retinaface_matches_facexlib(detector, reference):
    with torch.no_grad():
        boxes, scores, points = detector(input_tensor("detection", (1, 3, 72, 104), SALT) * 50)
    assert_close(boxes[0], reference["retina_boxes"], atol=1e-4, rtol=1e-4)
    assert_close(scores[0], reference["retina_scores"], atol=1e-4, rtol=1e-4)
    assert_close(points[0], reference["retina_points"], atol=1e-4, rtol=1e-4)


def test_retinaface_detections_match_facexlib(detector, reference):
    found = RetinaFaceDetector(detector, min_score=float(reference["retina_least"])).detect(image(150, 200))
    expected = reference["retina_found"]
    assert len(found) == len(expected) > 5
    for face, row in zip(found, expected, strict=True):
        assert face.points is not None
        ours = torch.tensor([*face.box, face.score, *(value for point in face.points for value in point)])
        assert_close(ours, row, atol=2e-2, rtol=1e-4)


def test_invalid_weight_files_raise(tmp_path, parser):
    torch.save({f"module.{key}": value for key, value in parser.state_dict().items()}, tmp_path / "parsing_bisenet.pth")
    crop = image(64, 64)
    assert torch.equal(FaceParser(tmp_path / "parsing_bisenet.pth").parse(crop), FaceParser(parser).parse(crop))
    few = dict(list(parser.state_dict().items())[5:])
    save_file(few, tmp_path / "few.safetensors")
    with pytest.raises(InputError, match="do not fit.*Missing key"):
        FaceParser(tmp_path / "few.safetensors")
    with pytest.raises(InputError, match="parsing_bisenet.pth of facexlib .53 MB"):
        FaceParser(tmp_path / "none.pth")
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="cannot be read"):
        FaceParser(tmp_path / "broken.pth")
    with pytest.raises(InputError, match="detection_Resnet50_Final.pth of facexlib .110 MB"):
        RetinaFaceDetector(tmp_path / "none.pth")


def test_pickled_code_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="cannot be read"):
        FaceParser(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("batched", [False, True])
def test_scrfd_matches_insightface(tmp_path, reference, batched):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    write_scrfd(tmp_path / "scrfd_10g_bnkps.onnx", batched)
    found = ScrfdDetector(tmp_path, min_score=0.5).detect(image(300, 420))
    expected = reference["scrfd_batched" if batched else "scrfd"]
    # two boxes that overlap by about 0.4 may be suppressed differently
    assert len(found) > 10 and abs(len(found) - len(expected)) <= 0.05 * len(expected)
    boxes = torch.tensor([face.box for face in found])
    matched = 0
    for row in expected:
        nearest = found[int((boxes - row[:4]).abs().amax(dim=1).argmin())]
        points = torch.tensor(nearest.points).flatten()
        near = (torch.tensor(nearest.box) - row[:4]).abs().max() < 1 and (points - row[5:]).abs().max() < 1
        matched += bool(near) and abs(nearest.score - float(row[4])) < 0.01
    assert matched >= 0.95 * len(expected)


def test_scrfd_of_a_folder(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    write_scrfd(tmp_path / "det_10g.onnx")
    detector = ScrfdDetector(tmp_path)
    assert isinstance(detector, FaceDetector) and detector.name == "SCRFD"
    scores = [face.score for face in detector.detect(image(200, 120))]
    assert scores == sorted(scores, reverse=True) and scores
    (tmp_path / "det_10g.onnx").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        ScrfdDetector(tmp_path)


def test_arcface_matches_insightface(tmp_path, reference):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    write_arcface(tmp_path / "glintr100.onnx")
    features = ArcFace(tmp_path / "glintr100.onnx").features(image(512, 512, "crop"))
    assert_close(features, reference["arcface"], atol=0.02, rtol=0)  # insightface resizes 8-bit images
    assert reference["arcface"].std() > 0.25 and abs(float(features.norm()) - 1) > 1  # not normalized
    with pytest.raises(InputError, match="glintr100.onnx of antelopev2 .261 MB"):
        ArcFace(tmp_path / "none.onnx")
    write_scrfd(tmp_path / "other.onnx")
    with pytest.raises(InputError, match="112x112 pixels"):
        ArcFace(tmp_path / "other.onnx")


@pytest.mark.parametrize("name", POINTS)
def test_alignment_matches_opencv(reference, name):
    matrix = similarity(POINTS[name])
    expected = reference[f"matrix {name}"].numpy()
    corners = np.array([[0, 0, 1], [400, 0, 1], [0, 480, 1], [400, 480, 1]]).T
    moved = np.abs(matrix @ corners - expected @ corners).max()
    assert moved < 1.0, moved  # OpenCV samples random pairs and iterates
    crop = (warp(image(480, 400), expected) * 255).round()[:, ::12, ::12].permute(1, 2, 0)
    difference = (crop - reference[f"crop {name}"].float()).abs()
    assert difference.mean() < 0.2 and difference.max() <= 3


def test_similarity_ignores_one_outlier():
    angle, scale = 0.4, 0.7
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = np.array(TEMPLATE) @ rotation.T + [30.0, 12.0]
    whole = np.vstack([similarity([tuple(point) for point in points]), [0, 0, 1]])
    assert_close(whole[:2, :2] @ rotation, np.eye(2), atol=1e-6, rtol=0)
    points[4] += [60.0, -40.0]
    robust = similarity([tuple(point) for point in points])
    assert_close(robust, whole[:2], atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="one place"):
        similarity([(5.0, 5.0)] * 5)


def test_warp_fills_with_gray():
    moved = warp(torch.ones(3, 20, 20), np.array([[1.0, 0, 100], [0, 1.0, 100]]))
    assert (moved[:, 0, 0] * 255).round().tolist() == list(BORDER) and float(moved[:, 110, 110].min()) == 1.0


def test_non_max_suppression():
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [30, 30, 40, 40], [0, 0, 10, 10]], float)
    assert non_max_suppression(boxes, np.array([0.5, 0.9, 0.7, 0.5]), overlap=0.4) == [1, 2]
    assert non_max_suppression(boxes, np.array([0.5, 0.9, 0.7, 0.5]), overlap=1.0) == [1, 2, 0, 3]
    assert non_max_suppression(np.zeros((0, 4)), np.zeros(0), overlap=0.4) == []


SAMPLES = Path(os.environ.get("BYA_SAMPLES_DIR", Path(__file__).resolve().parents[4] / "shared" / "samples"))
# center of the frontal face, relative to width and height
FRONTAL = {"001": (0.555, 0.415), "004": (0.675, 0.51), "014": (0.325, 0.28)}


@pytest.mark.parametrize("sample", FRONTAL)
def test_package_detector_finds_the_faces_of_photos(sample):
    file = SAMPLES / sample / "first_frame.jpg"
    if not file.is_file():
        pytest.skip(f"no sample photos in {SAMPLES}; set BYA_SAMPLES_DIR")
    image = read_image(file)
    x, y = FRONTAL[sample][0] * image.shape[2], FRONTAL[sample][1] * image.shape[1]
    faces = FaceMesh().detect(image)
    assert len(faces) == 2
    assert any(box[0] < x < box[2] and box[1] < y < box[3] for box in (face.box for face in faces))


@pytest.mark.parametrize("below", ["", "antelopev2", "models/antelopev2", "models/antelopev2/antelopev2"])
def test_scrfd_file_is_found_in_subfolders(tmp_path, below):
    folder = tmp_path / below
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("glintr100.onnx", "scrfd_10g_bnkps.onnx"):
        (folder / name).touch()
    assert detection_module.scrfd_file(tmp_path) == folder / "scrfd_10g_bnkps.onnx"


def test_scrfd_without_model_raises(tmp_path: Path) -> None:
    (tmp_path / "glintr100.onnx").touch()  # a recognition model
    with pytest.raises(InputError, match="no face detection model"):
        ScrfdDetector(tmp_path)
