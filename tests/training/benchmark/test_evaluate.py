"""Puppet suite: metrics of the ground truth, of other scenes and of a random model; resumed reports."""

from __future__ import annotations

import functools
import json
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from bya_core.errors import InputError
from bya_core.evaluation.mask_metrics import mean_iou
from bya_core.grid import TokenGrid
from bya_core.toy.segmentation import segment_characters
from tests import torchvision_shim
from training.benchmark.puppet_report import Measurements, SceneEvaluator, in_processes, puppet_report, table
from training.benchmark.puppet_suite import SHARES, evaluate_clip
from training.benchmark.scenes import SceneSettings, all_scenes, redrawn, suite_scene, talk_of
from training.benchmark.targets import GeneratedVideo, ModelTarget
from training.evaluate import EvaluateOptions, main
from training.puppets.looks import MOUTH_RGB
from training.puppets.world import make_clip

SETTINGS = SceneSettings(scenes=4)
GRID = TokenGrid.from_pixels(17, 64, 96, space_factor=4)


@pytest.fixture(scope="module")
def bundle(random_bundle):
    return random_bundle(5)


def evaluate(bundle, settings, *, steps=None, generate=True, reference="truth"):
    return puppet_report(SceneEvaluator.create(bundle, settings, Measurements(generate=generate), steps, reference))


def test_ground_truth_scores_one():
    report = evaluate(None, SETTINGS)
    assert report["router"]["headline_iou"] > 0.99 and report["router"]["noisiest_with_first_frame"] > 0.99
    figures = report["generated"]
    assert figures["mask_iou"] > 0.85
    assert figures["binding"]["accuracy"] > 0.9 and figures["binding_swapped"]["accuracy"] > 0.9
    assert figures["binding"]["own"] > 0.8 > 0.4 > figures["binding"]["other"]
    assert figures["identity"] == 1.0
    assert report["seeds"] == list(range(1_000_000, 1_000_004))
    assert figures["with_first_frame"]["identities_judged"] == 4
    assert report["router"]["change_on_static"] == report["router"]["change_on_static_of_truth"]
    assert report["ceiling"] == figures
    assert "truth on 4 held-out puppet scenes" in table(report) and "binding swapped" in table(report)


@pytest.mark.slow
def test_shuffled_scenes_score_at_chance():
    report = evaluate(None, SceneSettings(scenes=12), reference="shuffled")
    assert report["router"]["headline_iou"] < 0.4
    figures = report["generated"]
    judged = figures["binding"]["judged"]
    assert figures["binding"]["chance"] == 0.5 and judged >= 18
    accuracy = (figures["binding"]["accuracy"] + figures["binding_swapped"]["accuracy"]) / 2
    assert abs(accuracy - 0.5) < 3 * 0.5 / math.sqrt(2 * judged)
    assert figures["identity"] < 0.125 + 3 * math.sqrt(0.125 * 0.875 / 24)
    assert figures["mask_iou"] < 0.6 < report["ceiling"]["mask_iou"]


def test_mixed_scenes_cover_all_combinations():
    settings = SceneSettings(scenes=32, characters="mixed")
    kinds = {(settings.num_characters(k), k % 2 == 0, talk_of(k), k % 8) for k in range(32)}
    assert len(kinds) == 32 and {kind[0] for kind in kinds} == {1, 2, 3, 4}
    assert sorted(settings.num_characters(k) for k in range(8)) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert settings.version != SETTINGS.version
    scene = suite_scene(settings, 4)
    assert len(scene.clip.portraits) == settings.num_characters(4) == 3 and scene.references.shape[:2] == (3, 8)


@pytest.mark.slow
def test_report_resume_and_groups():
    settings = SceneSettings(scenes=8, characters="mixed")
    complete = puppet_report(SceneEvaluator.create(None, settings, Measurements()))
    assert set(complete["generated"]["by"]) >= {"n = 1", "n = 2", "n = 3", "n = 4"}
    assert complete["generated"]["by"]["n = 4"]["identities_judged"] == 8
    assert complete["generated"]["by"]["n = 1"]["binding"]["judged"] == 0
    saved: list[dict] = []
    first = puppet_report(SceneEvaluator.create(None, replace(settings, scenes=5), Measurements()), save=saved.append)
    assert len(saved) == 5 and saved[2]["seeds"] == complete["seeds"][:3]
    steps: list[int] = []
    previous = json.loads(json.dumps(first))
    evaluator = SceneEvaluator.create(None, settings, Measurements())
    resumed = puppet_report(evaluator, previous=previous, callback=lambda progress: steps.append(progress.step))
    assert steps == [5, 6, 7, 8]
    for part in ("router", "generated", "ceiling", "scenes", "settings"):
        assert json.dumps(resumed[part]) == json.dumps(complete[part])
    other = SceneEvaluator.create(None, replace(settings, scenes=1, references=9), Measurements(generate=False))
    puppet_report(other, previous=previous, callback=lambda progress: steps.append(progress.step))
    assert steps[4:] == [0, 1], "scenes of other settings are not reused"


