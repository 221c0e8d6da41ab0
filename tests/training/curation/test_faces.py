"""Face detection and tracking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.clips import side_by_side, write_clip
from tests.training.curation.hostile import video
from training.curation.faces import Faces, FaceSettings, Tracker, TrackSettings
from training.curation.record import Record
from training.curation.segments import Segments, SegmentSettings

SAMPLES = Path(__file__).resolve().parents[4] / "shared" / "samples"


class NumberIdentity:
    """Faces identified by one number."""

    threshold = 0.5

    def embed(self, face):
        return np.zeros(1)

    def similarity(self, query, embeddings):
        return 1.0 - np.minimum(1.0, np.abs(embeddings[:, 0] - query[0]))


def track(steps, stride=5):
    """Track lists of (x, identity) with boxes of 20 pixels; returns (length, identity) of each track."""
    tracker = Tracker(TrackSettings(), NumberIdentity(), 25)
    for k, faces in enumerate(steps):
        boxes = np.array([[x, 0, x + 20, 20] for x, _ in faces], float).reshape(-1, 4)
        embeddings = np.array([[identity] for _, identity in faces], float).reshape(-1, 1)
        tracker.add(stride * k, boxes, np.ones(len(faces)), embeddings)
    return [(len(t.frames), round(float(t.embedding[0]))) for t in tracker.finished_tracks()]


CROSSING = [[(10 * k, 0), (100 - 10 * k, 1)] for k in range(11)]


OCCLUDED = [[(10, 0)] if k not in (3, 4) else [] for k in range(10)]


FALSE_DETECTION = [*OCCLUDED[:6], [(10, 0), (200, 5)], *OCCLUDED[7:]]


OTHER_PERSON = [[(10, 0)]] * 5 + [[]] * 6 + [[(10, 3)]] * 5


@pytest.mark.parametrize(
    ("steps", "expected"),
    [(CROSSING, [(11, 0), (11, 1)]), (FALSE_DETECTION, [(8, 0)]), (OTHER_PERSON, [(5, 0), (5, 3)])],
)
def test_tracking(steps, expected):
    assert track(steps) == expected


def detect(path, frames: int):
    """Result of the stage on a whole file."""
    record = Record(str(path), path.name, "shot", end=frames, data={"height": 480, "width": 720})
    return Faces(FaceSettings())(record)[0]


def test_no_face_in_a_pattern(tmp_path):
    result = detect(video(tmp_path / "film.mp4", 720, 480, frames=30), 30)
    assert result.rejected == "no face detected" and result.data["detector"] == "BlazeFace"


@pytest.mark.parametrize("names", [("bbaf2n",), ("lbbc2a", "brbk7n"), ("bbaf2n", "lrwp9a", "lbax4n")])
def test_everybody_is_found_and_nobody_invented(tmp_path, names):
    frames = side_by_side(names)[0][:40]
    result = detect(write_clip(tmp_path / "film.mp4", frames, None), 40)
    rows = result.array("tracks")
    assert result.data["num_people"] == len(names)
    for n in range(len(names)):
        own = rows[rows[:, 0] == n]
        assert len(own) == 40 and own[:, 6].min() > 0.5
        center = (own[:, 2] + own[:, 4]) / 2
        assert (np.abs(center - (360 * n + 180)) < 60).all()
    points = result.array("points")
    assert points.shape == (len(rows), 468, 2) and points.min() >= -0.01 and points.max() <= 1.01


def test_rotated_phone_video(tmp_path):
    frames = side_by_side(("bbaf2n", "lbbc2a"))[0][:30]
    stored = [np.rot90(frame, -1) for frame in frames]
    result = detect(write_clip(tmp_path / "film.mp4", stored, None, rotation=90), 30)
    assert result.data["num_people"] == 2 and len(result.array("tracks")) == 60


def test_black_frames_show_nobody(tmp_path):
    result = detect(write_clip(tmp_path / "film.mp4", np.zeros((30, 240, 360, 3), np.uint8), None), 30)
    assert result.rejected == "no face detected"


def test_person_who_leaves_and_comes_back(tmp_path):
    """No clip shows fewer people than it claims."""
    frames = side_by_side(("bbaf2n", "lbbc2a"))[0].copy()
    frames = np.concatenate([frames, frames[::-1]])
    frames[60:90, :, 360:] = 90  # absent for 1.2 s
    shot = detect(write_clip(tmp_path / "film.mp4", frames, None), 150)
    clips = Segments(SegmentSettings(lengths=(25,), context=5))(shot)
    assert len(clips) == 4 and all(clip.end <= 60 or clip.start >= 90 for clip in clips)


def test_photos_of_two_people(tmp_path):
    """Photographs with frontal and turned faces: two people each."""
    if not (SAMPLES / "001" / "first_frame.jpg").is_file():
        pytest.skip("../shared/samples is not on this machine")
    for sample in ("001", "014"):
        photo = np.asarray(Image.open(SAMPLES / sample / "first_frame.jpg").convert("RGB").resize((720, 480)))
        frames = [np.roll(photo, k // 12, axis=0) for k in range(30)]
        assert detect(write_clip(tmp_path / f"{sample}.mp4", frames, None), 30).data["num_people"] == 2, sample
