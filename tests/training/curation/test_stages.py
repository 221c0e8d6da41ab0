"""Individual stages: tracking, clip extraction, distances, audio-character matrix, caching, settings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bya_core.errors import InputError
from tests.training.curation.conftest import RECIPES
from training.curate import CurateOptions, curate
from training.curation.faces import Tracker, TrackSettings
from training.curation.masks import face_coverage
from training.curation.output import OutputLayout
from training.curation.pipeline import CurationSettings, build_stages, load_settings, puppet_only_models
from training.curation.record import Record, hash_source, list_sources
from training.curation.segments import Segments, SegmentSettings, distance_ratio
from training.curation.speech import Matrix, MatrixSettings
from training.curation.stage import Stage, result_key, run_stage
from training.curation.store import Store, StoreError


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


def make_shot(tracks, end=100, width=640, height=480):
    """A shot of frames 0..end with tracks (first, last, x, size)."""
    rows = [
        [n, frame, x, 200, x + size, 200 + size, 0.9]
        for n, (first, last, x, size) in enumerate(tracks)
        for frame in range(first, last + 1, 5)
    ]
    data = {"width": width, "height": height, "last_detection": 95, "stride": 5}
    return Record("film", "film", "shot", content="c", end=end, data=data).with_arrays(tracks=np.array(rows, float))


def extract_clips(record, **settings):
    return Segments(SegmentSettings(size=(480, 640), **settings))(record)


def test_clips_with_exact_number_of_characters():
    shot = make_shot([(0, 95, 100, 80), (0, 95, 400, 80), (60, 95, 250, 80)])
    clips = extract_clips(shot, lengths=(25, 49), context=5)
    assert [(c.start, c.end) for c in clips] == [(5, 54)]
    assert clips[0].array("boxes").shape == (2, 59, 4)
    assert [(c.start, c.end) for c in extract_clips(shot, characters=3, lengths=(25,))] == [(67, 92)]
    (rejected,) = extract_clips(shot, characters=1, lengths=(25,))
    assert rejected.rejected.startswith("no 25 frames with exactly 1 characters")


def test_small_faces():
    background = make_shot([(0, 95, 100, 80), (0, 95, 400, 80), (0, 95, 250, 10)])
    assert extract_clips(background, lengths=(49,))[0].level == "clip"
    assert "too small" in extract_clips(make_shot([(0, 95, 100, 40), (0, 95, 400, 40)]), lengths=(49,))[0].rejected


def test_character_order_is_shuffled():
    shots = [replace(make_shot([(0, 95, 100, 80), (0, 95, 400, 80)]), content=str(n)) for n in range(20)]
    first_is_left = [extract_clips(shot, lengths=(49,))[0].data["left_to_right"][0] == 0 for shot in shots]
    assert 3 < sum(first_is_left) < 17


def test_reference_images_from_outside_the_clip():
    (clip,) = extract_clips(make_shot([(0, 95, 100, 80), (0, 45, 400, 80)]), lengths=(45,))
    inside = [clip.start <= entry["frame"] < clip.end for entry in clip.data["reference"]]
    assert [entry["inside"] for entry in clip.data["reference"]] == inside and sum(inside) <= 1


def test_distance_ratio():
    boxes = np.array([[[0, 0, 20, 20]], [[40, 0, 60, 20]], [[200, 0, 220, 20]]], float)
    assert distance_ratio(boxes[:2]) == pytest.approx(0.5)
    assert distance_ratio(boxes) == pytest.approx(20 / 160)


def compute_matrix(table, speeches, speaking):
    data = {"sync_table": table, "speaking": speaking, "context": [0, 50]}
    record = Record("film", "film", "clip", start=0, end=50, data=data)
    return Matrix(MatrixSettings())(record.with_arrays(speeches=speeches.astype(np.float32)))[0]


@pytest.mark.parametrize(
    ("table", "matrix"),
    [
        ([[8.0, 1.0], [0.5, 7.0]], [[1, 0], [0, 1]]),
        ([[1.0, 8.0], [7.0, 0.5]], [[0, 1], [1, 0]]),
        ([[4.0, 4.2], [4.1, 4.0]], [[1, 0], [0, 1]]),  # not better by the margin
    ],
)
def test_matrix_assigns_speeches_to_the_best_matching_faces(table, matrix):
    speeches = np.random.default_rng(0).standard_normal((2, 32_000))
    record = compute_matrix(table, speeches, [True, True])
    assert record.data["matrix"] == matrix and record.data["reassigned"] == (matrix[0][1] == 1)


def test_matrix_of_silent_and_duplicate_speeches():
    speech = np.random.default_rng(0).standard_normal(32_000)
    silent = compute_matrix([[None, None], [1.0, 6.0]], np.stack([0 * speech, speech]), [False, True])
    assert silent.data["matrix"] == [[1, 0], [0, 1]]
    duplicate = compute_matrix([[3.0, 8.0], [3.0, 8.5]], np.stack([speech, 0.9 * speech]), [True, True])
    assert duplicate.data["speaking"] == [False, True] and duplicate.data["duplicates"] == [[0, 1]]
    assert not duplicate.array("speeches")[0].any()


def test_face_coverage():
    masks = np.zeros((1, 5, 64, 96), bool)
    masks[:, :, :32] = True
    boxes = np.tile([[[10, 5, 30, 25]], [[10, 40, 30, 60]]], (1, 5, 1))
    assert face_coverage(np.repeat(masks, 2, axis=0), boxes).tolist() == [1.0, 0.0]


class Doubling(Stage):
    """Returns two records and counts its calls."""

    name = "doubling"

    def __init__(self):
        super().__init__(MatrixSettings())
        self.calls = 0

    def __call__(self, record):
        self.calls += 1
        if record.data.get("bad"):
            raise ZeroDivisionError("no")
        return [record.with_data(half=n).with_arrays(values=np.arange(3)) for n in range(2)]


def test_results_are_cached_by_content_version_and_settings(tmp_path):
    stage, store = Doubling(), Store(tmp_path)
    first = run_stage(stage, Record("a", "a", lineage="x"), store)
    again = run_stage(stage, Record("moved/a", "moved", lineage="x"), store)
    assert stage.calls == 1 and [r.lineage for r in first] == [r.lineage for r in again]
    assert again[1].source == "moved/a" and again[1].array("values").tolist() == [0, 1, 2]
    assert result_key(stage, first[0]) != result_key(stage, first[1])
    for name, value in (("version", 2), ("settings", MatrixSettings(margin=2.0))):
        setattr(stage, name, value)
        run_stage(stage, Record("a", "a", lineage="x"), store)
    run_stage(stage, Record("b", "b", lineage="y"), store)
    assert stage.calls == 4


def test_errors_of_stages(tmp_path):
    stage, store = Doubling(), Store(tmp_path / "store")
    for calls in (1, 2):  # not cached
        (failed,) = run_stage(stage, Record("a", "a", lineage="x", data={"bad": True}), store)
        assert failed.failed and "ZeroDivisionError in doubling" in failed.rejected and stage.calls == calls
    (tmp_path / "doubling").write_text("not a folder")
    with pytest.raises(StoreError):
        run_stage(stage, Record("a", "a", lineage="x"), Store(tmp_path))


def test_list_and_hash_sources(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/2.mp4", "a.mp4", ".hidden.mp4", "list.txt"):
        (tmp_path / name).write_bytes(name.encode())
    assert [s.name for s in list_sources(tmp_path)] == ["a.mp4", "b/2.mp4", "list.txt"]
    (tmp_path / "list.txt").write_text("# selected\nb/2.mp4\nb/2.mp4\nmissing.mp4\n")
    listed = list_sources(tmp_path / "list.txt")
    assert [s.name for s in listed] == ["b/2.mp4", "missing.mp4"]
    store = Store(tmp_path / "store")
    first = hash_source(listed[0], store)
    assert hash_source(listed[1], store).rejected.startswith("the file cannot be read")
    (tmp_path / "b" / "2.mp4").write_bytes(b"longer than before")
    assert hash_source(listed[0], store).lineage != first.lineage
    with pytest.raises(InputError, match="does not exist"):
        list_sources(tmp_path / "nothing")


def test_recipes(footage):
    settings = load_settings(footage.config)
    assert settings.faces.detector.name == "puppet" and settings.extract.extractor.options["truth"]
    assert "sync: puppet" in puppet_only_models(settings) and puppet_only_models(CurationSettings()) == []
    real = load_settings(RECIPES / "curation.yaml")
    assert puppet_only_models(real) == [] and real.segments.size == (480, 720) and real.segments.lengths == (49,)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("faces: {strde: 3}", "strde"),
        ("faces: {track: {min_ious: 3}}", "faces.track"),
        ("segments: {lengths: [48]}", "lengths"),
        ("probe: {min_side: many}", "probe.min_side"),
        ("shards: {clips_per_shard: 0}", "clips_per_shard"),
        ("[1, 2]", "bad.yaml"),
        ("a: [", "not valid YAML"),
        ("resources: {cooking: {cpus: 1}}", "cooking"),
    ],
)
def test_invalid_configs_raise(tmp_path, text, problem):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        build_stages(load_settings(tmp_path / "bad.yaml"))
    assert problem in error.value.problem


def test_missing_models_raise_before_the_run(tmp_path, footage):
    path = tmp_path / "c.yaml"
    path.write_text(footage.config.read_text().replace("masks: {segmenter: puppet,", "masks: {segmenter: sam2,"))
    with pytest.raises(InputError, match="SAM 2"):
        curate(CurateOptions(footage.folder, tmp_path / "out", path, workers=0))
    assert not OutputLayout(tmp_path / "out").store.exists()
