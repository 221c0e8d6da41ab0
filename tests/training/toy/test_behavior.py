"""Shipped weights: mouths follow their own speech, also with swapped speeches."""

from __future__ import annotations

import numpy as np
import pytest

from bya_core.toy.mouth import mouth_opening
from bya_core.toy.segmentation import segment_characters
from bya_core.weights.loader import load_bundle
from bya_core.weights.registry import MODELS
from training.benchmark.puppet_report import Measurements, SceneEvaluator, puppet_report
from training.benchmark.scenes import SceneSettings, redrawn, suite_scene
from training.benchmark.targets import ModelTarget
from training.puppets.looks import MOUTH_RGB

SETTINGS = SceneSettings(scenes=6, seed_base=3_000_000)
STEPS = 10


@pytest.fixture(scope="module")
def bundle():
    if not MODELS["toy"].available:
        pytest.skip("no weights of the toy model")
    return load_bundle("toy")


@pytest.fixture(scope="module")
def report(bundle):
    return puppet_report(SceneEvaluator.create(bundle, SETTINGS, Measurements(), STEPS))


def test_router_masks(report):
    assert report["router"]["headline_iou"] >= 0.6
    by_noise = [point["with_first_frame"] for point in report["router"]["points"]]
    assert by_noise[-1] > by_noise[0]


@pytest.mark.parametrize("matrix", ["binding", "binding_swapped"])
def test_mouths_follow_their_speech(report, matrix):
    metrics = report["generated"][matrix]
    assert metrics["accuracy"] >= 0.6
    assert metrics["own"] > metrics["other"] + 0.2


def test_identity(report):
    assert report["generated"]["identity"] >= 0.75
    assert report["generated"]["mask_iou"] >= 0.5


def test_first_frame_and_speech(bundle):
    """Mouths follow swapped speeches although the first frame shows other mouths."""
    target = ModelTarget(bundle, SETTINGS, (), STEPS)
    generated, drawn, expected = [], [], []
    for scene in (suite_scene(SETTINGS, index) for index in (0, 2, 4)):
        frames = target.generate(scene, [scene.swapped])[0].frames
        difference = frames[0].astype(float) - scene.clip.frames[0]
        assert 10 * np.log10(255**2 / np.mean(difference**2)) > 25  # dB
        regions = segment_characters(frames, scene.clip.portraits, shared_rgb=MOUTH_RGB)
        generated.append(mouth_opening(frames, regions, MOUTH_RGB)[:, 3:])
        drawn.append(scene.clip.opening[:, 3:])
        expected.append(redrawn(scene, SETTINGS, scene.swapped).opening[:, 3:])
    mouths, swapped, original = (np.concatenate(tracks).ravel() for tracks in (generated, expected, drawn))
    correlation, other = (np.corrcoef(mouths, tracks)[0, 1] for tracks in (swapped, original))
    assert correlation > 0.7 and correlation > other + 0.4, (correlation, other)