@pytest.mark.slow
def test_multiple_processes_return_the_same_rows(monkeypatch):
    # the processes inherit the path, but not the operators that the tests declare for torchvision
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(torchvision_shim.ASIDE)])
    settings = SceneSettings(scenes=2, characters="mixed")
    create = functools.partial(SceneEvaluator.create, None, settings, Measurements(generate=False))
    expected = puppet_report(create())
    report = puppet_report(create(), row_source=in_processes(create, 2))
    assert report["scenes"] == expected["scenes"] and report["router"] == expected["router"]


@pytest.mark.parametrize("characters", [1, 2, 3])
def test_segmentation(characters):
    clips = [make_clip(1_000_100 + k, characters) for k in range(4)]
    ious = [mean_iou(segment_characters(c.frames, c.portraits, shared_rgb=MOUTH_RGB), c.masks) for c in clips]
    assert np.mean(ious) > 0.8


def test_redrawn_clip_moves_the_assigned_mouth():
    scene = suite_scene(SETTINGS, 0)
    clip = redrawn(scene, SETTINGS, scene.swapped)
    assert np.allclose(clip.opening, scene.clip.opening[::-1])
    assert redrawn(scene, SETTINGS, scene.clip.matrix) is scene.clip
    video = GeneratedVideo(clip.frames, GRID.pixels_to_tokens(torch.from_numpy(clip.masks)).numpy())
    swapped, given = (evaluate_clip(video, scene, m, GRID).binding for m in (scene.swapped, scene.clip.matrix))
    assert swapped.correct[swapped.judged].all() and not given.correct[given.judged].any()


def test_black_video_scores_zero():
    scene = suite_scene(SETTINGS, 1)
    video = GeneratedVideo(np.zeros_like(scene.clip.frames), np.zeros((2, 5, 8, 12)))
    metrics = evaluate_clip(video, scene, scene.clip.matrix, GRID)
    assert metrics.mask_iou == 0.0 and not any(metrics.identity)
    assert not metrics.binding.correct.any()


def test_scene_selection():
    with pytest.raises(InputError, match="used for training"):
        SceneSettings(seed_base=5)
    scenes = all_scenes(SceneSettings(scenes=8))
    assert [scene.first_frame for scene in scenes] == [True, False] * 4
    assert sum((scene.loudness.max(1) > 0).sum() == 1 for scene in scenes) == 2
    for scene in scenes:
        assert scene.references.shape[:2] == (2, 8)
        assert np.array_equal(scene.references[1, 0], scene.clip.portraits[1])
        assert np.array_equal(scene.references[1, 1], scene.clip.portraits[0])


def test_predict_masks(bundle):
    settings = SceneSettings(scenes=1, num_frames=9)
    target = ModelTarget(bundle, settings, SHARES)
    assert [p.noise for p in target.points] == sorted((p.noise for p in target.points), reverse=True)
    scene = suite_scene(settings, 0)
    early = target.predict_masks(scene, target.points[0], first_frame=True)
    late = target.predict_masks(scene, target.points[-1], first_frame=True)
    assert early.shape == (2, 2, 3, 4, 6) and not np.allclose(early, late)
    assert np.array_equal(late, target.predict_masks(scene, target.points[-1], first_frame=True))
    assert not np.allclose(late, target.predict_masks(scene, target.points[-1], first_frame=False))


def test_report_of_random_model(bundle):
    settings = SceneSettings(scenes=2, num_frames=9)
    report = evaluate(bundle, settings, steps=2)
    assert json.loads(json.dumps(report))["seeds"] == [1_000_000, 1_000_001]
    assert report["settings"]["sampling"]["steps"] == 2
    assert len(report["settings"]["transformer_sha256"]) == 64
    assert len(report["router"]["points"]) == 5 and len(report["router"]["per_layer"]) == 2
    assert report["seconds"] > 0 and report["codec_ceiling"] is None
    assert "| binding swapped |" in table(report)
    assert evaluate(bundle, settings, steps=2)["scenes"] == report["scenes"]


def test_evaluate_command(tmp_path, capsys):
    path = tmp_path / "truth.json"
    options = EvaluateOptions(model="truth", scenes=1, json=path, generate=False)
    main(options)
    report = json.loads(path.read_text())
    assert report["router"]["headline_iou"] > 0.99 and report["generated"] is None and "torch" in report["versions"]
    assert "truth on 1 held-out puppet scenes" in (text := capsys.readouterr().out) and "generated clips" not in text
    path.write_text(json.dumps({key: value for key, value in report.items() if key != "scenes"}))
    main(options)  # a published report without rows is computed again
    assert json.loads(path.read_text())["scenes"] == report["scenes"]
    with pytest.raises(InputError, match="--json"):
        main(replace(options, json=tmp_path / "nowhere" / "a.json"))
    path.write_text('{"suite": "routers"}')
    with pytest.raises(InputError, match="suite puppets"):
        main(options)
