"""Every router through the one door, with what may be done to its masks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bya_core.config import RefineConfig, RouterConfig
from bya_core.masks import MaskControl
from bya_core.pipelines.generate import prepare
from bya_core.routing.route import route
from bya_core.weights.loader import load_bundle
from bya_core.weights.registry import MODELS
from tests.unit.routing.calls import counted
from tests.unit.routing.puppet_scene import VALIDATION, puppet_scene, two_puppets

STEPS = 5

pytestmark = pytest.mark.skipif(not MODELS["toy"].available, reason="the toy model's weights are not here")


@pytest.fixture(scope="module")
def made():
    """Bundle, prepared scene, true masks [2, T, h, w]."""
    bundle = load_bundle("toy")
    clip = two_puppets(VALIDATION + 5, 9)
    prepared = prepare(puppet_scene(bundle, clip, STEPS), bundle)
    return bundle, prepared, prepared.grid.pixels_to_tokens(torch.from_numpy(clip.masks))


@pytest.mark.parametrize(("mode", "calls"), [("intra", 2), ("pre", 0), ("post", STEPS + 1), ("manual", 0)])
@pytest.mark.parametrize("more", [{}, {"static": True}, {"refine": RefineConfig()}])
def test_all_routers_find_the_people(made, mode, calls, more):
    bundle, prepared, truth = made
    given = MaskControl(truth) if mode == "manual" else None
    scene = replace(prepared.scene, routing=RouterConfig(mode=mode, **more), mask_control=given)
    with counted(bundle.transformer) as counter:
        found = route(replace(prepared, scene=scene), bundle)
    assert found.origin == mode and found.calls == len(counter) == calls
    own, true = found.masks > 0.5, truth > 0.5
    assert ((own & true).sum((1, 2, 3)) / (own | true).sum((1, 2, 3)) > 0.6).all()
    left_alone = mode == "intra" and not more
    assert (found.control.strength == (0 if left_alone else 1)).all()
    assert (found.state is not None) == (mode == "intra"), "only the intra router has begun the video"
    if more.get("static"):
        assert torch.equal(found.masks, found.masks[:, :1].expand_as(found.masks))
