"""Looking at masks: laid over pictures, or one character's alone."""

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
            "Mask Overlay",
            "Shows who is where: each character in a colour of its own over the pictures, with a legend and how sure "
            "the router is.",
            search_aliases=["show masks", "preview masks", "visualise"],
            inputs=[
                types.Routed.Input("routing", tooltip="From Embedding Router or Mask Refine: names and masks."),
                io.Float.Input(
                    "opacity",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Of the colours where a mask is 1: 0 = only the picture, 1 = only colour. 0.3 to 0.6 is "
                    "good.",
                ),
                io.Boolean.Input(
                    "legend", default=True, tooltip="On: names, share of the picture and confidence below each picture."
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="Pictures to lay the masks over: all video frames, or one for all. Left open: the first "
                    "frame of the scene, or grey.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Other masks to show, such as those of BYA Sampler: characters x frames pictures. Left "
                    "open: those of routing.",
                ),
            ],
            outputs=[io.Image.Output("images", tooltip="One picture a video frame; small videos are enlarged.")],
        )

    @classmethod
    @host.told_plainly
    def execute(
        cls, routing: types.RoutingValue, opacity: float, legend: bool, images: Any = None, masks: Any = None
    ) -> io.NodeOutput:
        from bya_core.pipelines.mask_images import overlay_images, still

        tokens, grid = routing.token_masks(masks)
        frames = still(routing.scene.first_frame, grid) if images is None else convert.bytes_of(images)
        names = routing.names if legend else []
        return io.NodeOutput(convert.images(overlay_images(tokens, grid, frames, names, opacity)))


class SelectCharacterMask(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "SelectCharacterMask",
            "Select Character Mask",
            "The mask of one character as a batch of masks, for ComfyUI's own mask nodes.",
            search_aliases=["pick mask", "mask of one character"],
            inputs=[
                types.Routed.Input("routing", tooltip="From Embedding Router or Mask Refine: names and masks."),
                io.String.Input("character", default="1", tooltip="Name of the character, or its number from 1."),
                io.Combo.Input(
                    "frames",
                    options=["latent", "video"],
                    default="latent",
                    tooltip="latent: one mask a latent frame (what the model knows). video: one a video frame, held "
                    "for the frames it covers.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Take it from these (characters x frames pictures, such as those of BYA Sampler). Left "
                    "open: from routing.",
                ),
            ],
            outputs=[io.Mask.Output("mask", tooltip="One mask a frame, at the size of the video.")],
        )

    @classmethod
    @host.told_plainly
    def execute(cls, routing: types.RoutingValue, character: str, frames: str, masks: Any = None) -> io.NodeOutput:
        from bya_core.pipelines.mask_images import character_index, to_images

        tokens, grid = routing.token_masks(masks)
        one = tokens[character_index(character, routing.names)][None]
        if frames == "video":
            return io.NodeOutput(grid.tokens_to_pixels(one, mode="nearest")[0])
        return io.NodeOutput(to_images(one, grid))
