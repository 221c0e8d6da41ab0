"""Selection of the router (`predict_masks`) and postprocessing of its masks (`postprocess_masks`)."""

from __future__ import annotations

from dataclasses import replace

import torch

from bya_core.progress import ProgressTracker
from bya_core.routing.intra import probe
from bya_core.routing.result import Routing, confidences
from bya_core.sampling.conditions import Prepared
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle


@torch.no_grad()
def route(prepared: Prepared, bundle: ModelBundle, tracker: ProgressTracker | None = None) -> Routing:
    """Character masks of a scene from the configured router, with refinement and given masks applied.

    Raises:
        InputError: the router cannot be used for this scene.
        Cancelled: the progress callback cancelled.
    """
    return postprocess_masks(predict_masks(prepared, bundle, tracker), prepared.scene)


@torch.no_grad()
def predict_masks(prepared: Prepared, bundle: ModelBundle, tracker: ProgressTracker | None = None) -> Routing:
    """Masks of the configured router without postprocessing. Raises as `route` does.

    Given masks already act while a router denoises, so that a resumed run has used them from its first step.
    """
    scene, tracker, control = prepared.scene, tracker or ProgressTracker(), prepared.scene.mask_control
    if control is not None:
        if scene.routing.mode == "manual":
            return Routing("manual", control, confidences(control.masks), scene.matrix)
        if control.is_active:
            prepared = replace(prepared, conditions=replace(prepared.conditions, mask_control=control))
    if scene.routing.mode == "pre":
        from bya_core.routing.pre import route_pre

        routing = route_pre(prepared, bundle, tracker)
    elif scene.routing.mode == "post":
        from bya_core.routing.post import route_post

        routing = route_post(prepared, bundle, tracker)
    else:
        routing = probe(prepared, bundle, tracker)
    return replace(routing, notices=tuple(dict.fromkeys((*routing.notices, *tracker.notices))))


def postprocess_masks(routing: Routing, scene: Scene) -> Routing:
    """Refine the masks of a router, apply given masks, and make them static, as configured by the scene.

    Unmodified masks of the intra router do not act: the router keeps predicting in every step. Given masks are not
    refined.
    """
    if routing.origin != "manual":
        if scene.routing.refine is not None:
            from bya_core.routing.refine import refine

            routing = refine(routing, scene.routing.refine)
        if scene.mask_control is not None:
            routing = routing.override(scene.mask_control)
    return routing.static() if scene.routing.static else routing
