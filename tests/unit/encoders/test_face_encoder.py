"""The whole face path: which face is taken, what is said, what comes out; on photos, paintings and drawings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
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
from tests.unit.encoders.networks import POINTS, drawn, picture, write_arcface

if not torchvision_shim.importable():
    pytest.skip("torchvision cannot be imported, and timm needs it", allow_module_level=True)
pytest.importorskip("timm")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[3]
SAMPLES = Path(os.environ.get("BYA_SAMPLES_DIR", ROOT.parent / "shared" / "samples"))


class Told:
    """A detector that is told what there is: in a picture of this width, or in any."""

    name, confident_score = "RetinaFace", 0.97

    def __init__(self, faces: dict[int | None, list[Face]]) -> None:
        self.faces, self.asked = faces, []

    def detect(self, image: Tensor) -> list[Face]:
        self.asked.append(tuple(image.shape[1:]))
        return self.faces.get(image.shape[2], self.faces.get(None, []))


class Keeps:
    """A parser that keeps an ellipse."""

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
    """`PhotoFaceEncoder` around a detector: ArcFace's stand-in, and a narrow EVA tower of the real depth."""
    from bya_core.encoders.face.clip import EvaVision

    file = tmp_path_factory.mktemp("arcface") / "glintr100.onnx"
    write_arcface(file)
    torch.manual_seed(0)
    tower = EvaVision(embed_dim=64, num_heads=4).eval()
    recognizer = ArcFace(file)

    def made(detector, parser=None, select="largest") -> PhotoFaceEncoder:
        return PhotoFaceEncoder(FaceModels(detector, parser or Keeps(), recognizer, tower), select=select)

    return made


@pytest.fixture
def scene() -> Tensor:
    return torch.from_numpy(picture(500, 900)).permute(2, 0, 1).float() / 255


def test_what_comes_out_is_what_the_released_model_wants(make, scene):
    encoder = make(Told({None: [face(SMALL)]}))
    assert isinstance(encoder, FaceEncoder)
    made = encoder.encode(scene)
    assert made.identity.shape == (1280,) and made.hidden.shape == (5, 577, 64) and made.portrait.shape == (3, 512, 512)
    crop = (warp((scene * 255).round() / 255, similarity(SMALL)) * 255).round() / 255
    assert_close(made.identity[:512], encoder.models.recognizer.features(crop))
    assert abs(float(made.identity[512:].norm()) - 1) < 1e-5
    mask = Keeps().face(crop)
    assert bool((made.portrait[:, ~mask] == 1).all()) and torch.equal(made.portrait[:, mask], crop[:, mask])
    with torch.no_grad():
        pooled, hidden = encoder.models.vision(clip_input(crop, mask))
    assert_close(made.identity[512:], F.normalize(pooled[0], dim=0))
    assert torch.equal(made.hidden, hidden[0]) and made.notices == ()


