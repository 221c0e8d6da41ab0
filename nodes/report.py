"""BYA Preflight, BYA Binding Report and BYA Video Report: checks before and after a run."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from bya_core.scene.schema import SceneFile

from . import checks, convert, host, lengths, results, types
from .schema import audio_inputs, schema, widget


class BindingReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "BindingReport",
            "BYA Binding Report",
            "Measures in the generated frames whether each mouth follows its own voice, and whether listeners keep "
            "still.",
            folder="checks",
            search_aliases=["lip sync", "sync check", "dialogue", "multi speaker", "who speaks"],
            is_output_node=True,
            inputs=[
                types.Routing.Input("routing", tooltip="Names, voices and audio-character matrix."),
                io.Image.Input("frames", tooltip="All video frames, from BYA Sampler."),
                io.Mask.Input("masks", optional=True, tooltip="Masks of BYA Sampler. Not connected: those of routing."),
            ],
            outputs=[
                io.Image.Output("image", tooltip="Each mouth against each voice, and both over time."),
                io.String.Output("report", tooltip="The findings as text, with what can and cannot be measured."),
            ],
        )

    @classmethod
    @host.plain_errors
    def execute(cls, routing: types.RoutingValue, frames: Any, masks: Any = None) -> io.NodeOutput:
        from bya_core.evaluation.report import binding_report

        scene = routing.scene
        tokens, grid = routing.token_masks(masks)
        report = binding_report(
            convert.to_uint8(frames),
            grid.latent_to_frames(tokens, dim=1),
            scene.speeches,
            scene.fps,
            routing.names,
            matrix=routing.routing.matrix,
            meter=routing.model.bundle.meter,
        )
        shown = {**results.picture(report.picture), "bya_text": [report.text]}
        return io.NodeOutput(convert.from_pil(report.picture), report.text, ui=shown)


class VideoReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VideoReport",
            "BYA Video Report",
            "Measures in a video of any model which mouth follows which voice. For real people; needs no scene and no "
            "download.",
            folder="checks",
            search_aliases=["lip sync", "sync check", "multi speaker", "who speaks", "talking", "evaluate"],
            is_output_node=True,
            inputs=[
                io.Video.Input("video", tooltip="A video of real people, from Load Video or any other node."),
                io.Audio.Input("voice_1", tooltip="Recording of one speaker alone; it starts with the video."),
                *audio_inputs("voice", "Recording of another speaker.")[1:],
            ],
            outputs=[
                io.Image.Output("image", tooltip="Each mouth against each voice, and both over time."),
                io.String.Output("report", tooltip="The findings as text, with what can and cannot be measured."),
                io.String.Output("verdict", tooltip="passed, failed or inconclusive."),
            ],
        )

    @classmethod
    @host.plain_errors
    def execute(cls, video: Any, **voices: Any) -> io.NodeOutput:
        from bya_core.evaluation.panel import binding_panel
        from bya_core.evaluation.video_file import measure_frames

        named = {name: audio for name, audio in sorted(voices.items()) if audio is not None}
        speeches = [convert.one_speech(audio, 0.0, 0.0) for audio in named.values()]
        parts = video.get_components()
        with host.cancellable():
            frames, names = convert.to_uint8(parts.images), [name.replace("_", " ") for name in named]
            report = measure_frames(frames, speeches, float(parts.frame_rate), names)
        verdict = {True: "passed", False: "failed", None: "inconclusive"}[report.metrics["passed"]]
        panel = binding_panel(report, float(parts.frame_rate)) | {"notices": [], "video": host.temporary_video(video)}
        shown = {"bya_binding": [panel], "bya_text": [report.text]}
        return io.NodeOutput(convert.from_pil(report.picture), report.text, verdict, ui=shown)


class Preflight(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Preflight",
            "BYA Preflight",
            "Checks everything before a model is loaded: faces, voices, masks, sizes, weights, time and memory. Put it "
            "between the cast and BYA Scene to stop early.",
            folder="checks",
            search_aliases=["check inputs", "estimate", "validate", "lip sync", "dialogue"],
            has_intermediate_output=True,
            inputs=[
                types.Cast.Input("cast", tooltip="The characters, from BYA Face Encode or BYA Cast."),
                io.Combo.Input(
                    "model",
                    options=host.model_names(),
                    default="toy",
                    tooltip="Model to check for. Only its settings are read, no weights are loaded.",
                ),
                *lengths.length_inputs(),
                lengths.settings_input(),
                *lengths.size_inputs(),
                io.Boolean.Input(
                    "stop_on_error",
                    default=True,
                    optional=True,
                    tooltip="Whether errors stop the graph here. Off: they are only reported.",
                ),
                widget(SceneFile, "force", optional=True, advanced=True),
                io.Image.Input("first_frame", optional=True, tooltip="First frame to check, as in BYA Scene."),
                io.Mask.Input("masks", optional=True, tooltip="Masks to check against the cast."),
            ],
            outputs=[
                types.Cast.Output(
                    "cast", tooltip="The same cast. Connect it to BYA Scene so that this check runs first."
                ),
                io.Image.Output("faces", tooltip="Each reference image with the detected face, and its crop."),
                io.String.Output("report", tooltip="Findings, one per line: ok, warning or error."),
                io.Boolean.Output("ok", tooltip="True if there is no error."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, settings: str | None = lengths.MODEL_DEFAULTS, width: int | None = None, height: int | None = None
    ) -> bool | str:
        return checks.validate(checks.check_packages, lambda: lengths.check_settings(settings, width, height))

    @classmethod
    @host.plain_errors
    def execute(
        cls,
        cast: Any,
        model: str,
        stop_on_error: bool = True,
        first_frame: Any = None,
        masks: Any = None,
        **options: Any,
    ) -> io.NodeOutput:
        from bya_core.pipelines.preflight import preflight

        frame = None if first_frame is None else convert.one_image(first_frame, "the first frame")
        sizes = {"frames": lengths.chosen_frames(options), **lengths.chosen_settings(options)}
        with host.cancellable():
            found = preflight(cast, host.resolve_model(model), **sizes, **options, first_frame=frame, masks=masks)
        shown = {**results.picture(found.picture), **results.findings(found.findings)}
        if stop_on_error and not found.ok:
            host.show_result(shown)
            found.raise_errors()
        return io.NodeOutput(cast, convert.from_pil(found.picture), found.text, found.ok, ui=shown)
