"""Face detector and mesh: equal to the reference runtime; faces of all sizes; nothing where there is no face."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bya_core.encoders.face import blazeface
from bya_core.encoders.face.crops import Squares
from bya_core.encoders.face.detection import FaceDetector
from bya_core.encoders.face.mesh import FaceMesh, squares
from bya_core.errors import InputError
from tests.unit.encoders.face_scenes import FACE, RECORDED, person, put, scene


@pytest.fixture(scope="module")
def mesh() -> FaceMesh:
    return FaceMesh()


def both() -> torch.Tensor:
    """The photograph and its mirror image, [2, 3, 192, 192] in 0..255."""
    photo = RECORDED["photo"].permute(2, 0, 1)
    return torch.stack([photo, photo.flip(2)]).float()


def test_detector_matches_the_reference(mesh: FaceMesh) -> None:
    images = both()[:, :, 32:160, 32:160] / 127.5 - 1.0
    with torch.no_grad():
        logits, offsets = mesh.detector(images)
    expected_logits, expected = RECORDED["detector.896"], RECORDED["detector.14336"]
    assert (logits.sigmoid() - expected_logits.sigmoid()).abs().max() < 1e-3
    assert (offsets - expected).abs().max() < 1e-3 * blazeface.SIZE
    assert float(logits.sigmoid().max()) > 0.8


def test_mesh_matches_the_reference(mesh: FaceMesh) -> None:
    with torch.no_grad():
        points, presence = mesh.mesh(both() / 255.0)
    assert (points.flatten(1) - RECORDED["mesh.1404"]).abs().max() < 1e-3 * 192
    assert (presence.sigmoid() - RECORDED["mesh.1"].sigmoid()).abs().max() < 1e-3


@pytest.mark.parametrize("size", [50, 100, 400, 900])
def test_faces_from_24_pixels_up(mesh: FaceMesh, size: int) -> None:
    frame = scene(1, max(320, size), max(480, size + 160))[0]
    put(frame, person(size), 90, 0)
    faces = mesh.detect(torch.from_numpy(frame).permute(2, 0, 1) / 255)
    assert len(faces) == 1 and faces[0].score > 0.7
    scale = size / 192
    expected = np.array(FACE) * scale + [90, 0, 90, 0]
    assert np.abs(np.array(faces[0].box) - expected).max() < 12 * scale
    left, right, nose, *mouth = faces[0].points
    assert left[0] < nose[0] < right[0] and nose[1] > left[1] and all(y > nose[1] for _, y in mouth)


def test_several_faces_are_sorted_by_score(mesh: FaceMesh) -> None:
    frame = scene(1, 400, 640)[0]
    for k in range(6):
        put(frame, person(190, other=k % 2 == 1), 10 + 210 * (k % 3), 200 * (k // 3))
    faces = mesh.detect(torch.from_numpy(frame).permute(2, 0, 1) / 255)
    assert len(faces) == 6 and [face.score for face in faces] == sorted((face.score for face in faces), reverse=True)


@pytest.mark.parametrize("size", [(16, 16), (120, 160), (720, 1280)])
def test_no_face_in_empty_and_noisy_images(mesh: FaceMesh, size: tuple[int, int]) -> None:
    assert isinstance(mesh, FaceDetector)
    generator = torch.Generator().manual_seed(0)
    assert mesh.detect(torch.full((3, *size), 0.5)) == []
    assert mesh.detect(torch.rand(3, *size, generator=generator)) == []
    assert mesh.detect(torch.from_numpy(scene(1, *size)[0]).permute(2, 0, 1) / 255) == []


def test_image_of_wrong_shape(mesh: FaceMesh) -> None:
    with pytest.raises(InputError, match=r"\(1, 20, 20\)"):
        mesh.detect(torch.zeros(1, 20, 20))


def test_meshes_follow_rotation_and_do_not_depend_on_the_batch(mesh: FaceMesh) -> None:
    frames = np.stack([person(192), np.ascontiguousarray(np.rot90(person(192)))])  # turned to the left
    upright = squares(np.zeros(1, int), mesh.detections(frames[:1])[0])
    turned = Squares(
        np.ones(1, int),
        np.array([[upright.center[0, 1], 192 - upright.center[0, 0]]]),
        upright.side,
        upright.angle - np.pi / 2,
    )
    one, other = mesh.meshes(frames, upright), mesh.meshes(frames, turned)
    back = np.stack([192 - other.points[0, :, 1], other.points[0, :, 0]], axis=-1)
    assert np.abs(back - one.points[0, :, :2]).max() < 1.0
    many = mesh.meshes(frames, upright[np.zeros(20, int)])
    assert np.abs(many.points - one.points).max() < 0.05 and np.abs(many.presence - one.presence).max() < 1e-3


def test_no_regions(mesh: FaceMesh) -> None:
    frames = scene(1)
    empty = squares(np.zeros(0, int), mesh.detections(frames)[0])
    assert mesh.meshes(frames, empty).points.shape == (0, 468, 3)
