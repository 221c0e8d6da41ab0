"""Baselines on a random model."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from training.benchmark import baselines
from training.benchmark.gallery import VideoStore
from training.benchmark.router_suite import BASELINES, router_report, router_table
from training.benchmark.scenes import SceneSettings, router_scene
from training.benchmark.targets import ModelTarget

SETTINGS = SceneSettings(scenes=1, seed_base=2_000_500, num_frames=9)


@pytest.fixture(scope="module")
def target(random_bundle) -> ModelTarget:
    return ModelTarget(random_bundle(2), SETTINGS, (0.5,))


def test_halves(target):
    scene = router_scene(SETTINGS, 0)
    video = baselines.generate_baseline("halves", target, scene, scene.clip.matrix)
    left, right = baselines.left_to_right(scene.clip)
    assert video.frames.shape == scene.clip.frames.shape
    middle = target.grid.width // 2
    assert (video.masks[left, ..., :middle] == 1).all() and (video.masks[left, ..., middle:] == 0).all()
    assert (video.masks[left] + video.masks[right] == 1).all()
    centers = [scene.clip.mouth_centers[n, 0, 0] for n in (left, right)]
    assert centers[0] < centers[1]


def test_concat(target, monkeypatch):
    count, scenes = 3, []
    plain = baselines._generate

    def spy(target, scene, given_masks=None):
        scenes.append(scene)
        return plain(target, scene, given_masks)

    monkeypatch.setattr(baselines, "_generate", spy)
    settings = replace(SETTINGS, characters=count)
    alone = ModelTarget(target.bundle, settings, ())
    scene = router_scene(settings, 0)
    swapped = np.roll(scene.clip.matrix, 1, axis=0)
    video = baselines.generate_baseline("concat", alone, scene, swapped)
    assert video.frames.shape == scene.clip.frames.shape and video.masks.shape == (count, *alone.grid.shape)
    assert [len(one.characters) for one in scenes] == [1] * count
    for n, one in zip(baselines.left_to_right(scene.clip), scenes, strict=True):
        assert one.characters[0].name == f"puppet {n + 1}" and scene.clip.looks[n].describe() in one.prompt
        stream = int(swapped[:, n].argmax())
        assert torch.equal(one.speeches[0].waveform[0], torch.from_numpy(scene.clip.speeches[stream]))
        assert one.prompt.startswith("One puppet before ") and one.first_frame.shape == (3, 64, 96)


def test_mixed(target, monkeypatch):
    scenes = []
    monkeypatch.setattr(baselines, "_generate", lambda target, scene, given_masks=None: scenes.append(scene))
    scene = router_scene(SETTINGS, 0)
    baselines.generate_baseline("mixed", target, scene, scene.clip.matrix)
    assert len(scenes[0].speeches) == 1 and scenes[0].matrix.tolist() == [[1.0, 1.0]]
    assert torch.equal(scenes[0].speeches[0].waveform[0], torch.from_numpy(scene.clip.mix))


def test_token_classifier(target):
    torch.manual_seed(0)
    classifier = baselines.fit_classifier(target, clips=2, steps=4)
    grid = target.grid
    query, key = torch.randn(1, 2, grid.tokens, 8), torch.randn(1, 3, 2, 4, 8)
    classifier = baselines.TokenClassifier(1, 8, 16)
    logits, masks = classifier(query, key, 0, grid)
    assert logits.shape == (1, 4, *grid.shape) and masks.shape == (1, 3, *grid.shape)
    assert set(masks.unique().tolist()) <= {0.0, 1.0} and masks.sum(dim=1).max() <= 1
    order = torch.randperm(grid.tokens)
    shuffled = classifier(query[:, :, order], key, 0, grid)[0].flatten(2)
    assert torch.allclose(shuffled, logits.flatten(2)[..., order], atol=1e-5)
    scores = baselines.attention_scores(query, key)
    assert scores[0, 1, 5, 6] == pytest.approx(float(query[0, 1, 5] @ key[0, 1, 1, 2]) / 8**0.5, abs=1e-5)


def test_all_baselines_in_one_table(target, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "FIT_CLIPS", 1)
    monkeypatch.setattr(baselines.fit_classifier, "__defaults__", (1, 3))
    variants = {name: BASELINES[name] for name in BASELINES if name not in ("boxes", "pre")}  # without face detection
    report = router_report(target, variants, table=BASELINES, videos=VideoStore(tmp_path))
    assert report["suite"] == "baselines" and [row["way"] for row in report["rows"]] == list(variants)
    assert json.loads(json.dumps(report["rows"]))[0]["calls"] == 2 * 2  # two characters, two steps
    table = router_table(report)
    assert "ingredients-style" in table and "likeness" in table
    assert len(list(tmp_path.glob("videos/*/*.mp4"))) == len(variants)
    assert not isinstance(target.bundle.transformer.router, baselines.TokenClassifier)
