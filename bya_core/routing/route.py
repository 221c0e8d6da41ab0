"""Which router runs (`find`), and what is done to its masks before they act (`finish`)."""

from __future__ import annotations

from dataclasses import replace

import torch

from bya_core.progress import ProgressTracker
from bya_core.routing.intra import probe
from bya_core.routing.result import Routing, confidences
from bya_core.sampling.prepared import Prepared
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle


@torch.no_grad()
def route(prepared: Prepared, bundle: ModelBundle, tracker: ProgressTracker | None = None) -> Routing:
    """Masks of a scene by the router it asks for, refined and overridden as it says.

    Raises:
        InputError: what the chosen router cannot do with this scene.
        Cancelled: the watcher asked to stop.
    """
    return finish(find(prepared, bundle, tracker), prepared.scene)


@torch.no_grad()
def find(prepared: Prepared, bundle: ModelBundle, tracker: ProgressTracker | None = None) -> Routing:
    """What the scene's router says, and nothing done to it yet. Raises as `route` does.

    Masks that a person gave act already while a router denoises: a run that is gone on with has obeyed them from its
    first step.
    """
    scene, tracker, control = prepared.scene, tracker or ProgressTracker(), prepared.scene.mask_control
    if control is not None:
        if scene.routing.mode == "manual":
            return Routing("manual", control, confidences(control.masks), scene.matrix)
        if control.is_active:
            prepared = replace(prepared, conditions=replace(prepared.conditions, mask_control=control))
    if scene.routing.mode == "pre":
        from bya_core.routing.pre import route_pre

        return route_pre(prepared, bundle, tracker)
    if scene.routing.mode == "post":
        from bya_core.routing.post import route_post

        return route_post(prepared, bundle, tracker)
    return probe(prepared, bundle, tracker)


def finish(routing: Routing, scene: Scene) -> Routing:
    """What the scene wants done to a router's masks: cleaned, a person's masks laid over them, held still.

    An intra router's masks that nothing is done to are not forced: it goes on deciding, step by step. A person's masks
    are not cleaned.
    """
    if routing.origin != "manual":
        if scene.routing.refine is not None:
            from bya_core.routing.refine import refine

            routing = refine(routing, scene.routing.refine)
        if scene.mask_control is not None:
            routing = routing.override(scene.mask_control)
    return routing.static() if scene.routing.static else routing
