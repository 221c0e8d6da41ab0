"""BYA Mask Overlay and BYA Select Character Mask."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import checks, convert, host, results, types
from .schema import character_widget, schema


class MaskOverlay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "MaskOverlay",
            "BYA Mask Overlay",
            "Draws the character masks over images, each character in its own color, with a legend.",
            folder="masks",
            search_aliases=["show masks", "preview masks", "visualize", "dialogue", "multi speaker"],
            has_intermediate_output=True,
            inputs=[
                types.Routing.Input("routing", tooltip="From BYA Embedding Router or BYA Mask Refine."),
                io.Float.Input(
                    "opacity",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="Opacity of the colors where a mask is 1.",
                ),
                io.Boolean.Input(
                    "legend",
                    default=True,
                    optional=True,
                    tooltip="Whether to draw names, coverage and confidence below each image.",
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Images to draw on: all video frames, or one for all. Not connected: the first frame of "
                    "the scene, or gray.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Masks to draw instead of those of routing, such as those of BYA Sampler.",
                ),
            ],
            outputs=[io.Image.Output("images", tooltip="One image per video frame; small videos are enlarged.")],
        )

    @classmethod
    @host.plain_errors
    def execute(
        cls,
        routing: types.RoutingValue,
        opacity: float = 0.5,
        legend: bool = True,
        images: Any = None,
        masks: Any = None,
    ) -> io.NodeOutput:
        from bya_core.pipelines.interactive import overlay_images, still_frame

        tokens, grid = routing.token_masks(masks)
        frames = still_frame(routing.prepared.scene.first_frame, grid) if images is None else convert.to_uint8(images)
        names = routing.names if legend else []
        shown = results.overlay(routing, tokens, grid, images)
        return io.NodeOutput(convert.images(overlay_images(tokens, grid, frames, names, opacity)), ui=shown)


class SelectCharacterMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SelectCharacterMask",
            "BYA Select Character Mask",
            "Returns the mask of one character as a MASK batch, for the mask nodes of ComfyUI.",
            folder="masks",
            search_aliases=["pick mask", "character mask", "multi speaker"],
            inputs=[
                types.Routing.Input("routing", tooltip="From BYA Embedding Router or BYA Mask Refine."),
                character_widget("The character: its name, or its number from 1."),
                io.Combo.Input(
                    "frames",
                    options=["latent", "video"],
                    default="latent",
                    optional=True,
                    tooltip="latent returns one mask per latent frame, video one per video frame.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Masks to select from instead of those of routing, such as those of BYA Sampler.",
                ),
            ],
            outputs=[io.Mask.Output("mask", tooltip="One mask per frame, at the size of the video.")],
        )

    @classmethod
    def validate_inputs(cls, character: str | None = None) -> bool | str:
        return checks.validate(lambda: checks.check_character(character))

    @classmethod
    @host.plain_errors
    def execute(
        cls, routing: types.RoutingValue, character: str, frames: str = "latent", masks: Any = None
    ) -> io.NodeOutput:
        from bya_core.pipelines.interactive import character_index, masks_to_images

        tokens, grid = routing.token_masks(masks)
        one = tokens[character_index(character, routing.names)][None]
        if frames == "video":
            return io.NodeOutput(grid.tokens_to_pixels(one, mode="nearest")[0])
        return io.NodeOutput(masks_to_images(one, grid))
