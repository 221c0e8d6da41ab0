"""Stages one by one: following people, cutting clips, distances, whose voice is whose, what is kept where."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bya_core.errors import InputError
from training.curation.masks import face_cover, token_masks
from training.curation.output import Layout
from training.curation.pipeline import build_stages
from training.curation.record import Record
from training.curation.segments import Segments, SegmentSettings, distance_ratio
from training.curation.settings import CurationSettings, load_settings
from training.curation.sources import fingerprinted, list_sources
from training.curation.speech import Matrix, MatrixSettings
from training.curation.stage import Resources, Stage, result_key, run_stage
from training.curation.store import Store
from training.curation.tracks import Tracker, TrackSettings


class Names:
    """Faces told apart by one number."""

    same = 0.5

    def describe(self, face):
        return np.zeros(1)

    def likeness(self, one, many):
        return 1.0 - np.minimum(1.0, np.abs(many[:, 0] - one[0]))


def follow(moments, every=5):
    """Moments: lists of (x, who); boxes of 20 pixels. -> who of each track."""
    tracker = Tracker(TrackSettings(), Names(), 25)
    for k, faces in enumerate(moments):
        boxes = np.array([[x, 0, x + 20, 20] for x, _ in faces], float).reshape(-1, 4)
        tracker.add(every * k, boxes, np.ones(len(faces)), np.array([[who] for _, who in faces], float).reshape(-1, 1))
    return [(len(t.frames), round(float(t.looks[0]))) for t in tracker.people()]


def test_people_who_cross_keep_their_names():
    moments = [[(10 * k, 0), (100 - 10 * k, 1)] for k in range(11)]
    assert follow(moments) == [(11, 0), (11, 1)]


def test_a_person_out_of_sight_for_a_moment_is_known_again_and_a_mistake_is_nobody():
    moments = [[(10, 0)] if k not in (3, 4) else [] for k in range(10)]
    moments[6] = [(10, 0), (200, 5)]
    assert follow(moments) == [(8, 0)]


def test_somebody_else_in_the_same_place_later_is_somebody_else():
    assert len(follow([[(10, 0)]] * 5 + [[]] * 6 + [[(10, 3)]] * 5)) == 2


def shot(tracks, end=100, width=640, height=480):
    """A shot of frames 0..end with tracks (first, last, x, size)."""
    rows = [
        [n, frame, x, 200, x + size, 200 + size, 0.9]
        for n, (first, last, x, size) in enumerate(tracks)
        for frame in range(first, last + 1, 5)
    ]
    record = Record(
        "film", "film", "shot", content="c", end=end, data={"width": width, "height": height, "last_look": 95}
    )
    return record.with_arrays(tracks=np.array(rows, float))


def cut(record, **settings):
    return Segments(SegmentSettings(size=(480, 640), **settings), Resources())(record)


def test_clips_are_cut_where_exactly_n_people_are_seen():
    film = shot([(0, 95, 100, 80), (0, 95, 400, 80), (60, 95, 250, 80)])
    clips = cut(film, lengths=(25, 49), context=5)
    assert [(c.start, c.end) for c in clips] == [(5, 54)]
    assert clips[0].array("boxes").shape == (2, 59, 4)
    assert [(c.start, c.end) for c in cut(film, characters=3, lengths=(25,))] == [(67, 92)]
    (none,) = cut(film, characters=1, lengths=(25,))
    assert none.rejected.startswith("no 25 frames with exactly 1 characters")


def test_bystanders_do_not_count_and_small_faces_are_dropped():
    film = shot([(0, 95, 100, 80), (0, 95, 400, 80), (0, 95, 250, 10)])
    assert cut(film, lengths=(49,))[0].level == "clip"
    assert "too small" in cut(shot([(0, 95, 100, 40), (0, 95, 400, 40)]), lengths=(49,))[0].rejected


def test_slots_do_not_tell_sides():
    """The first character must not always be the left one, or training learns that."""
    films = [replace(shot([(0, 95, 100, 80), (0, 95, 400, 80)]), content=str(n)) for n in range(20)]
    first_is_left = [cut(film, lengths=(49,))[0].data["left_to_right"][0] == 0 for film in films]
    assert 3 < sum(first_is_left) < 17


def test_the_portrait_comes_from_outside_the_clip_where_it_can():
    (clip,) = cut(shot([(0, 95, 100, 80), (0, 45, 400, 80)]), lengths=(45,))
    inside = {entry["frame"] < clip.end and entry["frame"] >= clip.start for entry in clip.data["portrait"]}
    assert [entry["inside"] for entry in clip.data["portrait"]].count(True) <= 1 and False in inside


def test_distance_is_counted_in_faces_of_the_loneliest():
    boxes = np.array([[[0, 0, 20, 20]], [[40, 0, 60, 20]], [[200, 0, 220, 20]]], float)
    assert distance_ratio(boxes[:2]) == pytest.approx(0.5)
    assert distance_ratio(boxes) == pytest.approx(20 / 160)


def heard(table, voices, speaks):
    data = {"sync_table": table, "speaks": speaks, "context": [0, 50]}
    record = Record("film", "film", "clip", start=0, end=50, data=data)
    return Matrix(MatrixSettings(), Resources())(record.with_arrays(speeches=voices.astype(np.float32)))[0]


def test_voices_go_to_the_faces_that_follow_them():
    rng = np.random.default_rng(0)
    voices = rng.standard_normal((2, 32_000))
    assert heard([[8.0, 1.0], [0.5, 7.0]], voices, [True, True]).data["matrix"] == [[1, 0], [0, 1]]
    swapped = heard([[1.0, 8.0], [7.0, 0.5]], voices, [True, True])
    assert swapped.data["matrix"] == [[0, 1], [1, 0]] and swapped.data["rebound"]
    unsure = heard([[4.0, 4.2], [4.1, 4.0]], voices, [True, True])
    assert unsure.data["matrix"] == [[1, 0], [0, 1]]


def test_a_listener_has_a_silent_stream_and_a_voice_found_twice_is_one():
    rng = np.random.default_rng(0)
    voice = rng.standard_normal(32_000)
    silent = heard([[None, None], [1.0, 6.0]], np.stack([0 * voice, voice]), [False, True])
    assert silent.data["matrix"] == [[1, 0], [0, 1]]
    twice = heard([[3.0, 8.0], [3.0, 8.5]], np.stack([voice, 0.9 * voice]), [True, True])
    assert twice.data["speaks"] == [False, True] and twice.data["twins"] == [[0, 1]]
    assert not twice.array("speeches")[0].any()


def test_masks_on_grids_are_shares_and_a_mask_must_cover_its_face():
    masks = np.zeros((1, 5, 64, 96), bool)
    masks[:, :, :32] = True
    grids = token_masks(masks, (64, 96))
    assert grids["latent"].shape == (1, 2, 8, 12) and grids["token"].shape == (1, 2, 4, 6)
    assert grids["token"][0, 0, :2].min() == 1 and grids["token"][0, 0, 2:].max() == 0
    boxes = np.tile([[[10, 5, 30, 25]], [[10, 40, 30, 60]]], (1, 5, 1))
    assert face_cover(np.repeat(masks, 2, axis=0), boxes).tolist() == [1.0, 0.0]


class Doubling:
    """A stage that counts how often it is asked."""

    name, version, settings, resources = "doubling", 1, MatrixSettings(), Resources()

    def __init__(self):
        self.asked = 0

    def __call__(self, record):
        self.asked += 1
        if record.data.get("bad"):
            raise ZeroDivisionError("no")
        return [record.with_data(half=n).with_arrays(values=np.arange(3)) for n in range(2)]


def test_results_are_kept_by_content_version_and_settings(tmp_path):
    stage, store = Doubling(), Store(tmp_path)
    assert isinstance(stage, Stage)
    first = run_stage(stage, Record("a", "a", trail="x"), store)
    again = run_stage(stage, Record("moved/a", "moved", trail="x"), store)
    assert stage.asked == 1 and [r.trail for r in first] == [r.trail for r in again]
    assert again[1].source == "moved/a" and again[1].array("values").tolist() == [0, 1, 2]
    assert len({r.trail for r in first}) == 2
    run_stage(stage, Record("b", "b", trail="y"), store)
    stage.version = 2
    run_stage(stage, Record("a", "a", trail="x"), store)
    stage.settings = MatrixSettings(margin=2.0)
    run_stage(stage, Record("a", "a", trail="x"), store)
    assert stage.asked == 4
    assert result_key(stage, first[0]) != result_key(stage, first[1])


def test_an_error_of_the_program_drops_one_record_and_is_tried_again(tmp_path):
    stage, store = Doubling(), Store(tmp_path)
    record = Record("a", "a", trail="x", data={"bad": True})
    for times in (1, 2):
        (lost,) = run_stage(stage, record, store)
        assert lost.broken and "ZeroDivisionError in doubling" in lost.rejected and stage.asked == times


def test_results_that_cannot_be_kept_stop_a_run(tmp_path):
    (tmp_path / "doubling").write_text("in the way")
    with pytest.raises(InputError, match="cannot be kept or read"):
        run_stage(Doubling(), Record("a", "a", trail="x"), Store(tmp_path))


def test_files_are_listed_in_order_and_a_changed_file_is_another(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/2.mp4", "a.mp4", ".hidden.mp4", "list.txt"):
        (tmp_path / name).write_bytes(name.encode())
    assert [s.name for s in list_sources(tmp_path)] == ["a.mp4", "b/2.mp4", "list.txt"]
    (tmp_path / "list.txt").write_text("# chosen\nb/2.mp4\nb/2.mp4\nmissing.mp4\n")
    named = list_sources(tmp_path / "list.txt")
    assert [s.name for s in named] == ["b/2.mp4", "missing.mp4"]
    store = Store(tmp_path / "store")
    first = fingerprinted(named[0], store)
    assert fingerprinted(named[1], store).rejected.startswith("it cannot be read")
    (tmp_path / "b" / "2.mp4").write_bytes(b"longer than before")
    assert fingerprinted(named[0], store).trail != first.trail
    with pytest.raises(InputError, match="does not exist"):
        list_sources(tmp_path / "nothing")


def test_recipes_are_read_strictly(tmp_path, small):
    settings = load_settings(small.config)
    assert settings.faces.detector.name == "puppet" and settings.extract.extractor.options["truth"]
    assert all(isinstance(stage, Stage) for stage in build_stages(settings))
    path = tmp_path / "bad.yaml"
    for text, message in (
        ("faces: {evry: 3}", "evry"),
        ("segments: {lengths: [48]}", "5, 9, 13"),
        ("probe: {shorter_side: many}", "int"),
        ("[1, 2]", "a mapping"),
        ("a: [", "no YAML"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            load_settings(path)
    path.write_text("resources: {cooking: {cpus: 1}}")
    with pytest.raises(InputError, match="cooking"):
        build_stages(load_settings(path))


def test_the_recipe_for_real_footage_is_valid_and_needs_no_stand_in():
    from tests.training.curation.conftest import RECIPES
    from training.curation.pipeline import stand_ins

    settings = load_settings(RECIPES / "curation.yaml")
    assert stand_ins(settings) == [] and stand_ins(CurationSettings()) == []
    assert settings.segments.size == (480, 720) and settings.segments.lengths == (49,)


def test_a_missing_model_is_told_before_anything_is_done(tmp_path, small):
    from training.curate import Arguments, curate

    path = tmp_path / "c.yaml"
    path.write_text(small.config.read_text().replace("masks: {segmenter: puppet,", "masks: {segmenter: sam2,"))
    with pytest.raises(InputError, match="SAM 2 has no usable weights"):
        curate(Arguments(small.folder, tmp_path / "out", path, workers=0))
    assert not Layout(tmp_path / "out").store.exists()
