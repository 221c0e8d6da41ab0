"""Before and after: what could go wrong, and whether every mouth followed its own voice."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import convert, host, types
from .schema import schema


class BindingReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "BindingReport",
            "Binding Report",
            "Measures in the finished pictures whether each mouth moved with its own voice, and whether listeners kept "
            "still. A picture and plain sentences.",
            search_aliases=["check", "sync", "who speaks"],
            inputs=[
                types.Routed.Input("routing", tooltip="From Embedding Router or Mask Refine: names, voices, matrix."),
                io.Image.Input("frames", tooltip="All video frames, from BYA Sampler."),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Masks that acted, from BYA Sampler. Left open: those of routing.",
                ),
            ],
            outputs=[
                io.Image.Output("picture", tooltip="Each mouth against each voice, and lanes of both over time."),
                io.String.Output("text", tooltip="The same in sentences, with what can and cannot be measured."),
            ],
        )

    @classmethod
    @host.told_plainly
    def execute(cls, routing: types.RoutingValue, frames: Any, masks: Any = None) -> io.NodeOutput:
        from bya_core.evaluation.report import binding_report

        scene = routing.scene
        tokens, grid = routing.token_masks(masks)
        made = binding_report(
            convert.bytes_of(frames),
            grid.latent_to_frames(tokens, dim=1),
            scene.speeches,
            scene.fps,
            routing.names,
            matrix=routing.routing.matrix,
            meter=routing.model.bundle.meter,
        )
        return io.NodeOutput(convert.picture(made.picture), made.text)


class Preflight(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Preflight",
            "Preflight",
            "Looks at everything before anything heavy is loaded: faces, voices, masks, sizes, weights, time and "
            "memory. Put it between the cast and Scene to stop early.",
            search_aliases=["check inputs", "estimate", "validate"],
            inputs=[
                types.Cast.Input("cast", tooltip="The characters, from Face Encode or Cast."),
                io.Combo.Input(
                    "model",
                    options=host.models(),
                    default="toy",
                    tooltip="Which model it is for; only its settings are read, nothing is loaded.",
                ),
                io.Int.Input(
                    "width", default=0, min=0, max=4096, step=8, tooltip="Pixels, as in Scene; 0 = the model's."
                ),
                io.Int.Input(
                    "height", default=0, min=0, max=4096, step=8, tooltip="Pixels, as in Scene; 0 = the model's."
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=100_000,
                    tooltip="Video frames, as in Scene; 0 = the longest speech.",
                ),
                io.Int.Input(
                    "steps", default=0, min=0, max=1000, tooltip="Denoising steps, as in Scene; 0 = the model's."
                ),
                io.Boolean.Input(
                    "stop_on_problems",
                    default=True,
                    tooltip="On: problems stop the graph here, told in one sentence. Off: they are only reported.",
                ),
                io.Image.Input(
                    "first_frame", optional=True, tooltip="The picture that fixes the start, if there is one."
                ),
                io.Mask.Input(
                    "masks", optional=True, tooltip="Masks that shall be used, to check them against the cast."
                ),
            ],
            outputs=[
                types.Cast.Output("cast", tooltip="The same cast; connect it to Scene so that this check comes first."),
                io.Image.Output("faces", tooltip="Each reference picture with what was found in it, and the cut-out."),
                io.String.Output("report", tooltip="Findings, one line each: ok, warning or PROBLEM."),
                io.Boolean.Output("ok", tooltip="True where nothing stands in the way."),
            ],
        )

    @classmethod
    @host.told_plainly
    def execute(
        cls, cast: Any, model: str, stop_on_problems: bool, first_frame: Any = None, masks: Any = None, **sizes: int
    ) -> io.NodeOutput:
        from bya_core.pipelines.preflight import Asked, preflight

        frame = None if first_frame is None else convert.one_picture(first_frame, "the first frame")
        with host.cancellable():
            found = preflight(cast, host.model_place(model), Asked(**sizes, first_frame=frame, masks=masks))
        if stop_on_problems:
            found.stop_if_problem()
        return io.NodeOutput(cast, convert.picture(found.picture), found.text, found.ok)
