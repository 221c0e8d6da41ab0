"""BYA Embedding Router."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from bya_core.config import ProbeConfig, RouterConfig

from . import checks, convert, host, results, types
from .schema import made, schema, widget

if TYPE_CHECKING:
    from bya_core.pipelines.interactive import AudioAssignment
    from bya_core.scene.types import Scene

ASSIGNMENTS = ("given", "swapped", "auto", "matrix")
ROUTER_MODES = ("intra", "pre", "post", "manual")
PROBES = ("until the masks converge", "fixed number of steps")
DEFAULT_STEPS = 6
PROBE = {  # widgets -> fields
    "threshold": "threshold",
    "max_percent": "max_fraction",
    "num_seeds": "num_seeds",
    "num_takes": "num_takes",
}


class EmbeddingRouter(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "EmbeddingRouter",
            "BYA Embedding Router",
            "Predicts which region of the video belongs to which character. Returns the masks and, in intra mode, the "
            "partially denoised video, so that nothing is computed twice.",
            folder="masks",
            search_aliases=["masks", "binding", "lip sync", "dialogue", "multi speaker"],
            is_output_node=True,  # can be run without a sampler, to look at the masks
            has_intermediate_output=True,
            inputs=[
                types.Scene.Input("scene", tooltip="From BYA Scene."),
                widget(
                    RouterConfig,
                    "mode",
                    options=list(ROUTER_MODES),
                    hint="intra costs nothing extra; pre needs a first frame; post takes twice the time; manual needs "
                    "masks.",
                ),
                io.Combo.Input(
                    "audio_assignment",
                    options=list(ASSIGNMENTS),
                    default="given",
                    optional=True,
                    tooltip="Which voice drives which character. given: each its own. swapped: each voice drives the "
                    "next character. auto: voices are matched to the mouths of reference_video, or without it to drawn "
                    "faces. matrix: as in audio_character_matrix.",
                ),
                io.String.Input(
                    "audio_character_matrix",
                    default="1 0; 0 1",
                    optional=True,
                    tooltip="With audio_assignment matrix: one row per voice, one column per character, values 0 to 1, "
                    "rows separated by ';'. 0 1; 1 0 swaps two voices.",
                ),
                io.Combo.Input(
                    "probe",
                    options=list(PROBES),
                    default=PROBES[0],
                    optional=True,
                    tooltip="intra: when the masks are returned. The steps until then are part of the run.",
                ),
                widget(
                    ProbeConfig,
                    "steps",
                    "probe_steps",
                    default=DEFAULT_STEPS,
                    optional=True,
                    tooltip="Number of steps before the masks are returned, with probe set to a fixed number of steps.",
                ),
                widget(
                    ProbeConfig,
                    "threshold",
                    step=0.001,
                    round=0.0001,
                    optional=True,
                    advanced=True,
                    hint="With probe set to until the masks converge.",
                ),
                widget(
                    ProbeConfig,
                    "max_fraction",
                    "max_percent",
                    optional=True,
                    advanced=True,
                    tooltip="Largest fraction of all steps to run before the masks are returned, with probe set to "
                    "until the masks converge.",
                ),
                widget(ProbeConfig, "num_seeds", optional=True, advanced=True, hint="intra only."),
                widget(RouterConfig, "region", options=["head", "box"], optional=True),
                widget(RouterConfig, "segmenter", optional=True),
                widget(RouterConfig, "static", "static_masks", optional=True, advanced=True),
                widget(RouterConfig, "background_audio", optional=True, advanced=True),
                made(
                    io.Int.Input,
                    "window",
                    default=1,
                    min=1,
                    max=100_000,
                    optional=True,
                    advanced=True,
                    tooltip="Window of a long video whose masks are predicted. The windows before it are generated "
                    "first and kept for the sampler.",
                ),
                widget(ProbeConfig, "num_takes", optional=True, advanced=True, hint="intra only."),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="manual: one mask per character, or one per frame and character (all frames of the first "
                    "character first), any size. Other modes: forced while the router runs. The MASK of a picture "
                    "without transparency is black, and refused.",
                ),
                io.Video.Input(
                    "reference_video",
                    optional=True,
                    tooltip="For audio_assignment auto: real people saying these voices, from the start of the video. "
                    "Each voice drives the character whose lips follow it.",
                ),
            ],
            outputs=[
                types.Routing.Output("routing", tooltip="Connect to BYA Mask Refine, BYA Sampler and the mask nodes."),
                io.Mask.Output("masks", tooltip=types.MASK_ORDER),
                io.String.Output("report", tooltip=types.ROUTING_REPORT),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        mode: str | None = None,
        audio_assignment: str | None = None,
        audio_character_matrix: str | None = None,
        masks: Any = checks.NOT_CONNECTED,
    ) -> bool | str:
        from bya_core.scene.compose import matrix_rows

        return checks.validate(
            lambda: checks.check_choice("mode", mode, ROUTER_MODES),
            lambda: checks.check_choice("audio_assignment", audio_assignment, ASSIGNMENTS),
            lambda: checks.check_masks(mode, masks),
            lambda: audio_assignment == "matrix" and matrix_rows(audio_character_matrix or "1"),
        )

    @classmethod
    @host.plain_errors
    def execute(
        cls,
        scene: types.SceneValue,
        audio_assignment: AudioAssignment = "given",
        audio_character_matrix: str = "",
        window: int = 1,
        masks: Any = None,
        reference_video: Any = None,
        **options: Any,
    ) -> io.NodeOutput:
        from bya_core.pipelines.interactive import set_router

        config, model = _router(options), scene.model
        with host.cancellable():
            footage = None if reference_video is None else convert.footage(reference_video)
            whole = set_router(
                scene.scene, config, model.bundle, audio_assignment, audio_character_matrix, masks, footage
            )
        value = _predict(whole, model, window)
        return results.routing(value, value, scene.scene.notices)


def _predict(scene: Scene, model: host.HostModel, window: int) -> types.RoutingValue:
    """Run the router for one window of a scene."""
    from bya_core.pipelines.interactive import first_window, probe_window, routing_preview

    part = first_window(scene, model.bundle)
    with host.running(model, part):
        callback = host.progress_callback(model, part)
        found, routing = probe_window(scene, model.bundle, window, host.temporary_folder(), callback)
        preview = routing_preview(routing, found.prepared.scene, model.bundle)
    complete, place = (None, None) if found.count == 1 else (scene, found.window)
    encoded, routing = host.to_cpu(found.prepared), host.to_cpu(routing)
    return types.RoutingValue(model, encoded, routing, complete, complete, place, found.count, preview)


def _router(options: dict[str, Any]) -> RouterConfig:
    """The router options of the widgets; those that are missing keep their defaults."""
    probe = {field: options.pop(name) for name, field in PROBE.items() if name in options}
    steps = options.pop("probe_steps", DEFAULT_STEPS)
    if options.pop("probe", PROBES[0]) == PROBES[0]:
        steps = None
    return RouterConfig(probe=ProbeConfig(**probe, steps=steps), static=options.pop("static_masks", False), **options)
