"""The shipped weights do what they are for: this mouth follows this voice, and the other one when voices swap."""

from __future__ import annotations

import pytest

from bya_core.checkpoints.registry import MODELS, load_bundle
from training.benchmark.scenes import SceneSettings
from training.evaluate import evaluate


@pytest.fixture(scope="module")
def report():
    if not MODELS["tiny"].present:
        pytest.skip("the tiny model's weights are not here")
    return evaluate(load_bundle("tiny"), SceneSettings(scenes=6, seed_base=3_000_000), steps=10)


def test_router_finds_people_with_its_own_masks(report):
    assert report["router"]["headline_iou"] >= 0.6
    by_noise = [point["with_first_frame"] for point in report["router"]["points"]]
    assert by_noise[-1] > by_noise[0], "less noise, better masks"


@pytest.mark.parametrize("matrix", ["binding", "binding_swapped"])
def test_mouths_follow_the_voice_they_are_given(report, matrix):
    figures = report["generated"][matrix]
    assert figures["accuracy"] >= 0.6
    assert figures["own"] > figures["other"] + 0.2


def test_people_look_like_their_portraits(report):
    assert report["generated"]["identity"] >= 0.75
    assert report["generated"]["mask_iou"] >= 0.5
