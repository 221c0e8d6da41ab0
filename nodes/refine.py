"""BYA Mask Refine."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from bya_core.config import RefineConfig
from bya_core.errors import InputError
from bya_core.scene.schema import CharacterEntry

from . import checks, host, results, types
from .schema import character_widget, made, schema, widget

if TYPE_CHECKING:
    from bya_core.scene.painted_masks import PaintedMasks

REFINE = ("threshold", "propagate", "max_regions", "fill_holes", "smoothing", "exclusive", "grow")
RARE = ("propagate", "max_regions", "fill_holes", "exclusive")


class MaskRefine(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "MaskRefine",
            "BYA Mask Refine",
            "Cleans the router's masks, replaces or blends the mask of one character, and applies masks painted on the "
            "node. Chain several for several characters. The router is not run again.",
            folder="masks",
            search_aliases=["edit masks", "paint masks", "mask painter", "clean masks", "override", "multi speaker"],
            is_output_node=True,
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
                made(
                    io.String.Input,
                    "painted_masks",
                    default="",
                    optional=True,
                    socketless=True,
                    tooltip="Strokes painted on the node, as JSON: PNG (data URL or file in input/), grid, characters. "
                    "Empty: none. Applied last, with the strength and steps above.",
                    extra_dict={"hidden": True},
                ),
            ],
            outputs=[
                types.Routing.Output("routing", tooltip="The same with the edited masks."),
                io.Mask.Output("masks", tooltip=types.MASK_ORDER),
                io.String.Output("report", tooltip=types.ROUTING_REPORT),
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
        grid, names = routing.prepared.grid, routing.names
        latent = slice(0, None) if routing.window is None else routing.window.latent
        masks, whole = edit_masks(routing.routing, routing.whole, grid, edit, names, latent)
        edited = replace(routing, routing=masks, whole=whole)
        known = routing_notices(routing.prepared.scene, routing.routing)
        if (painted := _painted_file(painted_masks)) is None:
            return results.routing(edited, edited, known)
        strokes = read_strokes(*painted, names, grid, routing.latent_start)
        control = strokes.control(masks.masks, edit.strength, edit.start_percent, edit.end_percent)
        return results.routing(replace(edited, routing=masks.override(control)), edited, known)


def _painted_file(text: str) -> tuple[PaintedMasks, Path] | None:
    """Painted masks and the path of their PNG; None without any. Raises InputError."""
    from bya_core.scene.painted_masks import parse_painted_masks

    painted = parse_painted_masks(text)
    if painted is None:
        return None
    content = painted.image()
    return painted, host.input_file(painted.file) if content is None else host.temporary_copy(content, ".png")


def _check_painted(text: str) -> None:
    """Raise InputError for invalid text, or if the file is missing."""
    from bya_core.scene.painted_masks import check_file

    if (found := _painted_file(text)) is not None:
        check_file(*found)
