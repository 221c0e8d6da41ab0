"""The examination examined: truth scores about 1, other scenes at chance, a random model can be asked."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from bya_core.config import SamplingConfig
from bya_core.errors import InputError
from bya_core.evaluation import mask_metrics as masks
from bya_core.grid import TokenGrid
from bya_core.toy.segmentation import segment_characters
from bya_core.weights.bundle import ModelBundle, NativeSize
from tests.fakes import FakeCodec, FakeFace, FakeSpeech, FakeText, fake_transformer
from training.benchmark.puppet_report import Examiner, Wanted, in_processes, puppet_report
from training.benchmark.puppet_suite import SHARES, all_scenes, judge
from training.benchmark.scenes import SceneSettings, redrawn, suite_scene, talk_of
from training.benchmark.subjects import Made, ModelSubject
from training.evaluate import Arguments, evaluate, main, table
from training.puppets.looks import MOUTH_RGB
from training.puppets.world import make_clip

SETTINGS = SceneSettings(scenes=4)
GRID = TokenGrid.from_pixels(17, 64, 96, space_factor=4)


def test_truth_scores_about_one():
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


@pytest.mark.slow
def test_other_scenes_score_at_chance():
    report = evaluate(None, SceneSettings(scenes=12), stand_in="shuffled")
    assert report["router"]["headline_iou"] < 0.4
    figures = report["generated"]
    judged = figures["binding"]["judged"]
    assert figures["binding"]["chance"] == 0.5 and judged >= 18
    pooled = (figures["binding"]["accuracy"] + figures["binding_swapped"]["accuracy"]) / 2
    assert abs(pooled - 0.5) < 3 * 0.5 / math.sqrt(2 * judged)
    assert figures["identity"] < 0.125 + 3 * math.sqrt(0.125 * 0.875 / 24)
    assert figures["mask_iou"] < 0.6 < report["ceiling"]["mask_iou"]


def test_a_mixed_list_holds_every_combination():
    settings = SceneSettings(scenes=32, characters="mixed")
    kinds = {(settings.people(k), k % 2 == 0, talk_of(k), k % 8) for k in range(32)}
    assert len(kinds) == 32 and {kind[0] for kind in kinds} == {1, 2, 3, 4}
    assert sorted(settings.people(k) for k in range(8)) == [1, 1, 2, 2, 3, 3, 4, 4]
    assert settings.version != SETTINGS.version
    scene = suite_scene(settings, 4)
    assert len(scene.clip.portraits) == settings.people(4) == 3 and scene.references.shape[:2] == (3, 8)


@pytest.mark.slow
def test_scenes_are_gone_on_with_and_pooled_apart():
    settings = SceneSettings(scenes=8, characters="mixed")
    whole = puppet_report(Examiner.of(None, settings, Wanted()))
    assert set(whole["generated"]["by"]) >= {"n = 1", "n = 2", "n = 3", "n = 4"}
    assert whole["generated"]["by"]["n = 4"]["identities_judged"] == 8
    assert whole["generated"]["by"]["n = 1"]["binding"]["judged"] == 0
    written: list[dict] = []
    first = puppet_report(Examiner.of(None, replace(settings, scenes=5), Wanted()), save=written.append)
    assert len(written) == 5 and written[2]["seeds"] == whole["seeds"][:3]
    asked: list[str] = []
    known = json.loads(json.dumps(first))
    rest = puppet_report(Examiner.of(None, settings, Wanted()), known=known, tick=asked.append)
    assert len(asked) == 3 * 3, "router, video and drawn truth of the three scenes that were missing"
    for part in ("router", "generated", "ceiling", "scenes", "settings"):
        assert json.dumps(rest[part]) == json.dumps(whole[part])
    other = replace(settings, scenes=1, references=9)
    puppet_report(Examiner.of(None, other, Wanted(generate=False)), known=known, tick=asked.append)
    assert len(asked) == 10, "scenes of other settings are not taken over"


@pytest.mark.slow
def test_several_processes_give_the_same_rows():
    settings = SceneSettings(scenes=2, characters="mixed")
    load = functools.partial(Examiner.of, None, settings, Wanted(generate=False))
    alone = puppet_report(load())
    shared = puppet_report(load(), elsewhere=in_processes(load, 2))
    assert shared["scenes"] == alone["scenes"] and shared["router"] == alone["router"]


@pytest.mark.parametrize("characters", [1, 2, 3])
def test_people_are_segmented_from_drawn_pixels(characters):
    clips = [make_clip(1_000_100 + k, characters) for k in range(4)]
    found = [segment_characters(c.frames, c.portraits, shared_rgb=MOUTH_RGB) for c in clips]
    scores = [masks.mean_iou(mine, clip.masks) for mine, clip in zip(found, clips, strict=True)]
    assert np.mean(scores) > 0.8


def test_swapped_voices_move_the_other_mouth():
    scene = suite_scene(SETTINGS, 0)
    clip = redrawn(scene, SETTINGS, scene.swapped)
    assert np.allclose(clip.opening, scene.clip.opening[::-1])
    assert redrawn(scene, SETTINGS, scene.clip.matrix) is scene.clip
    made = Made(clip.frames, GRID.pixels_to_tokens(_tensor(clip.masks)).numpy())
    right, wrong = (judge(made, scene, matrix, GRID).binding for matrix in (scene.swapped, scene.clip.matrix))
    assert right.correct[right.judged].all() and not wrong.correct[wrong.judged].any()


def test_a_black_video_without_masks_scores_nothing():
    scene = suite_scene(SETTINGS, 1)
    made = Made(np.zeros_like(scene.clip.frames), np.zeros((2, 5, 8, 12)))
    result = judge(made, scene, scene.clip.matrix, GRID)
    assert result.mask_iou == 0.0 and not any(result.identity)
    assert not result.binding.correct.any()


def test_scenes_are_held_out_and_varied():
    with pytest.raises(InputError, match="trained on"):
        SceneSettings(seed_base=5)
    scenes = all_scenes(SceneSettings(scenes=8))
    assert [scene.first_frame for scene in scenes] == [True, False] * 4
    assert sum((scene.loudness.max(1) > 0).sum() == 1 for scene in scenes) == 2
    for scene in scenes:
        assert scene.references.shape[:2] == (2, 8)
        assert np.array_equal(scene.references[1, 0], scene.clip.portraits[1])
        assert np.array_equal(scene.references[1, 1], scene.clip.portraits[0])


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return ModelBundle(
        "random", fake_transformer(), FakeText(), FakeFace(), FakeSpeech(), FakeCodec(), {},
        NativeSize(64, 96, 9), SamplingConfig(steps=5, guidance_scale=2.0, audio_guidance_scale=2.0),
    )  # fmt: skip


def test_a_model_is_asked_with_its_own_masks_at_each_point(bundle):
    settings = SceneSettings(scenes=1, num_frames=9)
    subject = ModelSubject(bundle, settings, SHARES)
    assert [p.noise for p in subject.points] == sorted((p.noise for p in subject.points), reverse=True)
    scene = suite_scene(settings, 0)
    early = subject.find(scene, subject.points[0], first_frame=True)
    late = subject.find(scene, subject.points[-1], first_frame=True)
    assert early.shape == (2, 2, 3, 4, 6) and not np.allclose(early, late)
    assert np.array_equal(late, subject.find(scene, subject.points[-1], first_frame=True))
    assert not np.allclose(late, subject.find(scene, subject.points[-1], first_frame=False))


def test_report_of_a_random_model_is_complete(bundle):
    report = evaluate(bundle, SceneSettings(scenes=2, num_frames=9), steps=2)
    assert json.loads(json.dumps(report))["seeds"] == [1_000_000, 1_000_001]
    assert report["settings"]["sampling"]["steps"] == 2
    assert len(report["settings"]["transformer_sha256"]) == 64
    assert len(report["router"]["points"]) == 5 and len(report["router"]["per_layer"]) == 2
    assert report["seconds"] > 0 and report["codec_ceiling"] is None
    assert "binding swapped" in table(report)
    again = evaluate(bundle, SceneSettings(scenes=2, num_frames=9), steps=2)
    assert again["router"] == report["router"] and again["scenes"] == report["scenes"]


def test_command_writes_its_report(tmp_path, capsys):
    path = tmp_path / "truth.json"
    main(Arguments(model="truth", scenes=1, json=path))
    assert json.loads(path.read_text())["generated"]["identity"] == 1.0
    assert "truth on 1 held-out puppet scenes" in capsys.readouterr().out
    with pytest.raises(InputError, match="--json"):
        main(Arguments(model="truth", scenes=1, json=tmp_path / "nowhere" / "a.json"))
    router_only = evaluate(None, SceneSettings(scenes=1), generate=False)
    assert router_only["generated"] is None and "generated" not in table(router_only)


def _tensor(array: np.ndarray):
    import torch

    return torch.from_numpy(array)
