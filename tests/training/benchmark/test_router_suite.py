"""The router suite and the refinement suite: ways differ only in their masks, reports are complete and gone on with."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bya_core.config import RefineConfig, SamplingConfig
from bya_core.errors import InputError
from bya_core.routing.result import Routing
from bya_core.weights.bundle import ModelBundle, NativeSize
from tests.fakes import FakeCodec, FakeFace, FakeSpeech, FakeText, fake_transformer
from training.benchmark import router_suite
from training.benchmark.refinement_suite import NOISES, gather, measure_refinement, refinement_report, refinement_table
from training.benchmark.router_suite import (
    ALL_WAYS,
    MOTIONS,
    WAYS,
    Way,
    measure_routers,
    router_report,
    router_scene,
    router_table,
)
from training.benchmark.scenes import SceneSettings
from training.benchmark.subjects import ModelSubject
from training.evaluate import Arguments, evaluate_routers, main

SETTINGS = SceneSettings(scenes=2, seed_base=2_000_500, num_frames=9)


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return ModelBundle(
        "random", fake_transformer(), FakeText(), FakeFace(), FakeSpeech(), FakeCodec(), {},
        NativeSize(64, 96, 9), SamplingConfig(steps=4, guidance_scale=2.0, audio_guidance_scale=2.0),
    )  # fmt: skip


@pytest.fixture(scope="module")
def subject(bundle) -> ModelSubject:
    return ModelSubject(bundle, SETTINGS, ())


def test_scenes_keep_still_move_and_cross_with_voices_swapped_half_the_time():
    scenes = [router_scene(SETTINGS, k) for k in range(6)]
    assert [scene.clip.motion for scene in scenes] == [*MOTIONS, *MOTIONS]
    assert all(scene.first_frame and (scene.loudness.max(1) > 0).all() for scene in scenes)
    for k, scene in enumerate(scenes):
        expected = np.eye(2) if k < 3 else np.eye(2)[::-1]
        assert np.array_equal(scene.clip.matrix, expected)


@pytest.mark.parametrize("index", [0, 4])
def test_drawn_truth_scores_about_one_also_with_swapped_voices(subject, index):
    """The clip is drawn again with the other voices: same people, same places, same motion."""
    settings = replace(SETTINGS, num_frames=33, scenes=6)
    subject = ModelSubject(subject.bundle, settings, ())
    (row,) = measure_routers(subject, [index], {"drawn truth": WAYS["drawn truth"]})
    assert row["mask_iou"] > 0.75 and row["own"] > 0.7 and row["calls"] == 0
    assert row["follows"] == row["should_follow"] == ([0, 1] if index == 0 else [1, 0])


def test_ways_make_of_the_same_masks_what_they_say():
    masks = torch.zeros(1, 3, 6, 8)
    masks[0, 0, 1, 1] = masks[0, 0, 3, 2] = 0.9  # two corners of a box of 3 x 2 tokens
    masks[0, 2, 4, 6] = 0.9
    routing = Routing.of("intra", masks, torch.eye(1), strength=0.0)

    def area(**changes) -> list[float]:
        made = Way("intra", **changes).shaped(routing)
        assert made.control.strength.tolist() == [1.0]
        return (made.masks > 0.5).sum((0, 2, 3)).tolist()

    assert area() == [2, 0, 1] and area(boxes=True) == [6, 0, 1]
    assert area(static=True) == [3, 3, 3] and area(static=True, boxes=True) == [24, 24, 24]
    assert Way("intra", forced=False).shaped(routing) is routing
    assert area(refine=RefineConfig(threshold=0.95, propagate=False)) == [0, 0, 0]


def test_ways_of_one_router_share_its_run(subject):
    names = ["intra", "intra, box 2D", "post, fine 3D", "post, box 3D"]
    calls = []
    hook = subject.bundle.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        rows = measure_routers(subject, [0], {name: WAYS[name] for name in names})
    finally:
        hook.remove()
    assert [row["calls"] for row in rows] == [4, 4, 9, 9]  # 4 steps; silent pass, one look, 4 steps
    assert len(calls) == 4 + 3 + 9 + 4  # the probe's step is shared, and so is the silent pass
    assert all(row["seconds"] > 0 and np.isfinite(row["own"]) for row in rows)


def test_report_is_complete_and_gone_on_with(subject, monkeypatch):
    ways = {name: ALL_WAYS[name] for name in ("intra", "intra, fine 3D", "drawn truth")}
    saved = []
    report = router_report(subject, {name: ways[name] for name in ("intra", "drawn truth")}, save=saved.append)
    assert [len(part["rows"]) for part in saved] == [2, 4]
    report = json.loads(json.dumps(report))
    assert report["summary"]["drawn truth"]["all"]["scenes"] == 2
    assert set(report["summary"]["intra"]) == {"all", *MOTIONS[:2]}

    made = []
    monkeypatch.setattr(router_suite, "_find", _counted(router_suite._find, made))
    more = router_report(subject, ways, report)
    assert len(more["rows"]) == 6 and len(made) == 2
    assert [row for row in more["rows"] if row["way"] == "intra"] == report["rows"][:2]
    assert "| intra, fine 3D |" in router_table(more)

    other = ModelSubject(subject.bundle, SETTINGS, (), steps=1)
    again = router_report(other, {"intra": ways["intra"]}, more)  # other settings: nothing is taken over
    assert len(again["rows"]) == 2 and len(made) == 4


def _counted(function, made: list):
    def call(*given):
        made.append(1)
        return function(*given)

    return call


def test_what_a_router_cannot_do_is_counted(subject, monkeypatch):
    def fail(*_):
        raise InputError("nobody found", "somebody", "look again")

    monkeypatch.setattr(router_suite, "_find", fail)
    report = router_report(subject, {name: WAYS[name] for name in ("pre, box 2D", "drawn truth")})
    assert report["summary"]["pre, box 2D"]["all"] == {"scenes": 0, "failed": 2}
    assert report["summary"]["drawn truth"]["all"]["failed"] == 0
    assert "pre" not in router_table(report)


@pytest.mark.parametrize("characters", [1, 3])
def test_any_number_of_characters(bundle, characters):
    subject = ModelSubject(bundle, replace(SETTINGS, characters=characters, scenes=1), ())
    report = router_report(subject, {name: WAYS[name] for name in ("intra", "drawn truth")})
    found = report["summary"]["drawn truth"]["all"]
    assert found["own"] > 0.5 and found["identity"] == 1.0
    assert (found["binding accuracy"] is None) == (characters == 1)
    assert router_table(report)


def test_ways_are_chosen_by_how_they_begin(bundle):
    arguments = Arguments(ways=("drawn",), scenes=1)
    report = evaluate_routers(bundle, replace(SETTINGS, scenes=1), arguments)
    assert list(report["summary"]) == ["drawn truth"] and "torch" in report["versions"]
    with pytest.raises(InputError, match="--ways"):
        evaluate_routers(bundle, SETTINGS, Arguments(ways=("sideways",)))
    with pytest.raises(InputError, match="a model with a router"):
        main(Arguments(suite="routers", model="truth"))


def test_another_report_is_not_overwritten(bundle, tmp_path):
    path = tmp_path / "report.json"
    path.write_text('{"suite": "puppets"}')
    with pytest.raises(InputError, match="router suite"):
        evaluate_routers(bundle, SETTINGS, Arguments(suite="routers", json=path))


def test_refinement_report(bundle):
    subject = ModelSubject(bundle, replace(SETTINGS, scenes=2), (0.5,))
    scenes = [router_scene(SETTINGS, k) for k in range(2)]
    report = json.loads(json.dumps(refinement_report(subject, scenes, RefineConfig())))
    assert set(report["noises"]) == set(NOISES) and "stray regions" in refinement_table(report)
    gathered = gather(subject, scenes)
    assert measure_refinement(gathered, RefineConfig()) == measure_refinement(gathered, RefineConfig())


def test_noise_disturbs_and_keeps_masks_masks():
    clean = np.zeros((2, 5, 8, 12))
    clean[0, :, 2:7, 1:5] = clean[1, :, 2:7, 7:11] = 0.9
    for name, disturb in NOISES.items():
        rough = disturb(clean, np.random.default_rng(0))
        assert rough.shape == clean.shape and rough.min() >= 0 and rough.sum(0).max() <= 1 + 1e-9, name
        assert np.array_equal(rough, clean) == (name == "none")