def test_the_vision_tower_sees_what_torchvision_would_give_it():
    from torchvision.transforms.functional import InterpolationMode, normalize, resize

    crop = torch.from_numpy(picture(512, 512, "crop")).permute(2, 0, 1).float() / 255
    mask = Keeps().face(crop)
    grey = 0.299 * crop[0] + 0.587 * crop[1] + 0.114 * crop[2]
    seen = torch.where(mask, grey, torch.tensor(1.0)).repeat(3, 1, 1)[None]
    small = resize(seen, [336, 336], InterpolationMode.BICUBIC)
    want = normalize(small, [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    assert_close(clip_input(crop, mask), want, atol=1e-5, rtol=1e-5)


def test_of_several_faces_the_largest_counts_and_it_is_told(make, scene):
    small, large = face(SMALL, 0.999), face(moved(POINTS["001/face_2"], 450, -50), 0.98)
    look = make(Told({None: [small, large]})).crop(scene)
    assert look.faces == (large, small)
    assert look.notices == ("2 faces detected: the largest one is used; crop the image to select another.",)
    released = make(Told({None: [small, large]}), select="most_confident").crop(scene)
    assert released.faces[0] == small and "most confident" in released.notices[0]
    page = look.preview()
    assert page.size == (round(900 * 512 / 500) + 512, 512)
    frame = np.asarray(page)[int((large.box[1] + 200) * 1.024), int(large.box[0] * 1.024) + 1]
    assert frame[1] > frame[0] and frame[1] > frame[2]  # the chosen one is framed in green
    beside = np.asarray(page.crop((page.width - 512, 0, page.width, 512)))
    assert np.array_equal(beside, (look.portrait * 255).round().byte().permute(1, 2, 0).numpy())


def test_drawn_faces_are_taken_with_a_word_of_doubt(make, scene):
    detector = Told({None: [], 900: [face(SMALL, 0.45)]})
    look = make(detector).crop(scene)
    assert len(look.faces) == 1 and "RetinaFace score 0.45, photos reach 0.97" in look.notices[0]
    assert len(detector.asked) == 2  # it looked for a sure one first


def test_faces_that_fill_small_pictures_are_found_with_room_around_them(make):
    tight = torch.from_numpy(picture(203, 142)).permute(2, 0, 1).float() / 255
    points = POINTS["004/face_2"]
    wide = Told({344: [face(moved(points, 101, 101))]})
    assert make(wide).crop(tight).faces[0].points == pytest.approx(np.array(points))
    assert wide.asked == [(203, 142), (1024, 716), (405, 344)]
    enlarged = Told({716: [face(moved(points, 0, 0, 1024 / 203))]})
    look = make(enlarged).crop(tight)
    assert np.allclose(look.faces[0].points, points) and look.faces[0].area < 203 * 142
    assert not any("pixels wide" in notice for notice in look.notices)


def test_small_faces_and_empty_masks_are_told(make, scene):
    class Nothing(Keeps):
        def face(self, crop):
            return torch.zeros(512, 512, dtype=torch.bool)

    look = make(Told({None: [face(moved(SMALL, 0, 0, 0.3))]}), Nothing()).crop(scene)
    assert "pixels wide" in look.notices[0] and "segmented as background" in look.notices[1]


def test_without_a_face_the_error_says_what_was_looked_at(make, scene):
    with pytest.raises(InputError, match="900x500 pixels unscaled, padded.*crop it closer"):
        make(Told({})).encode(scene)
    boxes_only = Told({None: [Face((1, 1, 50, 50), 0.99)]})
    with pytest.raises(InputError, match="no face detected"):
        make(boxes_only).encode(scene)
    with pytest.raises(InputError, match="RGB"):
        make(Told({})).encode(torch.zeros(1, 10, 10))


def test_large_pictures_are_shrunk_as_released(make):
    large = torch.from_numpy(picture(1500, 3000)).permute(2, 0, 1).float() / 255
    detector = Told({None: [face(SMALL)]})
    assert make(detector).crop(large).image.shape == (3, 512, 1024) and detector.asked == [(512, 1024)]


@pytest.mark.parametrize("name", POINTS)
def test_real_and_painted_faces_stand_upright_in_the_crop(make, name):
    """Where the eyes and the mouth of the sample pictures go, and that the crop shows the picture there."""
    file = SAMPLES / f"{name}.jpg"
    if not file.is_file():
        pytest.skip("the sample photos are not here")
    image = read_image(file)
    look = make(Told({None: [face(POINTS[name])]})).crop(image)
    matrix = similarity(POINTS[name])
    left, right, nose, *mouth = np.c_[np.array(POINTS[name]), np.ones(5)] @ matrix.T
    assert abs(left[1] - right[1]) < 45 and right[0] - left[0] > 80  # a tilted head is upright
    assert left[1] < nose[1] < min(mouth[0][1], mouth[1][1]) and left[0] > 0 and right[0] < 512
    for point, place in zip(POINTS[name], np.c_[np.array(POINTS[name]), np.ones(5)] @ matrix.T, strict=True):
        x, y = (int(round(value)) for value in point)
        u, v = (int(round(value)) for value in place)
        if not (8 <= x < image.shape[2] - 8 and 8 <= y < image.shape[1] - 8 and 8 <= u < 504 and 8 <= v < 504):
            continue
        reach = max(1, round(4 / np.hypot(matrix[0, 0], matrix[0, 1])))
        there = image[:, y - reach : y + reach + 1, x - reach : x + reach + 1].mean(dim=(1, 2))
        here = look.crop[:, v - 4 : v + 5, u - 4 : u + 5].mean(dim=(1, 2))
        assert (there - here).abs().max() < 0.06, (name, point)


def test_all_parts_load_from_their_files_and_work_together(tmp_path, make):
    """Real architectures from files, the tower too narrow for the published file being the only difference."""
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
    small = torch.from_numpy(picture(120, 100)).permute(2, 0, 1).float() / 255
    made = whole.to("cpu").encode(small)  # random weights see faces everywhere
    assert made.identity.shape == (1280,) and bool(torch.isfinite(made.identity).all())
    assert "faces detected" in made.notices[0]


def test_a_preview_can_be_saved(make, scene, tmp_path):
    make(Told({None: [face(SMALL)]})).crop(scene).preview().save(tmp_path / "look.png")
    assert Image.open(tmp_path / "look.png").width > 512


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


@pytest.mark.slow
def test_a_photo_through_networks_of_the_real_size(tmp_path) -> None:
    photo = SAMPLES / "004" / "face_1.jpg"
    manifest = Path(os.environ.get("BYA_MANIFEST") or FIXTURES / "state_dict_manifest.json")
    if not photo.is_file() or not manifest.is_file():
        pytest.skip("the sample photos or the manifest of the released files are not here")
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

    def found(image: torch.Tensor) -> list[Face]:  # random weights find nothing sensible
        return [Face((60.0, 60.0, 380.0, 480.0), 0.99, POINTS["004/face_1"])]

    parts.detector.detect = found  # type: ignore[method-assign]
    made = PhotoFaceEncoder(parts).encode(read_image(photo))
    assert made.identity.shape == (1280,) and made.hidden.shape == (5, 577, 1024)
    assert made.portrait.shape == (3, 512, 512) and bool((made.portrait == 1).all(dim=0).any())
    assert bool(torch.isfinite(made.hidden).all()) and made.hidden.std() > 0
    assert abs(float(made.identity[512:].norm()) - 1) < 1e-4
