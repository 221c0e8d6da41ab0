"""What others do, on the same weights: each baseline makes the whole scene, and differs in what it says it does."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bya_core.config import SamplingConfig
from bya_core.weights.bundle import ModelBundle, NativeSize
from tests.fakes import FakeCodec, FakeFace, FakeSpeech, FakeText, fake_transformer
from training.benchmark import baselines
from training.benchmark.page import Keeper
from training.benchmark.router_suite import BASELINES, router_report, router_scene, router_table
from training.benchmark.scenes import SceneSettings
from training.benchmark.subjects import ModelSubject

SETTINGS = SceneSettings(scenes=1, seed_base=2_000_500, num_frames=9)


@pytest.fixture(scope="module")
def subject() -> ModelSubject:
    bundle = ModelBundle(
        "random", fake_transformer(), FakeText(), FakeFace(), FakeSpeech(), FakeCodec(), {},
        NativeSize(64, 96, 9), SamplingConfig(steps=2, guidance_scale=2.0, audio_guidance_scale=2.0),
    )  # fmt: skip
    return ModelSubject(bundle, SETTINGS, (0.5,))


def test_halves_are_strips_from_left_to_right(subject):
    scene = router_scene(SETTINGS, 0)
    made = baselines.make_baseline("halves", subject, scene, scene.clip.matrix)
    left, right = baselines.left_to_right(scene.clip)
    assert made.frames.shape == scene.clip.frames.shape
    middle = subject.grid.width // 2
    assert (made.masks[left, ..., :middle] == 1).all() and (made.masks[left, ..., middle:] == 0).all()
    assert (made.masks[left] + made.masks[right] == 1).all()
    middles = [scene.clip.mouth_centres[n, 0, 0] for n in (left, right)]
    assert middles[0] < middles[1]


def test_concat_pastes_people_made_alone(subject, monkeypatch):
    people, asked = 3, []
    plain = baselines._run

    def spy(subject, scene, forced=None):
        asked.append(scene)
        return plain(subject, scene, forced)

    monkeypatch.setattr(baselines, "_run", spy)
    settings = replace(SETTINGS, characters=people)
    alone = ModelSubject(subject.bundle, settings, ())
    scene = router_scene(settings, 0)
    swapped = np.roll(scene.clip.matrix, 1, axis=0)
    made = baselines.make_baseline("concat", alone, scene, swapped)
    assert made.frames.shape == scene.clip.frames.shape and made.masks.shape == (people, *alone.grid.shape)
    assert [len(one.characters) for one in asked] == [1] * people
    for n, one in zip(baselines.left_to_right(scene.clip), asked, strict=True):
        assert one.characters[0].name == f"puppet {n + 1}" and scene.clip.looks[n].describe() in one.prompt
        heard = int(swapped[:, n].argmax())
        assert torch.equal(one.speeches[0].waveform[0], torch.from_numpy(scene.clip.speeches[heard]))
        assert one.prompt.startswith("One puppet before ") and one.first_frame.shape == (3, 64, 96)


def test_mixed_lets_everybody_hear_everything(subject, monkeypatch):
    asked = []
    monkeypatch.setattr(baselines, "_run", lambda subject, scene, forced=None: asked.append(scene))
    scene = router_scene(SETTINGS, 0)
    baselines.make_baseline("mixed", subject, scene, scene.clip.matrix)
    assert len(asked[0].speeches) == 1 and asked[0].matrix.tolist() == [[1.0, 1.0]]
    assert torch.equal(asked[0].speeches[0].waveform[0], torch.from_numpy(scene.clip.mix))


def test_tokens_are_told_apart_one_by_one(subject):
    """A classifier of tokens learns from their scores alone, and knows nothing of their neighbours."""
    torch.manual_seed(0)
    classifier = baselines.fit_classifier(subject, clips=2, steps=4)
    grid = subject.grid
    query, key = torch.randn(1, 2, grid.tokens, 8), torch.randn(1, 3, 2, 4, 8)
    classifier = baselines.TokenClassifier(1, 8, 16)
    logits, masks = classifier(query, key, 0, grid)
    assert logits.shape == (1, 4, *grid.shape) and masks.shape == (1, 3, *grid.shape)
    assert set(masks.unique().tolist()) <= {0.0, 1.0} and masks.sum(dim=1).max() <= 1
    order = torch.randperm(grid.tokens)
    shuffled = classifier(query[:, :, order], key, 0, grid)[0].flatten(2)
    assert torch.allclose(shuffled, logits.flatten(2)[..., order], atol=1e-5)
    scores = baselines.relevance(query, key)
    assert scores[0, 1, 5, 6] == pytest.approx(float(query[0, 1, 5] @ key[0, 1, 1, 2]) / 8**0.5, abs=1e-5)


def test_all_baselines_in_one_table(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "FIT_CLIPS", 1)
    monkeypatch.setattr(baselines.fit_classifier, "__defaults__", (1, 3))
    ways = {name: way for name, way in BASELINES.items() if name not in ("boxes", "pre")}  # they need real detection
    report = router_report(subject, ways, table=BASELINES, keeper=Keeper(tmp_path))
    assert report["suite"] == "baselines" and [row["way"] for row in report["rows"]] == list(ways)
    assert json.loads(json.dumps(report["rows"]))[0]["calls"] == 2 * 2, "two people, each alone"
    table = router_table(report)
    assert "ingredients-style" in table and "likeness" in table
    assert len(list(tmp_path.glob("videos/*/*.mp4"))) == len(ways)
    assert subject.bundle.transformer.router is not None
    assert not isinstance(subject.bundle.transformer.router, baselines.TokenClassifier), "the model is left as it was"
