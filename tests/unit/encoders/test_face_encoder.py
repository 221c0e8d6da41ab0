"""Face encoding: selection of the face, notices and outputs, on random images and sample photos."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from bya_core.encoders.face.alignment import similarity, warp
from bya_core.encoders.face.detection import Face
from bya_core.encoders.face.encoder import FaceModels, PhotoFaceEncoder, clip_input
from bya_core.encoders.face.matching import CharacterFinder, PhotoCharacterFinder
from bya_core.encoders.face.parsing import BiSeNet, FaceParser
from bya_core.encoders.face.recognition import ArcFace
from bya_core.encoders.face.retinaface import RetinaFace, RetinaFaceDetector
from bya_core.encoders.protocols import FaceEncoder
from bya_core.errors import InputError
from bya_core.io.media import read_image
from tests import torchvision_shim
from tests.parity.weight_rule import FIXTURES
from tests.unit.encoders.networks import POINTS, drawn, image, write_arcface

if not torchvision_shim.importable():
    pytest.skip("torchvision cannot be imported, and timm needs it", allow_module_level=True)
pytest.importorskip("timm")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = Path(os.environ.get("BYA_SAMPLES_DIR", ROOT.parent / "shared" / "samples"))


class FixedDetector:
    """Returns fixed faces for images of a width, or of any width (None)."""

    name, confident_score = "RetinaFace", 0.97

    def __init__(self, faces: dict[int | None, list[Face]]) -> None:
        self.faces, self.sizes = faces, []

    def detect(self, image: Tensor) -> list[Face]:
        self.sizes.append(tuple(image.shape[1:]))
        return self.faces.get(image.shape[2], self.faces.get(None, []))


class EllipseParser:
    """EllipseParser an ellipse."""

    def face(self, crop: Tensor) -> Tensor:
        y, x = torch.meshgrid(torch.linspace(-1, 1, 512), torch.linspace(-1, 1, 512), indexing="ij")
        return (x / 0.6) ** 2 + (y / 0.8) ** 2 < 1

    def to(self, device):
        return self


def face(points, score: float = 0.99) -> Face:
    xs, ys = zip(*points, strict=True)
    reach = (max(xs) - min(xs)) * 0.4
    return Face((min(xs) - reach, min(ys) - reach, max(xs) + reach, max(ys) + reach), score, tuple(points))


def moved(points, x: float, y: float, scale: float = 1.0):
    return tuple((px * scale + x, py * scale + y) for px, py in points)


SMALL = moved(POINTS["001/face_2"], 0, 0, 0.4)


@pytest.fixture(scope="module")
def make(tmp_path_factory) -> Callable[[object], PhotoFaceEncoder]:
    """Builds a `PhotoFaceEncoder` around a detector, with a small recognizer and a narrow EVA tower."""
    from bya_core.encoders.face.clip import EvaVision

    file = tmp_path_factory.mktemp("arcface") / "glintr100.onnx"
    write_arcface(file)
    torch.manual_seed(0)
    tower = EvaVision(embed_dim=64, num_heads=4).eval()
    recognizer = ArcFace(file)

    def build(detector, parser=None, select="largest") -> PhotoFaceEncoder:
        return PhotoFaceEncoder(FaceModels(detector, parser or EllipseParser(), recognizer, tower), select=select)

    return build


@pytest.fixture
def scene() -> Tensor:
    return image(500, 900)


def test_encode(make, scene):
    encoder = make(FixedDetector({None: [face(SMALL)]}))
    assert isinstance(encoder, FaceEncoder)
    features = encoder.encode(scene)
    assert (
        features.identity.shape == (1280,)
        and features.hidden.shape == (5, 577, 64)
        and features.portrait.shape == (3, 512, 512)
    )
    crop = (warp((scene * 255).round() / 255, similarity(SMALL)) * 255).round() / 255
    assert_close(features.identity[:512], encoder.models.recognizer.features(crop))
    assert abs(float(features.identity[512:].norm()) - 1) < 1e-5
    mask = EllipseParser().face(crop)
    assert bool((features.portrait[:, ~mask] == 1).all()) and torch.equal(features.portrait[:, mask], crop[:, mask])
    with torch.no_grad():
        pooled, hidden = encoder.models.vision(clip_input(crop, mask))
    assert_close(features.identity[512:], F.normalize(pooled[0], dim=0))
    assert torch.equal(features.hidden, hidden[0]) and features.notices == ()


def test_clip_input_matches_torchvision():
    from torchvision.transforms.functional import InterpolationMode, normalize, resize

    crop = image(512, 512, "crop")
    mask = EllipseParser().face(crop)
    gray = 0.299 * crop[0] + 0.587 * crop[1] + 0.114 * crop[2]
    masked = torch.where(mask, gray, torch.tensor(1.0)).repeat(3, 1, 1)[None]
    small = resize(masked, [336, 336], InterpolationMode.BICUBIC)
    expected = normalize(small, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    assert_close(clip_input(crop, mask), expected, atol=1e-5, rtol=1e-5)


def test_several_faces(make, scene):
    small, large = face(SMALL, 0.999), face(moved(POINTS["001/face_2"], 450, -50), 0.98)
    result = make(FixedDetector({None: [small, large]})).crop(scene)
    assert result.faces == (large, small)
    assert result.notices == ("2 faces detected: the largest one is used; crop the image to select another.",)
    released = make(FixedDetector({None: [small, large]}), select="most_confident").crop(scene)
    assert released.faces[0] == small and "most confident" in released.notices[0]
    page = result.preview()
    assert page.size == (round(900 * 512 / 500) + 512, 512)
    frame = np.asarray(page)[int((large.box[1] + 200) * 1.024), int(large.box[0] * 1.024) + 1]
    assert frame[1] > frame[0] and frame[1] > frame[2]  # the selected face has a green frame
    beside = np.asarray(page.crop((page.width - 512, 0, page.width, 512)))
    assert np.array_equal(beside, (result.portrait * 255).round().byte().permute(1, 2, 0).numpy())


def test_low_scores_give_a_notice(make, scene):
    detector = FixedDetector({None: [], 900: [face(SMALL, 0.45)]})
    result = make(detector).crop(scene)
    assert len(result.faces) == 1 and "RetinaFace score 0.45, photos reach 0.97" in result.notices[0]
    assert len(detector.sizes) == 2  # with the confident threshold first


def test_small_images_are_enlarged_and_padded(make):
    tight = image(203, 142)
    points = POINTS["004/face_2"]
    wide = FixedDetector({344: [face(moved(points, 101, 101))]})
    assert make(wide).crop(tight).faces[0].points == pytest.approx(np.array(points))
    assert wide.sizes == [(203, 142), (1024, 716), (405, 344)]
    enlarged = FixedDetector({716: [face(moved(points, 0, 0, 1024 / 203))]})
    result = make(enlarged).crop(tight)
    assert np.allclose(result.faces[0].points, points) and result.faces[0].area < 203 * 142
    assert not any("pixels wide" in notice for notice in result.notices)


def test_small_faces_and_empty_masks_give_notices(make, scene):
    class Nothing(EllipseParser):
        def face(self, crop):
            return torch.zeros(512, 512, dtype=torch.bool)

    result = make(FixedDetector({None: [face(moved(SMALL, 0, 0, 0.3))]}), Nothing()).crop(scene)
    assert "pixels wide" in result.notices[0] and "segmented as background" in result.notices[1]


def test_images_without_a_face_raise(make, scene):
    with pytest.raises(InputError, match="900x500 pixels unscaled, padded.*crop it closer"):
        make(FixedDetector({})).encode(scene)
    boxes_only = FixedDetector({None: [Face((1, 1, 50, 50), 0.99)]})
    with pytest.raises(InputError, match="no face detected"):
        make(boxes_only).encode(scene)
    with pytest.raises(InputError, match="RGB"):
        make(FixedDetector({})).encode(torch.zeros(1, 10, 10))


def test_large_images_are_downscaled(make):
    large = image(1500, 3000)
    detector = FixedDetector({None: [face(SMALL)]})
    assert make(detector).crop(large).image.shape == (3, 512, 1024) and detector.sizes == [(512, 1024)]


@pytest.mark.parametrize("name", POINTS)
def test_faces_are_upright_in_the_crop(make, name):
    """Positions of eyes and mouth, and colors around them, in crops of the sample photos."""
    file = SAMPLES / f"{name}.jpg"
    if not file.is_file():
        pytest.skip("no sample photos")
    photo = read_image(file)
    result = make(FixedDetector({None: [face(POINTS[name])]})).crop(photo)
    matrix = similarity(POINTS[name])
    left, right, nose, *mouth = np.c_[np.array(POINTS[name]), np.ones(5)] @ matrix.T
    assert abs(left[1] - right[1]) < 45 and right[0] - left[0] > 80
    assert left[1] < nose[1] < min(mouth[0][1], mouth[1][1]) and left[0] > 0 and right[0] < 512
    for point, place in zip(POINTS[name], np.c_[np.array(POINTS[name]), np.ones(5)] @ matrix.T, strict=True):
        x, y = (int(round(value)) for value in point)
        u, v = (int(round(value)) for value in place)
        if not (8 <= x < photo.shape[2] - 8 and 8 <= y < photo.shape[1] - 8 and 8 <= u < 504 and 8 <= v < 504):
            continue
        reach = max(1, round(4 / np.hypot(matrix[0, 0], matrix[0, 1])))
        there = photo[:, y - reach : y + reach + 1, x - reach : x + reach + 1].mean(dim=(1, 2))
        here = result.crop[:, v - 4 : v + 5, u - 4 : u + 5].mean(dim=(1, 2))
        assert (there - here).abs().max() < 0.06, (name, point)


def test_load_from_files(tmp_path, make):
    """Real architectures, except for a narrow vision tower."""
    retina, parsing = RetinaFace(), BiSeNet()
    torch.save(drawn(retina), tmp_path / "detection_Resnet50_Final.pth")
    torch.save(drawn(parsing), tmp_path / "parsing_bisenet.pth")
    write_arcface(tmp_path / "glintr100.onnx")
    torch.save({"norm.weight": torch.zeros(64)}, tmp_path / "EVA02_CLIP_L_336_psz14_s6B.pt")
    files = [tmp_path / name for name in ("detection_Resnet50_Final.pth", "parsing_bisenet.pth", "glintr100.onnx")]
    with pytest.raises(InputError, match="vision checkpoint that does not fit"):
        FaceModels.load(*files, tmp_path / "EVA02_CLIP_L_336_psz14_s6B.pt")
    with pytest.raises(InputError, match=r"EVA02_CLIP_L_336_psz14_s6B.pt .856 MB"):
        FaceModels.load(*files, tmp_path / "none.pt")
    whole = make(RetinaFaceDetector(files[0], min_score=0.55, confident_score=0.55), FaceParser(files[1]))
    small = image(120, 100)
    features = whole.to("cpu").encode(small)  # random weights detect many faces
    assert features.identity.shape == (1280,) and bool(torch.isfinite(features.identity).all())
    assert "faces detected" in features.notices[0]


ADA, BO = POINTS["001/face_2"], POINTS["004/face_1"]


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory) -> ArcFace:
    write_arcface(tmp_path_factory.mktemp("arcface") / "glintr100.onnx")
    return ArcFace(tmp_path_factory.getbasetemp() / "arcface0" / "glintr100.onnx")


def test_characters_are_located_in_the_first_frame(recognizer) -> None:
    """Two reference images side by side in one frame, in reverse order."""
    ada, bo = (image(540, 400, name) for name in ("ada", "bo"))
    wide = torch.cat([bo, ada], dim=2)
    detector = FixedDetector({800: [face(BO, 0.99), face(moved(ADA, 400, 0), 0.98)]})
    shown = iter([face(ADA), face(BO)])

    class Portraits(FixedDetector):
        def detect(self, image):
            return [next(shown)] if image.shape[2] == 400 else detector.detect(image)

    finder = PhotoCharacterFinder(PhotoFaceEncoder(FaceModels(Portraits({}), EllipseParser(), recognizer, None)))
    assert isinstance(finder, CharacterFinder)
    found = finder.find(wide, [ada, bo])
    assert found.faces.shape == (2, 4) and found.likeness.shape == (2, 2)
    own, other = found.likeness[[0, 1], [1, 0]], found.likeness[[0, 1], [0, 1]]
    assert own.min() > 0.8 and (own - other).min() > 0.3, found.likeness
    assert bool((found.bodies[:, 3] > found.faces[:, 3]).all())


def test_first_frame_without_faces(recognizer) -> None:
    ada = image(540, 400, "ada")
    finder = PhotoCharacterFinder(
        PhotoFaceEncoder(FaceModels(FixedDetector({400: [face(ADA)]}), EllipseParser(), recognizer, None))
    )
    found = finder.find(torch.zeros(3, 300, 500), [ada])
    assert found.faces.shape == (0, 4) and found.likeness.shape == (0, 1)


@pytest.mark.slow
def test_full_size_networks(tmp_path) -> None:
    photo = SAMPLES / "004" / "face_1.jpg"
    manifest = Path(os.environ.get("BYA_MANIFEST") or FIXTURES / "state_dict_manifest.json")
    if not photo.is_file() or not manifest.is_file():
        pytest.skip("no sample photos or no manifest of the released files")
    files = json.loads(manifest.read_text())["files"]
    entries = next(value for name, value in files.items() if name.startswith("EVA02_CLIP_L_336"))
    torch.manual_seed(0)
    shapes = {name: shape for name, (shape, _) in entries.items() if ".freqs_" not in name}
    tower = {name: torch.randn(shape).mul_(0.02).half() for name, shape in shapes.items()}
    torch.save(tower | {"logit_scale": torch.zeros(())}, tmp_path / "eva.pt")
    del tower
    torch.save(drawn(RetinaFace()), tmp_path / "detector.pth")
    torch.save(drawn(BiSeNet()), tmp_path / "parser.pth")
    write_arcface(tmp_path / "glintr100.onnx")
    names = ("detector.pth", "parser.pth", "glintr100.onnx", "eva.pt")
    parts = FaceModels.load(*(tmp_path / name for name in names))
    assert not any(weight.is_meta for weight in [*parts.vision.parameters(), *parts.vision.buffers()])

    def detect(image: torch.Tensor) -> list[Face]:
        return [Face((60.0, 60.0, 380.0, 480.0), 0.99, POINTS["004/face_1"])]

    parts.detector.detect = detect  # type: ignore[method-assign]
    features = PhotoFaceEncoder(parts).encode(read_image(photo))
    assert features.identity.shape == (1280,) and features.hidden.shape == (5, 577, 1024)
    assert features.portrait.shape == (3, 512, 512) and bool((features.portrait == 1).all(dim=0).any())
    assert bool(torch.isfinite(features.hidden).all()) and features.hidden.std() > 0
    assert abs(float(features.identity[512:].norm()) - 1) < 1e-4
