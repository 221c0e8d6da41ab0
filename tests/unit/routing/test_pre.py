"""The pre router: faces of the first frame are assigned to characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from bya_core.config import RouterConfig
from bya_core.encoders.face.detection import Face
from bya_core.encoders.face.matching import CharacterFinder, DetectedCharacters, FaceFinder
from bya_core.encoders.protocols import FaceFeatures
from bya_core.errors import InputError
from bya_core.evaluation.mask_metrics import mean_iou, to_labels
from bya_core.pipelines.generate import prepare, sample
from bya_core.progress import ProgressTracker
from bya_core.routing.pre import LocatedCharacters, character_boxes, draw_regions, route_pre
from bya_core.scene.types import Character, Scene
from bya_core.weights.loader import load_bundle
from bya_core.weights.registry import MODELS
from tests.fakes import fake_bundle
from tests.unit.routing.puppet_scene import VALIDATION, picture, puppet_scene
from training.puppets import make_clip


class StubFinder:
    """Detects faces with this similarity [K, 2] to the references."""

    threshold = 0.5

    def __init__(self, likeness: list[list[float]]) -> None:
        self.likeness = torch.tensor(likeness).reshape(len(likeness), 2)

    def find(self, image: Tensor, portraits: Sequence[Tensor]) -> DetectedCharacters:
        left = torch.arange(len(self.likeness))[:, None] * 40.0
        face = torch.tensor([[10.0, 10.0, 26.0, 28.0]])
        body = torch.tensor([[4.0, 4.0, 36.0, 90.0]])
        across = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
        return DetectedCharacters(face + left * across, body + left * across, self.likeness)


def two_characters(first_frame: bool = True) -> Scene:
    return Scene(
        prompt="Ada and Bo",
        characters=[Character("Ada", torch.rand(3, 32, 32)), Character("Bo", torch.rand(3, 32, 32))],
        speeches=[None, None],
        height=64,
        width=96,
        num_frames=9,
        first_frame=torch.rand(3, 64, 96) if first_frame else None,
        routing=RouterConfig(mode="pre"),
    )


def route_with(likeness: list[list[float]], scene: Scene | None = None):
    bundle = replace(fake_bundle(), character_finder=StubFinder(likeness))
    return route_pre(prepare(scene or two_characters(), bundle), bundle, ProgressTracker())


def test_assignment_maximizes_total_similarity():
    routing = route_with([[0.9, 0.8], [0.85, 0.1]])  # Bo is similar to the first face only
    left, right = slice(0, 2), slice(3, 5)
    assert routing.masks[1, 0, :, left].sum() > 0 == routing.masks[1, 0, :, right].sum()
    assert routing.masks[0, 0, :, right].sum() > 0 == routing.masks[0, 0, :, left].sum()
    assert routing.origin == "pre" and routing.calls == 0 and routing.state is None and routing.notices == ()
    assert routing.control.strength.tolist() == [1.0, 1.0] and routing.masks.sum(0).max() <= 1.0 + 1e-6
    assert torch.equal(routing.masks, routing.masks[:, :1].expand_as(routing.masks))


def test_other_faces_have_no_mask():
    assert route_with([[0.0, 0.1], [0.9, 0.2], [0.1, 0.8]]).masks[..., :2].sum() == 0


def test_low_similarity_gives_a_notice():
    (notice,) = route_with([[0.9, 0.1], [0.1, 0.2]]).notices
    assert "Bo" in notice and "Ada" not in notice and "0.20" in notice


def test_missing_first_frame_raises():
    with pytest.raises(InputError, match="without a first frame"):
        route_with([[0.9, 0.1], [0.1, 0.9]], two_characters(first_frame=False))


@pytest.mark.parametrize(("likeness", "names"), [([[0.9, 0.1]], "Bo"), ([], "Ada and Bo")])
def test_missing_faces_raise(likeness, names):
    with pytest.raises(InputError) as raised:
        route_with(likeness)
    assert raised.value.problem.startswith(f"{names} not found in the first frame")


@pytest.mark.parametrize("likeness", [[[0.9, 0.8]], [[0.9, 0.8], [0.1, 0.2]]])
def test_two_characters_with_the_same_face_raise(likeness):
    with pytest.raises(InputError, match="Ada and Bo both match the same one of"):
        route_with(likeness)


def test_regions():
    found = LocatedCharacters(torch.tensor([[40.0, 20.0, 56.0, 38.0]]), torch.tensor([[28.0, 12.0, 68.0, 64.0]]))
    box, head = draw_regions(found, (64, 96), "box")[0], draw_regions(found, (64, 96), "head")[0]
    assert box.sum() == (68 - 28) * (64 - 12) and box[12:64, 28:68].all()
    assert head[29, 48] and head[60, 32] and head[60, 64]  # face and both shoulders
    assert not head[14, 30] and not head[14, 66]  # beside the hair


def test_overlapping_regions():
    faces = torch.tensor([[20.0, 20.0, 36.0, 38.0], [44.0, 30.0, 60.0, 48.0]])
    bodies = torch.tensor([[4.0, 10.0, 56.0, 64.0], [30.0, 20.0, 78.0, 64.0]])
    both = draw_regions(LocatedCharacters(faces, bodies), (64, 96), "head")
    assert both.sum(0).max() == 1
    assert both[1, 40, 46] == 1  # a face in front of a shoulder


class StubDetector:
    name = "test"

    def __init__(self, *boxes: tuple[float, float, float, float]) -> None:
        self.faces = [Face(box, 0.9) for box in boxes]

    def detect(self, image: Tensor) -> list[Face]:
        return self.faces


class MeanColor:
    """The identity is the mean color; black images have no face."""

    def encode(self, image: Tensor) -> FaceFeatures:
        if float(image.max()) == 0:
            raise InputError("a black image", "a face", "use another image")
        return FaceFeatures(image.mean((1, 2)), image[None, None, 0, 0], image)


def test_face_finder_compares_identities():
    frame = torch.zeros(3, 60, 120)
    frame[0, 10:40, 10:40], frame[1, 10:40, 80:110] = 1.0, 1.0
    finder = FaceFinder(StubDetector((15, 15, 35, 35), (85, 15, 105, 35), (50, 20, 54, 24)), MeanColor())
    assert isinstance(finder, CharacterFinder)
    green, red = torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)
    green[1], red[0] = 1.0, 1.0
    seen = finder.find(frame, [green, red])
    assert len(seen.faces) == 2  # the encoder found no face in the third box
    assert seen.likeness.argmax(1).tolist() == [1, 0]
    assert (seen.bodies[:, 3] > seen.faces[:, 3]).all() and (seen.bodies[:, 0] < seen.faces[:, 0]).all()


@pytest.fixture(scope="module")
def toy():
    if not MODELS["toy"].available:
        pytest.skip("no weights of the toy model")
    return load_bundle("toy")


@pytest.mark.parametrize(("count", "min_iou"), [(1, 0.75), (2, 0.7), (3, 0.7), (4, 0.7)])
def test_masks_of_puppets(toy, count, min_iou):
    ious = []
    for seed in range(VALIDATION + 100, VALIDATION + 103):
        clip = make_clip(seed, count, 64, 96, 9, motion="still")
        scene = puppet_scene(toy, clip, steps=1)
        grid = toy.grid(9, 64, 96)
        truth = grid.pixels_to_tokens(torch.from_numpy(clip.masks)).numpy() >= 0.5
        masks = route_pre(prepare(scene, toy), toy, ProgressTracker()).masks
        ious.append(mean_iou(to_labels(masks.numpy()), truth))
    assert np.mean(ious) >= min_iou


def test_boxes_of_puppets(toy):
    clip = make_clip(VALIDATION + 2, 2, 64, 96, 9, motion="still")
    scene = puppet_scene(toy, clip, steps=1)
    boxes = character_boxes(scene.first_frame, scene, toy)
    for (x0, y0, x1, y1), mask in zip(boxes.round().int().tolist(), clip.masks[:, 0], strict=True):
        assert mask[y0:y1, x0:x1].sum() >= 0.9 * mask.sum() and mask[y0:y1, x0:x1].mean() >= 0.5
    flipped = replace(scene, characters=scene.characters[::-1], speeches=scene.speeches[::-1])
    assert torch.equal(boxes.flip(0), character_boxes(scene.first_frame, flipped, toy))
    stranger = Character("Cyd", picture(make_clip(VALIDATION + 500_001, 1, draw_video=False).portraits[0]))
    with pytest.raises(InputError, match="Cyd"):
        character_boxes(scene.first_frame, replace(scene, characters=[scene.characters[0], stranger]), toy)


def test_sampling_with_pre_masks(toy):
    scene = puppet_scene(toy, make_clip(VALIDATION + 3, 2, 64, 96, 9, motion="still"), steps=2)
    prepared = prepare(scene, toy)
    routing = route_pre(prepared, toy, ProgressTracker())
    video = sample(prepared, routing, toy)
    assert video.frames.shape == (9, 64, 96, 3)
    assert torch.allclose(video.masks, routing.masks, atol=1e-5)
