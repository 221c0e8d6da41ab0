"""Router and refinement suites."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bya_core.config import RefineConfig
from bya_core.errors import InputError
from bya_core.routing.result import Routing
from training.benchmark import router_suite
from training.benchmark.refinement_suite import CORRUPTIONS, refinement_report, refinement_table
from training.benchmark.router_suite import ALL_VARIANTS, RouterVariant, router_report, router_table
from training.benchmark.scenes import MOTIONS, SceneSettings, router_scene
from training.benchmark.suites import EvaluateOptions, evaluate_routers
from training.benchmark.targets import ModelTarget
from training.evaluate import main

SETTINGS = SceneSettings(scenes=2, seed_base=2_000_500, num_frames=9)


@pytest.fixture(scope="module")
def bundle(random_bundle):
    return random_bundle(4)


@pytest.fixture(scope="module")
def target(bundle):
    return ModelTarget(bundle, SETTINGS, ())


def select(*names):
    return {name: ALL_VARIANTS[name] for name in names}


def test_scenes_alternate_motions_and_swapped_speeches():
    scenes = [router_scene(SETTINGS, k) for k in range(6)]
    assert [scene.clip.motion for scene in scenes] == [*MOTIONS, *MOTIONS]
    assert all(scene.first_frame and (scene.loudness.max(1) > 0).all() for scene in scenes)
    for k, scene in enumerate(scenes):
        assert np.array_equal(scene.clip.matrix, np.eye(2) if k < 3 else np.eye(2)[::-1])


def test_ground_truth_scores_one(bundle):
    target = ModelTarget(bundle, replace(SETTINGS, num_frames=33, scenes=5), ())
    rows = router_report(target, select("drawn truth"))["rows"]
    for index in (0, 4):
        row = rows[index]
        assert row["mask_iou"] > 0.75 and row["own"] > 0.7 and row["calls"] == 0
        assert row["follows"] == row["should_follow"] == ([0, 1] if index == 0 else [1, 0])


def test_masks_of_variants():
    masks = torch.zeros(1, 3, 6, 8)
    masks[0, 0, 1, 1] = masks[0, 0, 3, 2] = 0.9  # two corners of a box of 3 x 2 tokens
    masks[0, 2, 4, 6] = 0.9
    routing = Routing.of("intra", masks, torch.eye(1), strength=0.0)

    def area(**options) -> list[float]:
        result = RouterVariant("intra", **options).apply(routing)
        assert result.control.strength.tolist() == [1.0]
        return (result.masks > 0.5).sum((0, 2, 3)).tolist()

    assert area() == [2, 0, 1] and area(boxes=True) == [6, 0, 1]
    assert area(static=True) == [3, 3, 3] and area(static=True, boxes=True) == [24, 24, 24]
    assert RouterVariant("intra", forced=False).apply(routing) is routing
    assert area(refine=RefineConfig(threshold=0.95, propagate=False)) == [0, 0, 0]


def test_variants_share_the_run_of_their_router(bundle):
    target = ModelTarget(bundle, replace(SETTINGS, scenes=1), ())
    names = ["intra", "intra, box 2D", "post, fine 3D", "post, box 3D"]
    calls = []
    hook = bundle.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        rows = router_report(target, select(*names))["rows"]
    finally:
        hook.remove()
    assert [row["calls"] for row in rows] == [4, 4, 9, 9]  # 4 steps; silent pass, mask prediction, 4 steps
    assert len(calls) == 4 + 3 + 9 + 4  # probe and silent pass are shared
    assert all(row["seconds"] > 0 and np.isfinite(row["own"]) for row in rows)


def test_report_resume(target, monkeypatch):
    saved = []
    report = router_report(target, select("intra", "drawn truth"), save=saved.append)
    assert [len(part["rows"]) for part in saved] == [2, 4]
    report = json.loads(json.dumps(report))
    assert report["summary"]["drawn truth"]["all"]["scenes"] == 2
    assert set(report["summary"]["intra"]) == {"all", *MOTIONS[:2]}

    runs, run_router = [], router_suite._run_router
    monkeypatch.setattr(router_suite, "_run_router", lambda *args: runs.append(1) or run_router(*args))
    resumed = router_report(target, select("intra", "intra, fine 3D", "drawn truth"), report)
    assert len(resumed["rows"]) == 6 and len(runs) == 2
    assert [row for row in resumed["rows"] if row["way"] == "intra"] == report["rows"][:2]
    assert "| intra, fine 3D |" in router_table(resumed)

    other = ModelTarget(target.bundle, SETTINGS, (), steps=1)
    assert len(router_report(other, select("intra"), resumed)["rows"]) == 2  # other settings: nothing is reused
    assert len(runs) == 4


def test_router_failures_are_counted(target, monkeypatch):
    def fail(*_):
        raise InputError("no face detected", "a face", "use another image")

    monkeypatch.setattr(router_suite, "_run_router", fail)
    report = router_report(target, select("pre, box 2D", "drawn truth"))
    assert report["summary"]["pre, box 2D"]["all"] == {"scenes": 0, "failed": 2}
    assert report["summary"]["drawn truth"]["all"]["failed"] == 0
    assert "pre" not in router_table(report)


@pytest.mark.parametrize("characters", [1, 3])
def test_number_of_characters(bundle, characters):
    target = ModelTarget(bundle, replace(SETTINGS, characters=characters, scenes=1), ())
    report = router_report(target, select("intra", "drawn truth"))
    figures = report["summary"]["drawn truth"]["all"]
    assert figures["own"] > 0.5 and figures["identity"] == 1.0
    assert (figures["binding accuracy"] is None) == (characters == 1)
    assert router_table(report)


def test_select_variants_by_prefix(bundle):
    report = evaluate_routers(bundle, replace(SETTINGS, scenes=1), EvaluateOptions(variants=("drawn",), scenes=1))
    assert list(report["summary"]) == ["drawn truth"]
    with pytest.raises(InputError, match="--variants"):
        evaluate_routers(bundle, SETTINGS, EvaluateOptions(variants=("sideways",)))
    with pytest.raises(InputError, match="a model with a router"):
        main(EvaluateOptions(suite="routers", model="truth"))


def test_refinement_report(bundle):
    target = ModelTarget(bundle, replace(SETTINGS, scenes=2), (0.5,))
    scenes = [router_scene(SETTINGS, k) for k in range(2)]
    report = json.loads(json.dumps(refinement_report(target, scenes, RefineConfig())))
    assert set(report["noises"]) == set(CORRUPTIONS) and "stray regions" in refinement_table(report)
    assert refinement_report(target, scenes, RefineConfig())["noises"] == report["noises"]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupted_masks_are_valid(name):
    clean = np.zeros((2, 5, 8, 12))
    clean[0, :, 2:7, 1:5] = clean[1, :, 2:7, 7:11] = 0.9
    corrupted = CORRUPTIONS[name](clean, np.random.default_rng(0))
    assert corrupted.shape == clean.shape and corrupted.min() >= 0 and corrupted.sum(0).max() <= 1 + 1e-9
    assert np.array_equal(corrupted, clean) == (name == "none")
