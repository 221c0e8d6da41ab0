"""All router modes through `route`, with refinement and static masks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bya_core.config import RefineConfig, RouterConfig
from bya_core.masks import MaskControl
from bya_core.pipelines.generate import prepare
from bya_core.routing.route import route
from bya_core.weights.loader import load_bundle
from tests.unit.routing.calls import record_calls
from tests.unit.routing.puppet_scene import VALIDATION, needs_toy, puppet_scene, two_puppets

STEPS = 5
pytestmark = needs_toy


@pytest.fixture(scope="module")
def example():
    """Bundle, prepared scene, true masks [2, T, h, w]."""
    bundle = load_bundle("toy")
    clip = two_puppets(VALIDATION + 5, 9)
    prepared = prepare(puppet_scene(bundle, clip, STEPS), bundle)
    return bundle, prepared, prepared.grid.pixels_to_tokens(torch.from_numpy(clip.masks))


@pytest.mark.parametrize(("mode", "calls"), [("intra", 2), ("pre", 0), ("post", STEPS + 1), ("manual", 0)])
@pytest.mark.parametrize("options", [{}, {"static": True}, {"refine": RefineConfig()}])
def test_route(example, mode, calls, options):
    bundle, prepared, truth = example
    control = MaskControl(truth) if mode == "manual" else None
    scene = replace(prepared.scene, routing=RouterConfig(mode=mode, **options), mask_control=control)
    with record_calls(bundle.transformer) as recorded:
        routing = route(replace(prepared, scene=scene), bundle)
    assert routing.origin == mode and routing.calls == len(recorded) == calls
    predicted, true = routing.masks > 0.5, truth > 0.5
    assert ((predicted & true).sum((1, 2, 3)) / (predicted | true).sum((1, 2, 3)) > 0.6).all()
    assert (routing.control.strength == (0 if mode == "intra" and not options else 1)).all()
    assert (routing.state is not None) == (mode == "intra")
    if options.get("static"):
        assert torch.equal(routing.masks, routing.masks[:, :1].expand_as(routing.masks))
