"""Face tracks of made-up videos: motion, crossing, hiding, cuts, small faces."""

from __future__ import annotations

import numpy as np
import pytest

from bya_core.encoders.face.mesh import FaceMesh
from bya_core.encoders.face.tracking import FaceTrack, find_cuts, runs, track_faces
from tests.unit.encoders.face_scenes import person, put, scene


@pytest.fixture(scope="module")
def mesh() -> FaceMesh:
    return FaceMesh()


def centers(track: FaceTrack) -> np.ndarray:
    return (track.boxes[:, 0] + track.boxes[:, 2]) / 2


def test_moving_face_is_followed_without_lag(mesh: FaceMesh) -> None:
    frames, image = scene(22), person(160)
    x = np.round(10 + 60 * (1 - np.cos(np.arange(22) / 7))).astype(int)
    for frame, left in zip(frames, x, strict=True):
        put(frame, image, int(left), 40)
    tracks = track_faces(frames, mesh)
    assert len(tracks) == 1 and tracks[0].visible.all() and tracks[0].points.shape == (22, 468, 3)
    offset = centers(tracks[0]) - x
    assert np.abs(offset - np.median(offset)).max() < 2.5
    assert (tracks[0].presence > 0.5).all() and (tracks[0].scores > 0.5).all()


def test_two_people_pass_each_other(mesh: FaceMesh) -> None:
    frames, front, behind = scene(45), person(120), person(120, other=True)
    for f, frame in enumerate(frames):
        put(frame, behind, 180 - 4 * f, 60)
        put(frame, front, 4 * f, 40)
    tracks = track_faces(frames, mesh)
    assert len(tracks) == 2
    rising = [track for track in tracks if centers(track)[-1] > centers(track)[0]]
    assert len(rising) == 1 and rising[0].visible.mean() > 0.95
    other = next(track for track in tracks if track is not rising[0])
    assert centers(other)[0] > 200 and centers(other)[-1] < 100  # found again behind the other face
    hidden = ~other.visible
    assert 0 < hidden.sum() < 30 and np.isnan(other.boxes[hidden]).all() and np.isnan(other.points[hidden]).all()


def test_hidden_face_is_found_again(mesh: FaceMesh) -> None:
    frames, image = scene(40), person(160)
    for f, frame in enumerate(frames):
        if not 12 <= f < 28:
            put(frame, image, 80, 40)
    tracks = track_faces(frames, mesh)
    assert len(tracks) == 1 and runs(tracks[0].visible) == [(0, 12), (28, 40)]


def test_small_faces_are_found_and_larger_crowds_limited(mesh: FaceMesh) -> None:
    frames = scene(5, 240, 420)
    for frame in frames:
        for k in range(8):
            put(frame, person(70, other=k % 2 == 1), 10 + 100 * (k % 4), 20 + 110 * (k // 4))
    tracks = track_faces(frames, mesh)
    assert len(tracks) == 8 and all(track.visible.all() for track in tracks)
    assert [round(float(centers(track)[0]) / 100 - 0.45) for track in tracks] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(track_faces(frames, mesh, max_faces=3)) == 3


def test_cuts_separate_tracks(mesh: FaceMesh) -> None:
    frames = scene(20)
    frames[11:] = 255 - frames[11:]
    for f, frame in enumerate(frames):
        put(frame, person(160, other=f >= 11), 20 if f < 11 else 140, 40)
    assert find_cuts(frames).tolist() == [11]
    tracks = track_faces(frames, mesh)
    assert [runs(track.visible) for track in tracks] == [[(0, 11)], [(11, 20)]]


def test_nobody(mesh: FaceMesh) -> None:
    assert track_faces(scene(6), mesh) == []
    assert track_faces(scene(0), mesh) == []
    assert len(track_faces(person(192)[None], mesh)) == 1  # a single image
