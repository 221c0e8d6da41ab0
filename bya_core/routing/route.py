"""Which router runs, and what is done to its masks before they act."""

from __future__ import annotations

import torch

from bya_core.checkpoints.bundle import ModelBundle
from bya_core.prepare import Prepared
from bya_core.progress import Work
from bya_core.routing.intra import probe
from bya_core.routing.result import Routing
from bya_core.scene import Scene


@torch.no_grad()
def route(prepared: Prepared, bundle: ModelBundle, work: Work | None = None) -> Routing:
    """Masks of a scene by the router it asks for, refined and overridden as it says.

    Raises:
        InputError: what the chosen router cannot do with this scene.
        Cancelled: the watcher asked to stop.
    """
    scene, work = prepared.scene, work or Work()
    if scene.routing.mode == "manual":
        assert scene.forced_masks is not None  # the scene has checked it
        routing = Routing.of("manual", scene.forced_masks, scene.matrix, forced=False)
    else:
        routing = probe(prepared, bundle, work)
    return with_given_masks(routing, scene)


def with_given_masks(routing: Routing, scene: Scene) -> Routing:
    """The masks a person gave, over those of the router."""
    if scene.forced_masks is None:
        return routing
    count = len(scene.characters)
    blend = torch.ones(count) if scene.forced_blend is None else scene.forced_blend
    span = torch.tensor([[0.0, 1.0]]).expand(count, 2) if scene.forced_span is None else scene.forced_span
    return routing.override(scene.forced_masks, blend, span)
