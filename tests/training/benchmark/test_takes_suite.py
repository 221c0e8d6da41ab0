"""Takes suite: takes are chosen as the product does, and the gap to the truth is that of the puppet suite."""

from __future__ import annotations

import json

import pytest

from bya_core.evaluation.face_report import FaceTools
from bya_core.pipelines.takes import Selection, Take, generate_takes
from training.benchmark import takes_suite
from training.benchmark.scenes import SceneSettings
from training.benchmark.takes_suite import TakesEvaluator, aggregate, chosen, closed, takes_report, takes_table

SETTINGS = SceneSettings(scenes=2, num_frames=9)


def take(seed, confidence, bound, missing=()):
    return Take(seed, missing, confidence, 0.0, 4, True, bound=bound)


def clip_row(own, other):
    """Two mouths of which the first follows voice 0 with `own` and voice 1 with `other`."""
    correlation = [[own, other], [0.0, 0.9]]
    return {
        "correlation": correlation, "should_follow": [0, 1], "judged": [True, True], "identity": [True, False],
        "mask_iou": 0.5,
    }  # fmt: skip


@pytest.fixture
def evaluator(random_bundle, monkeypatch):
    """Two takes of a random model; the report is replaced by one that prefers the later seed."""

    def finished(take, scene, report, video, meter):
        return Take(take.seed, (), take.score.confidence, take.score.overlap, 2, True, bound=take.seed % 2)

    monkeypatch.setattr("bya_core.pipelines.takes.measure_video", lambda *_, **__: None)
    monkeypatch.setattr("bya_core.pipelines.takes._finished", finished)
    monkeypatch.setattr("bya_core.pipelines.takes.FaceTools.load", lambda: FaceTools(mesh=None))
    return TakesEvaluator(random_bundle(2), SETTINGS, 2)


def test_takes_are_chosen_by_masks_then_by_binding():
    takes = [take(1, 0.9, 0.0), take(2, 0.8, 1.0), take(3, 0.7, 1.0, ("B",)), take(4, 0.95, 0.5)]
    assert [chosen(takes, keep) for keep in (1, 2, 3)] == [4, 4, 2]
    assert chosen(takes[::-1], 1) == 4, "the order of the takes does not matter"


def test_gap():
    assert closed(0.8, 0.9, 1.0) == pytest.approx(0.5) and closed(0.8, 0.7, 1.0) == pytest.approx(-0.5)
    assert closed(1.0, 1.0, 1.0) is None


def test_figures_are_those_of_the_chosen_takes():
    wrong, right = clip_row(0.2, 0.6), clip_row(0.8, 0.1)
    row = {
        "takes": [{"seed": 1, "made": right}, {"seed": 2, "made": wrong}],
        "chosen": {"1": 2, "2": 1},
        "truth": right,
    }
    figures = aggregate([row], {"1": 1.5, "2": 2.0})
    assert (figures["one take"]["binding"], figures["truth"]["binding"]) == (0.75, 1.0)
    assert [figures["best"][keep]["binding"] for keep in ("1", "2")] == [0.5, 1.0]
    assert [figures["best"][keep]["closed"] for keep in ("1", "2")] == [-1.0, 1.0]
    assert figures["one take"]["own"] == pytest.approx((0.8 + 0.2 + 0.9 + 0.9) / 4)


def test_report_resumes_and_has_every_take(evaluator, monkeypatch):
    saved = []
    report = takes_report(evaluator, save=lambda part: saved.append(json.loads(json.dumps(part))))
    assert [len(part["scenes"]) for part in saved] == [1, 2] and list(report["best"]) == ["1", "2"]
    assert [row["seed"] for row in report["scenes"]] == [1_000_000, 1_000_001]
    seeds = [[entry["seed"] for entry in row["takes"]] for row in report["scenes"]]
    assert seeds == [[2_000_001, 2_000_000], [2_000_003, 2_000_002]], "the best first; scenes share no seed"
    assert all(row["chosen"]["2"] == row["takes"][0]["seed"] for row in report["scenes"])
    assert report["truth"]["mask_iou"] > report["one take"]["mask_iou"]
    assert "best of 2, 2 finished" in takes_table(report) and "2 scenes" in takes_table(report)
    monkeypatch.setattr(takes_suite, "generate_takes", None)  # nothing is generated again
    assert takes_report(evaluator, previous=saved[-1])["scenes"] == json.loads(json.dumps(report["scenes"]))


def test_scenes_have_no_first_frame(evaluator):
    scene, truth = evaluator.scene(0)
    assert scene.first_frame is None and not truth.first_frame and len(scene.speeches) == 2
    made = generate_takes(scene, evaluator.target.bundle, Selection(2, 2))
    assert [each.seed for each in made.rows] == [2_000_001, 2_000_000]
