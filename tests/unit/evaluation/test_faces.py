"""Face tracks, face similarity, FaceNet, and where the weights of the metrics are searched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bya_core.encoders.face.tracking import FaceTrack
from bya_core.errors import InputError
from bya_core.evaluation.face_tracks import cast_tracks, cover, face_crops, fill_gaps, lip_crops, merge_tracks
from bya_core.evaluation.facenet import FaceNet, InceptionResnetV1
from bya_core.evaluation.identity import cosine_similarity, identity_table
from bya_core.evaluation.metric_weights import FACENET, SYNCNET
from tests.unit.evaluation.test_sync import with_fixed_weights


def test_facenet_matches_the_reference(tmp_path: Path) -> None:
    """Values of facenet-pytorch 2.6.0 with the same weights."""
    network = with_fixed_weights(InceptionResnetV1(), "face")
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 3, 160, 160)).astype("float32")
    with torch.inference_mode():
        result = network(torch.from_numpy(pixels))
    expected = [[-0.0063793, 0.0002737, -0.0079181, -0.0849372], [-0.0038727, -0.0003282, -0.0102579, -0.0778517]]
    torch.testing.assert_close(result[:, :4], torch.tensor(expected), atol=2e-5, rtol=0)
    weights = network.state_dict() | {"logits.weight": torch.zeros(3, 512), "logits.bias": torch.zeros(3)}
    torch.save(weights, tmp_path / FACENET.file)
    images = np.random.default_rng(1).integers(0, 256, (2, 160, 160, 3), dtype=np.uint8)
    with torch.inference_mode():
        direct = network((torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127.5) / 128)
    embedded = FaceNet(tmp_path / FACENET.file, batch=1).embed(images)
    assert np.allclose(embedded, direct.numpy(), atol=1e-5)


def test_metric_weights_are_found_or_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BYA_MODELS_DIR", str(tmp_path))
    assert SYNCNET.find() is None
    for part in ("Sync-C and Sync-D", "syncnet_v2.model", "55 MB", "robots.ox.ac.uk", str(tmp_path / "metrics")):
        assert part in SYNCNET.missing
    with pytest.raises(InputError, match="get it from"):
        SYNCNET.require()
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / SYNCNET.file).touch()
    assert SYNCNET.require() == tmp_path / "metrics" / SYNCNET.file


def test_identity_table() -> None:
    references = np.array([[1.0, 0, 0], [0, 2.0, 0]])
    faces = np.array([[[3.0, 0, 0], [1, 1, 0], [np.nan] * 3], [[0, 1.0, 0], [0, 5, 0], [0, 1, 0]]])
    table = identity_table(faces, references)
    assert table.mean == pytest.approx([(1 + 0.5**0.5) / 2, 1.0])
    assert table.worst == pytest.approx([0.5**0.5, 1.0])
    assert np.isnan(table.per_frame[0, 2]) and table.correct.all()
    assert table.confusion[0, 1] == pytest.approx(0.5**0.5 / 2) and table.confusion[1, 0] == 0.0
    assert not identity_table(faces[::-1], references).correct.any()
    empty = identity_table(np.full((1, 3, 3), np.nan), references[:1])
    assert np.isnan(empty.mean).all() and np.isnan(empty.worst).all() and not empty.correct.any()


def test_cosine_similarity() -> None:
    vectors = np.random.default_rng(1).normal(size=(8, 16))
    similarity = cosine_similarity(3.0 * vectors[5], vectors)
    assert similarity.argmax() == 5 and similarity[5] == pytest.approx(1.0)


def test_lip_crops_match_the_reference() -> None:
    frames = np.full((15, 60, 80, 3), 50, dtype=np.uint8)
    frames[:, 20:40, 30:46] = 200
    track = np.tile([30.0, 20.0, 46.0, 40.0], (15, 1))
    track[7] += 9.0  # a detection error in a single frame is smoothed
    crops = lip_crops(frames, track, size=36)
    assert crops.shape == (15, 36, 36, 3) and np.array_equal(crops[7], crops[6])
    # half side 10: 28 wide around x = 38, from y = 20 to 48, with a face of 16 x 20
    scale, bright = 36 / 28, crops[6, :, :, 0] > 125
    assert abs(bright.any(axis=0).sum() - 16 * scale) <= 1 and abs(bright.any(axis=1).sum() - 20 * scale) <= 1
    assert bright[0].any() and not bright[-1].any()
    edge = lip_crops(frames, np.tile([0.0, 0.0, 20.0, 20.0], (15, 1)), size=36)
    assert edge[6, 20, 0, 0] == 110, "gray outside the frame"


def track(box: tuple[float, ...], visible: list[int], length: int = 3) -> FaceTrack:
    """A face at one place in some frames."""
    boxes = np.full((length, 4), np.nan, np.float32)
    boxes[visible] = box
    points = np.full((length, 468, 3), np.nan, np.float32)
    points[visible] = 1.0
    return FaceTrack(boxes, np.isfinite(boxes[:, 0]) * 1.0, points, np.isfinite(boxes[:, 0]) * 1.0)


def test_faces_are_cast_by_masks() -> None:
    masks = np.zeros((2, 3, 10, 20), dtype=bool)  # half the resolution of the frames
    masks[0, :, :, :9], masks[1, :, :, 11:] = True, True
    left, right = track((3, 4, 11, 14), [0, 1, 2]), track((25, 4, 33, 14), [0])
    scores = cover([right, left], masks, (20, 40))
    assert np.allclose(scores, [[0, 1], [1, 0]])
    again, elsewhere = track((24, 4, 32, 14), [2]), track((19, 0, 21, 2), [0, 1, 2])
    tracks = [right, left, again, elsewhere]
    cast, unsure = cast_tracks(cover(tracks, masks, (20, 40)), tracks)
    assert cast == [[1], [0, 2]] and not unsure, "a face that was lost and found belongs to one character"
    merged = merge_tracks([right, again], 3)
    assert merged.visible.tolist() == [True, False, True] and np.allclose(merged.boxes[2], again.boxes[2])
    assert np.array_equal(fill_gaps(merged.boxes, gap=1)[1], (right.boxes[0] + again.boxes[2]) / 2)
    with pytest.raises(InputError, match="missing for 2 frames"):
        fill_gaps(right.boxes, gap=1)
    crops = face_crops(np.full((3, 20, 40, 3), 7, np.uint8), right.boxes, size=16)
    assert (crops[0] == 7).all() and (crops[1] == 110).all()


def test_faces_that_look_alike_are_not_cast() -> None:
    tracks = [track((3, 4, 11, 14), [0, 1, 2]), track((25, 4, 33, 14), [0, 1, 2])]
    scores = np.array([[0.80, 0.79], [0.79, 0.80]])
    assert cast_tracks(scores, tracks, margin=0.1) == ([[], []], {0, 1})
    assert cast_tracks(scores, tracks, margin=0.01) == ([[0], [1]], set())
