"""BYA Mask Overlay and BYA Select Character Mask."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import convert, host, types
from .schema import schema


class MaskOverlay(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "MaskOverlay",
            "BYA Mask Overlay",
            "Draws the character masks over images, each character in its own color, with a legend.",
            search_aliases=["show masks", "preview masks", "visualize", "dialogue"],
            inputs=[
                types.Routing.Input("routing", tooltip="From BYA Embedding Router or BYA Mask Refine."),
                io.Float.Input(
                    "opacity",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Opacity of the colors where a mask is 1.",
                ),
                io.Boolean.Input(
                    "legend", default=True, tooltip="Whether to draw names, coverage and confidence below each image."
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
        cls, routing: types.RoutingValue, opacity: float, legend: bool, images: Any = None, masks: Any = None
    ) -> io.NodeOutput:
        from bya_core.pipelines.interactive import overlay_images, still_frame

        tokens, grid = routing.token_masks(masks)
        frames = still_frame(routing.prepared.scene.first_frame, grid) if images is None else convert.to_uint8(images)
        names = routing.names if legend else []
        return io.NodeOutput(convert.images(overlay_images(tokens, grid, frames, names, opacity)))


class SelectCharacterMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SelectCharacterMask",
            "BYA Select Character Mask",
            "Returns the mask of one character as a MASK batch, for the mask nodes of ComfyUI.",
            search_aliases=["pick mask", "character mask"],
            inputs=[
                types.Routing.Input("routing", tooltip="From BYA Embedding Router or BYA Mask Refine."),
                io.String.Input("character", default="1", tooltip="Name of the character, or its number from 1."),
                io.Combo.Input(
                    "frames",
                    options=["latent", "video"],
                    default="latent",
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
    @host.plain_errors
    def execute(cls, routing: types.RoutingValue, character: str, frames: str, masks: Any = None) -> io.NodeOutput:
        from bya_core.pipelines.interactive import character_index, masks_to_images

        tokens, grid = routing.token_masks(masks)
        one = tokens[character_index(character, routing.names)][None]
        if frames == "video":
            return io.NodeOutput(grid.tokens_to_pixels(one, mode="nearest")[0])
        return io.NodeOutput(masks_to_images(one, grid))
