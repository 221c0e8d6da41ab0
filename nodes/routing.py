"""Who is where: the router's masks, and what a person does to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from bya_core.config import ProbeConfig, RefineConfig

from . import host, types
from .schema import schema

PROBE, REFINE = ProbeConfig(), RefineConfig()
REFINE_FIELDS = {"drop_below": "threshold", "regions": "max_regions", "smooth": "smoothing"}
MASKS_ORDER = "characters x latent frames pictures, all of the first character first"


class EmbeddingRouter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "EmbeddingRouter",
            "Embedding Router",
            "Finds out which part of the picture belongs to whom, and hands over masks and, in intra mode, the "
            "half-done video, so that nothing is computed twice.",
            search_aliases=["masks", "who is where", "binding"],
            inputs=[
                types.Scenery.Input("scene", tooltip="From Scene."),
                io.Combo.Input(
                    "mode",
                    options=["intra", "pre", "post", "manual"],
                    default="intra",
                    tooltip="intra: watched while denoising (best; costs nothing extra). pre: still masks from the "
                    "faces in the first frame (needs one). post: from a first, silent video (twice the time). "
                    "manual: only the masks you connect.",
                ),
                io.Combo.Input(
                    "binding",
                    options=["as given", "swapped", "auto"],
                    default="as given",
                    tooltip="Which voice moves whom. as given: each its own (or as matrix says). swapped: each voice "
                    "moves the next character. auto: voices are matched to faces; the report says how, and warns "
                    "where it is unsure.",
                ),
                io.String.Input(
                    "matrix",
                    default="",
                    tooltip="Audio-character matrix: one row a voice, one column a character, 0..1, rows parted by "
                    "';', such as 1 0; 0 1. Empty: each voice moves its own character.",
                ),
                io.Int.Input(
                    "probe_steps",
                    default=0,
                    min=0,
                    max=1000,
                    tooltip="intra: steps to watch before masks are shown; 0 = until they settle. They are part of the "
                    "run, not on top of it. 25 to 40 % of all steps is safe.",
                ),
                io.Float.Input(
                    "settled",
                    default=PROBE.threshold,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    round=0.0001,
                    tooltip="intra with probe_steps 0: masks count as settled when they change by less than this a "
                    "step (mean, 0..1). 0.005 to 0.05 is safe; smaller watches longer.",
                ),
                io.Float.Input(
                    "probe_most",
                    default=PROBE.max_fraction,
                    min=0.05,
                    max=1.0,
                    step=0.05,
                    tooltip="intra with probe_steps 0: largest share of all steps that is watched. 0.3 to 0.5 is safe: "
                    "what you edit later acts only in the steps that remain.",
                ),
                io.Combo.Input(
                    "region",
                    options=["head", "box"],
                    default="head",
                    tooltip="pre: what is drawn around a face that was found: the head's oval, or its box.",
                ),
                io.Combo.Input(
                    "segmenter",
                    options=["self", "sam2"],
                    default="self",
                    tooltip="post: who finds the characters in the silent video: the model's own router, or SAM 2 "
                    "(which must be on this machine).",
                ),
                io.Boolean.Input(
                    "static",
                    default=False,
                    tooltip="On: each mask's union over time in every frame, for people who sit still. Off: masks "
                    "move.",
                ),
                io.Combo.Input(
                    "bystanders",
                    options=["model", "hear", "silent"],
                    default="model",
                    tooltip="What parts of the picture that are nobody's hear: model = as trained, hear = every voice, "
                    "silent = none (keeps backgrounds still).",
                ),
                io.Int.Input(
                    "tries",
                    default=PROBE.num_seeds,
                    min=1,
                    max=100,
                    tooltip="intra without first frame and masks: while somebody has no place in the picture, the "
                    "router starts again from the next seed, so many times in all, and says so. 1 = only this seed.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="manual: one mask a character (still), or one a latent or video frame, as a batch, all "
                    "of the first character first, any size. Other modes: these masks act while the router watches.",
                ),
            ],
            outputs=[
                types.Routed.Output("routing", tooltip="Feeds Mask Refine, BYA Sampler and the mask nodes."),
                io.Mask.Output("masks", tooltip=f"{MASKS_ORDER}, at the size of the video."),
                io.String.Output(
                    "report", tooltip="How much of the picture each character has, how sure that is, notices."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, matrix: str | None = None) -> bool | str:
        from bya_core.scene.compose import matrix_rows

        return host.valid(matrix_rows, matrix)

    @classmethod
    @host.told_plainly
    def execute(cls, scene: types.SceneValue, masks: Any = None, **given: Any) -> io.NodeOutput:
        from bya_core.pipelines.generate import prepare, route
        from bya_core.pipelines.interactive import RouterWishes, describe, first_window, routed_scene
        from bya_core.progress import ProgressTracker

        model = scene.model
        with host.cancellable():
            wanted = routed_scene(scene.scene, RouterWishes(**given), masks, model.bundle)
        part = first_window(wanted, model.bundle)
        with host.working(model, part):
            tracker = ProgressTracker(host.watcher(model, part))
            prepared = prepare(part, model.bundle, tracker)
            routing = route(prepared, model.bundle, tracker)
        whole = None if part is wanted else wanted
        value = types.RoutingValue(model, host.on_cpu(prepared), host.on_cpu(routing), whole)
        return io.NodeOutput(value, value.mask_images, describe(value.scene, routing, whole is not None))


class MaskRefine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "MaskRefine",
            "Mask Refine",
            "Cleans the router's masks and lets you replace or blend the mask of one character. Chain several for "
            "several characters. The router is not run again.",
            search_aliases=["edit masks", "clean masks", "override"],
            inputs=[
                types.Routed.Input("routing", tooltip="From Embedding Router or another Mask Refine."),
                io.Boolean.Input(
                    "clean",
                    default=True,
                    tooltip="On: the masks are cleaned by the settings below and then forced. Off: only the override "
                    "acts; use it in a second Mask Refine of a chain.",
                ),
                io.Float.Input(
                    "drop_below",
                    default=REFINE.threshold,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Tokens whose best claim is weaker lose their owner first (0..1); 0 = none. 0.5 to 0.8 "
                    "is safe.",
                ),
                io.Boolean.Input(
                    "propagate",
                    default=REFINE.propagate,
                    tooltip="On: owners spread from sure tokens to those without one, over space and time.",
                ),
                io.Int.Input(
                    "regions",
                    default=REFINE.max_regions,
                    min=0,
                    max=100,
                    tooltip="Connected regions kept per character and frame, the largest first; 0 = all. 1 removes "
                    "specks.",
                ),
                io.Boolean.Input(
                    "fill_holes", default=REFINE.fill_holes, tooltip="On: what a character encloses becomes part of it."
                ),
                io.Float.Input(
                    "smooth",
                    default=REFINE.smoothing,
                    min=0.0,
                    max=10.0,
                    step=0.1,
                    tooltip="Smoothing over time, in latent frames (4 video frames each); 0 = none. Above 2, masks lag "
                    "behind people who move.",
                ),
                io.Boolean.Input(
                    "exclusive",
                    default=REFINE.exclusive,
                    tooltip="On: each token has one owner, which may be the background. Off: masks may overlap.",
                ),
                io.Int.Input(
                    "grow",
                    default=REFINE.grow,
                    min=-8,
                    max=8,
                    tooltip="Tokens by which masks grow (16 pixels each in the large models, 8 in toy); negative "
                    "shrinks. -1 to 2 is safe.",
                ),
                io.Boolean.Input(
                    "from_start",
                    default=False,
                    tooltip="Off: the sampler goes on from the router's half-done video, so edits act in the steps "
                    "that remain. On: the video is made anew from noise and edits act in all steps; costs the probe "
                    "again.",
                ),
                io.Mask.Input(
                    "override_mask",
                    optional=True,
                    tooltip="A mask of your own for one character: one picture (still), or one a latent or video "
                    "frame, any size; white = this character.",
                ),
                io.String.Input(
                    "override_character",
                    default="1",
                    tooltip="Whom override_mask belongs to: the character's name, or its number from 1.",
                ),
                io.Float.Input(
                    "blend",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much override_mask has to say: 0 = nothing, 1 = everything.",
                ),
                io.Float.Input(
                    "start",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the run from which override_mask acts; 0 = from the first step. Before it the "
                    "router decides.",
                ),
                io.Float.Input(
                    "end",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the run up to which override_mask acts; 1 = to the last step. After it the "
                    "router decides.",
                ),
            ],
            outputs=[
                types.Routed.Output("routing", tooltip="The same with the masks as they shall act."),
                io.Mask.Output("masks", tooltip=f"{MASKS_ORDER}, at the size of the video."),
                io.String.Output(
                    "report", tooltip="How much of the picture each character has, how sure that is, notices."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, start: float | None = None, end: float | None = None) -> bool | str:
        if start is None or end is None or 0 <= start < end <= 1:  # None = it comes by a wire
            return True
        return f"override_mask from {start} to {end}; expected 0 to 1, the start before the end; correct them."

    @classmethod
    @host.told_plainly
    def execute(
        cls, routing: types.RoutingValue, clean: bool, from_start: bool, override_mask: Any = None, **given: Any
    ) -> io.NodeOutput:
        from bya_core.pipelines.interactive import OVERRIDE, Edit, describe, edited

        over = {name: given.pop(name) for name in OVERRIDE}
        refine = {REFINE_FIELDS.get(name, name): value for name, value in given.items()}
        edit = Edit(RefineConfig(**refine) if clean else None, from_start, override_mask, **over)
        masks, whole = edited(routing.routing, routing.whole, routing.prepared.grid, edit, routing.names)
        value = replace(routing, routing=masks, whole=whole)
        return io.NodeOutput(value, value.mask_images, describe(value.scene, masks, whole is not None))
