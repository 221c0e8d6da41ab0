"""BYA Sampler: from masks to the finished video."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comfy_api.latest import io

from . import convert, host, types
from .schema import schema

if TYPE_CHECKING:
    from bya_core.config import Preset


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Sampler",
            "BYA Sampler",
            "Makes the video: goes on where the router stopped, with the masks as they are now. All other settings are "
            "those of Scene.",
            search_aliases=["generate", "talking video", "render"],
            inputs=[
                types.Routed.Input("routing", tooltip="From Embedding Router or Mask Refine."),
                io.Combo.Input(
                    "speed",
                    options=["exact", "balanced", "fast"],
                    default="exact",
                    tooltip="How much work may be left out. exact: none. balanced: what can hardly be seen. fast: "
                    "more; faces and voices stay together, small things may look different.",
                ),
            ],
            outputs=[
                io.Image.Output("frames", tooltip="All video frames."),
                io.Video.Output("video", tooltip="Frames and the original voices together; feeds Save Video."),
                io.Audio.Output(
                    "audio", tooltip="All voices as recorded, as long as the video; silence if nobody speaks."
                ),
                io.Mask.Output(
                    "masks",
                    tooltip="The masks that acted in the last step: characters x latent frames pictures, all of the "
                    "first character first.",
                ),
                io.Float.Output("fps", tooltip="Frames a second, always 25."),
                io.String.Output("report", tooltip="Who was where, seconds per part of the work, notices."),
            ],
        )

    @classmethod
    @host.told_plainly
    def execute(cls, routing: types.RoutingValue, speed: Preset = "exact") -> io.NodeOutput:
        from bya_core.pipelines.generate import sample
        from bya_core.pipelines.interactive import describe_video, sample_windows
        from bya_core.pipelines.mask_images import to_images
        from bya_core.progress import ProgressTracker

        routing = routing.at(speed)
        model, scene = routing.model, routing.scene
        with host.working(model, routing.prepared.scene):
            watch = host.watcher(model, scene)
            if routing.whole is None:
                made = sample(routing.prepared, routing.routing, model.bundle, ProgressTracker(watch))
            else:
                made = sample_windows(routing.whole, model.bundle, host.temporary_folder(), watch)
        frames, audio = convert.images(made.frames), convert.audio(made.audio, scene.seconds)
        video = convert.video(frames, audio if made.audio is not None else None, scene.fps)
        masks = to_images(made.masks, made.grid)
        return io.NodeOutput(frames, video, audio, masks, scene.fps, describe_video(routing.names, made))
