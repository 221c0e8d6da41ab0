"""Lip sync of real people (tests/assets/grid), judged by models that were trained on the others."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, lru_cache
from itertools import combinations

import numpy as np
import pytest
import torch

from bya_core.encoders.vad import LoudnessActivity
from bya_core.evaluation import face_report, speakers
from bya_core.evaluation.lip_sync import (
    STILL_MOUTH,
    LipSync,
    LipSyncModel,
    MouthTrack,
    best_pairs,
    compare,
    fit_model,
    load_lip_sync,
    mouth_shapes,
    speech_features,
)
from bya_core.evaluation.lip_verdict import LipScores
from bya_core.evaluation.verdict import speech_loudness
from bya_core.scene.types import Speech
from tests.clips import FOLDER, NAMES, read_clip

LENGTH = 75


@lru_cache(maxsize=1)
def mouths() -> dict[str, np.ndarray]:
    path = FOLDER / "mouths.npz"
    if not path.is_file():
        pytest.skip(f"no {path}: the clips of real people are not on this machine")
    with np.load(path) as archive:
        return {name: archive[name].astype(np.float64) for name in NAMES}


def track(name: str, visible: np.ndarray | None = None) -> MouthTrack:
    return MouthTrack(mouths()[name], np.ones(LENGTH, bool) if visible is None else visible)


def still() -> MouthTrack:
    """A closed mouth with the jitter of a mesh."""
    noise = np.random.default_rng(0).normal(0, 0.001, (LENGTH, 13))
    return MouthTrack(mouths()["bbaf2n"][:1] + noise, np.ones(LENGTH, bool))


@cache
def model_without(*people: str) -> LipSyncModel:
    others = [name for name in NAMES if name not in people]
    return fit_model([speech_features(read_clip(name)[1], LENGTH) for name in others], [mouths()[n] for n in others])


def compare_people(seen: list[MouthTrack], heard: list[str], *people: str) -> LipSync:
    model = model_without(*people)
    return compare(seen, [model.predict(read_clip(name)[1], LENGTH) for name in heard], model)


def verdicts(result: LipSync, heard: list[str | None], targets: list[int]) -> list[str]:
    silence = np.zeros(LENGTH)
    waves = [
        None if name is None else Speech(torch.from_numpy(read_clip(name)[1].copy())[None], 16_000) for name in heard
    ]
    loudness = np.stack([silence if each is None else speech_loudness(each, LENGTH, 25.0) for each in waves])
    scores = LipScores(result, loudness, np.array(targets), 25.0)
    return [scores.verdict(n, f"person {n}", [f"voice {m}" for m in range(len(heard))])[0] for n in range(len(targets))]


def test_voices_are_matched_to_mouths() -> None:
    right = {2: [], 3: []}
    for count in right:
        for people in combinations(NAMES, count):
            result = compare_people([track(name) for name in people], list(people), *people)
            right[count].append(all(n == m for n, m in result.pairs))
    assert np.mean(right[2]) == 1.0 and np.mean(right[3]) >= 0.9


@pytest.mark.parametrize("shift", [-5, 0, 5])
def test_shift_is_told(shift: int) -> None:
    people = NAMES[:2]
    model = model_without(*people)
    waves = [np.roll(read_clip(name)[1], -shift * 640) for name in people]
    result = compare([track(name) for name in people], [model.predict(wave, LENGTH) for wave in waves], model)
    assert np.abs(np.diag(result.offsets) - shift).max() <= 1
    assert verdicts(result, list(people), [0, 1]) == (["shifted"] * 2 if shift else ["own"] * 2)


def test_verdicts() -> None:
    people = ["brbk7n", "lrwp9a"]
    result = compare_people([track(name) for name in people], people, *people)
    assert verdicts(result, people, [0, 1]) == ["own", "own"]
    swapped = compare_people([track(name) for name in people], people[::-1], *people)
    assert verdicts(swapped, people[::-1], [0, 1]) == ["wrong", "wrong"]
    listener = compare_people([track(people[0]), still()], people, *people)
    assert verdicts(listener, [people[0], None], [0, -1]) == ["own", "still"]
    assert verdicts(listener, people, [0, 1])[1] == "silent", "has a voice, but keeps still"
    talks = compare_people([still(), track(people[0])], people[:1], *people)
    assert verdicts(talks, people[:1], [0, -1]) == ["silent", "moves"]


def test_evidence_decides_on_videos_in_which_several_people_speak() -> None:
    people = ["brbk7n", "lrwp9a"]
    right = compare_people([track(name) for name in people], people, *people)
    assert np.diag(right.evidence).min() > 2 and right.evidence[0, 1] < 1
    nobody = np.where(
        np.eye(2), 0.1, right.evidence
    )  # the scores are as good as before, but so they are at other times
    assert verdicts(replace(right, evidence=nobody), people, [0, 1]) == ["unclear", "unclear"]
    one = np.where(np.diag([0, 1]), -0.5, right.evidence)
    assert verdicts(replace(right, evidence=one), people, [0, 1]) == ["own", "unclear"]


def test_own_offset_counts_as_evidence_if_it_is_acceptable() -> None:
    """The mouth of one of two people is 4 frames early, or 8."""
    people = ["brbk7n", "lrwp9a"]
    model = model_without(*people)

    def evidence(early: int) -> float:
        waves = [read_clip(people[0])[1], np.roll(read_clip(people[1])[1], early * 640)]
        result = compare([track(name) for name in people], [model.predict(wave, LENGTH) for wave in waves], model)
        assert abs(result.offset) <= 1
        return float(result.evidence[1, 1])

    assert evidence(4) > 1.5 > evidence(8)


def test_wrong_person_for_a_moment() -> None:
    """Two people swap voices for the middle of four seconds."""
    one, two = "bbaf2n", "lbbc2a"
    model = model_without(one, two)
    parts = {name: slice(12, 62) for name in (one, two)}
    seen = [np.tile(mouths()[name][parts[name]], (3, 1)) for name in (one, two)]
    wave = {name: read_clip(name)[1][12 * 640 : 62 * 640] for name in (one, two)}
    heard = [np.concatenate([wave[a], wave[b], wave[a]]) for a, b in ((one, two), (two, one))]
    visible = np.ones(150, bool)
    voices = [model.predict(each, 150) for each in heard]
    result = compare([MouthTrack(each, visible) for each in seen], voices, model)
    loudness = np.stack([speech_loudness(Speech(torch.from_numpy(each)[None], 16_000), 150, 25.0) for each in heard])
    scores = LipScores(result, loudness, np.array([0, 1]), 25.0)
    spans = [(span.start, span.end) for span in scores.failing if span.character == 0]
    assert len(spans) == 1 and abs(spans[0][0] - 2.0) < 0.7 and abs(spans[0][1] - 4.0) < 0.7
    key, text = scores.verdict(0, "Ada", ["Ada", "Bo"])
    assert key == "wrong" and "Bo" in text


def test_hidden_frames_are_ignored() -> None:
    people = NAMES[:2]
    visible = np.ones(LENGTH, bool)
    visible[:20] = False
    broken = mouths()[people[0]].copy()
    broken[:20] = 5.0
    result = compare_people([MouthTrack(broken, visible), track(people[1])], list(people), *people)
    assert best_pairs(result.scores) == [(0, 0), (1, 1)] and np.all(result.local[0, :, :5] == 0)
    nobody = compare_people([MouthTrack(broken, np.zeros(LENGTH, bool))], [people[0]], *people)
    assert verdicts(nobody, [people[0]], [0]) == ["unclear"]


def test_mouth_shapes_do_not_depend_on_frame_rate_size_and_place() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 100, (468, 2)) + np.zeros((50, 1, 1))
    points[:, 17, 1] += 10 * np.sin(np.arange(50) / 4)
    times = np.arange(50) / 50
    plain = mouth_shapes(points[::2], times[::2], 25)
    other = mouth_shapes(points * 3 + 40, times, 25)
    assert plain.shape.shape == (25, 13) and plain.visible.all() and np.allclose(plain.shape, other.shape, atol=0.02)
    points[10:20] = np.nan
    assert not mouth_shapes(points, times, 25).visible[6:9].any()
    assert mouth_shapes(points[:1], times[:1], 25).movement == 0.0 and still().movement < STILL_MOUTH


def test_silence_fits_nothing() -> None:
    model = model_without()
    result = compare([track(NAMES[0])], [model.predict(np.zeros(48_000), LENGTH)], model)
    assert np.allclose(result.scores, 0.0)


def test_shipped_weights_are_those_of_the_training_data() -> None:
    shipped, fitted = load_lip_sync(), model_without()
    assert np.corrcoef(shipped.weight.ravel(), fitted.weight.ravel())[0, 1] > 0.98
    assert np.allclose(shipped.mean, fitted.mean, atol=0.05)


def test_who_speaks_when(monkeypatch: pytest.MonkeyPatch) -> None:
    """One person speaks and the other keeps still, then the other way round."""
    one, two = NAMES[:2]
    monkeypatch.setattr(speakers, "load_lip_sync", lambda: model_without(one, two))
    shapes = [np.concatenate([mouths()[one], still().shape]), np.concatenate([still().shape, mouths()[two]])]
    seen = iter([MouthTrack(shape, np.ones(150, bool)) for shape in shapes])
    monkeypatch.setattr(speakers, "mouth_shapes", lambda points, times, length: next(seen))
    mix = np.concatenate([read_clip(one)[1], read_clip(two)[1]])
    faces = [face_report.merge_tracks([], 150)] * 2
    found = speakers.find_speakers(faces, mix, 150, 25.0, ["Ada", "Bo"], LoudnessActivity())
    assert [turn.speaker for turn in found.turns] == ["Ada", "Bo"]
    assert found.turns[0].end < 3.0 < found.turns[1].start and found.unseen < 0.3


def test_features_of_a_single_frame() -> None:
    features = speech_features(np.sin(np.arange(640.0)), 1)
    assert features.shape == (1, 52) and np.isfinite(features).all()
