"""BYA Embedding Router and BYA Mask Refine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from bya_core.config import ProbeConfig, RefineConfig, RouterConfig
from bya_core.errors import InputError
from bya_core.scene.schema import CharacterEntry

from . import checks, convert, host, results, types
from .mask_view import masks_entry
from .schema import character_widget, made, schema, widget

if TYPE_CHECKING:
    from bya_core.pipelines.interactive import AudioAssignment
    from bya_core.scene.painted_masks import PaintedMasks

ASSIGNMENTS = ("given", "swapped", "auto", "matrix")
ROUTER_MODES = ("intra", "pre", "post", "manual")
PROBES = ("until the masks converge", "fixed number of steps")
DEFAULT_STEPS = 6
RARE = ("propagate", "max_regions", "fill_holes", "exclusive")
MASK_ORDER = "characters x latent frames, all frames of the first character first, at the size of the video"
PROBE = {"threshold": "threshold", "max_percent": "max_fraction", "num_seeds": "num_seeds"}  # widgets -> fields
REPORT = "Coverage and confidence per character, audio assignment, notices."
REFINE = ("threshold", "propagate", "max_regions", "fill_holes", "smoothing", "exclusive", "grow")


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
                io.Mask.Output("masks", tooltip=f"Masks: {MASK_ORDER}."),
                io.String.Output("report", tooltip=REPORT),
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
        from bya_core.pipelines import interactive

        config, model = _router(options), scene.model
        with host.cancellable():
            footage = None if reference_video is None else convert.footage(reference_video)
            whole = interactive.set_router(
                scene.scene, config, model.bundle, audio_assignment, audio_character_matrix, masks, footage
            )
        part = interactive.first_window(whole, model.bundle)
        with host.running(model, part):
            callback = host.progress_callback(model, part)
            found, routing = interactive.probe_window(whole, model.bundle, window, host.temporary_folder(), callback)
            preview = interactive.routing_preview(routing, found.prepared.scene, model.bundle)
        complete, place = (None, None) if found.count == 1 else (whole, found.window)
        encoded, routing = host.to_cpu(found.prepared), host.to_cpu(routing)
        value = types.RoutingValue(model, encoded, routing, complete, complete, place, found.count, preview)
        return _output(value, value, scene.scene.notices)


def _router(options: dict[str, Any]) -> RouterConfig:
    """The router options of the widgets; those that are missing keep their defaults."""
    probe = {field: options.pop(name) for name, field in PROBE.items() if name in options}
    steps = options.pop("probe_steps", DEFAULT_STEPS)
    if options.pop("probe", PROBES[0]) == PROBES[0]:
        steps = None
    return RouterConfig(probe=ProbeConfig(**probe, steps=steps), static=options.pop("static_masks", False), **options)


def _output(value: types.RoutingValue, shown: types.RoutingValue, known: Sequence[str]) -> io.NodeOutput:
    """Routing, masks and report; the masks of `shown` and notices that are not `known` are shown on the node."""
    from bya_core.pipelines.interactive import routing_notices, routing_summary

    scene, routing = value.prepared.scene, value.routing
    summary = routing_summary(scene, routing, (value.number, value.windows))
    ui = {"bya_masks": [masks_entry(shown)], **results.notices(routing_notices(scene, routing), known)}
    return io.NodeOutput(value, value.mask_images, summary, ui=ui)


class MaskRefine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "MaskRefine",
            "BYA Mask Refine",
            "Cleans the router's masks, and replaces or blends the mask of one character. Chain several for several "
            "characters. The router is not run again.",
            folder="masks",
            search_aliases=["edit masks", "clean masks", "override", "multi speaker"],
            has_intermediate_output=True,
            inputs=[
                types.Routing.Input("routing", tooltip="From BYA Embedding Router or another BYA Mask Refine."),
                io.Boolean.Input(
                    "refine",
                    default=True,
                    optional=True,
                    tooltip="Whether to clean the masks with the options below. Turn it off in the second BYA Mask "
                    "Refine of a chain.",
                ),
                *(widget(RefineConfig, name, optional=True, advanced=name in RARE) for name in REFINE[:-1]),
                widget(RefineConfig, "grow", min=-8, max=8, optional=True),
                io.Boolean.Input(
                    "restart",
                    default=False,
                    optional=True,
                    tooltip="Off: the sampler resumes from the partially denoised video, and edits apply to the "
                    "remaining steps. On: it starts from noise, and edits apply to all steps.",
                ),
                io.Mask.Input(
                    "override_mask",
                    optional=True,
                    tooltip="Mask for one character: one image, or one per latent or video frame, any size. White is "
                    "the character.",
                ),
                character_widget("Character of override_mask: its name, or its number from 1.", optional=True),
                widget(CharacterEntry, "mask_strength", "strength", optional=True),
                widget(CharacterEntry, "mask_start_percent", "start_percent", optional=True, advanced=True),
                widget(CharacterEntry, "mask_end_percent", "end_percent", optional=True, advanced=True),
                io.String.Input(
                    "painted_masks",
                    default="",
                    optional=True,
                    socketless=True,
                    tooltip="Strokes painted on the node: their file in input/, grid and characters, as JSON. Empty: "
                    "none. Applied last, with the strength and steps above.",
                    extra_dict={"hidden": True},
                ),
            ],
            outputs=[
                types.Routing.Output("routing", tooltip="The same with the edited masks."),
                io.Mask.Output("masks", tooltip=f"Masks: {MASK_ORDER}."),
                io.String.Output("report", tooltip=REPORT),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        character: str | None = None,
        start_percent: float | None = None,
        end_percent: float | None = None,
        painted_masks: str | None = None,
    ) -> bool | str:
        return checks.validate(
            lambda: checks.check_character(character),
            lambda: checks.check_span(start_percent, end_percent),
            lambda: _check_painted(painted_masks or ""),
        )

    @classmethod
    def fingerprint_inputs(cls, painted_masks: str | None = None, **_: Any) -> str:
        """Hash of the content of the painted file, which may change under the same name."""
        try:
            found = _painted_file(painted_masks or "")
            return "" if found is None else hashlib.sha256(found[1].read_bytes()).hexdigest()
        except (InputError, OSError) as error:  # reported by `execute`
            return str(error)

    @classmethod
    @host.plain_errors
    def execute(
        cls,
        routing: types.RoutingValue,
        refine: bool = True,
        restart: bool = False,
        override_mask: Any = None,
        painted_masks: str = "",
        **options: Any,
    ) -> io.NodeOutput:
        from bya_core.pipelines.interactive import MaskEdit, edit_masks, routing_notices
        from bya_core.scene.painted_masks import read_strokes

        config = RefineConfig(**{name: options.pop(name) for name in REFINE if name in options})
        edit = MaskEdit(config if refine else None, restart, override_mask, **options)
        grid, names, painted = routing.prepared.grid, routing.names, _painted_file(painted_masks)
        strokes = None if painted is None else read_strokes(*painted, names, grid, routing.latent_start)
        latent = slice(0, None) if routing.window is None else routing.window.latent
        masks, whole = edit_masks(routing.routing, routing.whole, grid, edit, names, latent)
        edited = replace(routing, routing=masks, whole=whole)
        known = routing_notices(routing.prepared.scene, routing.routing)
        if strokes is None:
            return _output(edited, edited, known)
        control = strokes.control(masks.masks, edit.strength, edit.start_percent, edit.end_percent)
        return _output(replace(edited, routing=masks.override(control)), edited, known)


def _painted_file(text: str) -> tuple[PaintedMasks, Path] | None:
    """Painted masks and the path of their file; None without any. Raises InputError."""
    from bya_core.scene.painted_masks import parse_painted_masks

    painted = parse_painted_masks(text)
    return None if painted is None else (painted, host.input_file(painted.file))


def _check_painted(text: str) -> None:
    """Raise InputError for invalid text, or if the file is missing."""
    from bya_core.scene.painted_masks import check_file

    if (found := _painted_file(text)) is not None:
        check_file(*found)
