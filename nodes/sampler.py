"""BYA Sampler."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from bya_core.config import SamplingConfig
from bya_core.errors import InputError

from . import convert, host, results, types
from .schema import schema, widget

if TYPE_CHECKING:
    from bya_core.config import Preset
    from bya_core.pipelines.sample import Video
    from bya_core.scene.types import Scene

log = logging.getLogger(__name__)
_MEASUREMENT_ERRORS = (InputError, MemoryError, RuntimeError, ValueError, OSError, LookupError, ArithmeticError)


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Sampler",
            "BYA Sampler",
            "Generates the video: resumes where the router stopped, with the current masks. All other settings are "
            "those of BYA Scene.",
            folder="video",
            search_aliases=["generate", "talking video", "lip sync", "dialogue", "multi speaker", "avatar"],
            has_intermediate_output=True,  # a later run sends the panel again without sampling
            inputs=[
                types.Routing.Input("routing", tooltip="From BYA Embedding Router or BYA Mask Refine."),
                widget(SamplingConfig, "preset", optional=True),
                widget(SamplingConfig, "spatial", optional=True),
            ],
            outputs=video_outputs(),
        )

    @classmethod
    @host.plain_errors
    def execute(cls, routing: types.RoutingValue, preset: Preset = "exact", spatial: bool = False) -> io.NodeOutput:
        from bya_core.pipelines.generate import sample
        from bya_core.pipelines.interactive import sample_windows, window_routing
        from bya_core.progress import ProgressTracker

        routing = routing.with_sampling(preset, spatial)
        model, scene = routing.model, routing.scene
        with host.running(model, routing.prepared.scene):
            callback = host.progress_callback(model, scene)
            if routing.whole is None:
                result = sample(routing.prepared, routing.routing, model.bundle, ProgressTracker(callback))
            else:
                before = routing.before or routing.whole
                resume = window_routing(routing.number - 1, routing.routing, before)
                result = sample_windows(routing.whole, model.bundle, host.temporary_folder(), callback, resume=resume)
        outputs, shown = video_results(result, scene, model, scene.notices)
        return io.NodeOutput(*outputs, ui=shown)


def video_outputs() -> list[Any]:
    """Outputs of a node that generates a video."""
    return [
        io.Image.Output("frames", tooltip="All video frames."),
        io.Video.Output("video", tooltip="Frames with the original voices. Connect to Save Video."),
        io.Audio.Output("audio", tooltip="All voices, as long as the video."),
        io.Mask.Output(
            "masks",
            tooltip="Masks of the last step: characters x latent frames, first character first.",
        ),
        io.Float.Output("fps", tooltip="Frames per second, always 25."),
        io.String.Output(
            "report",
            tooltip="Coverage per character, time per stage, whether each mouth follows its voice, notices.",
        ),
    ]


def video_results(
    result: Video, scene: Scene, model: host.HostModel, known: Sequence[str]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Values of `video_outputs`, and the binding panel and notices that are shown on the node.

    Args:
        result: The video.
        scene: Its scene.
        model: Its model.
        known: Notices that were shown before.
    """
    from bya_core.pipelines.interactive import masks_to_images, video_summary

    frames, audio = convert.images(result.frames), convert.audio(result.audio, scene.seconds)
    video = convert.video(frames, audio if result.audio is not None else None, scene.fps)
    masks = masks_to_images(result.masks, result.grid)
    panel, findings = _panel(result, scene, model)
    try:
        panel["video"] = host.temporary_video(video)
    except OSError as error:  # the folder of temporary files is full: the outputs are complete without the panel
        log.warning("The video is not shown on the node: %s", error)
    summary = f"{video_summary(scene.names, result)}\n{findings}".strip()
    shown = {"bya_binding": [panel], **results.notices(result.notices, known)}
    return (frames, video, audio, masks, scene.fps, summary), shown


def _panel(result: Video, scene: Scene, model: host.HostModel) -> tuple[dict[str, Any], str]:
    """Data of the binding panel of a video, and the findings as text. A failed measurement does not lose the video."""
    from bya_core.evaluation.panel import binding_panel, measure_video

    try:
        with host.cancellable():
            report = measure_video(result, scene, model.bundle.meter)
        panel = binding_panel(report, result.fps)
    except _MEASUREMENT_ERRORS as error:
        notice = f"The binding was not measured: {error}"
        log.warning("%s", notice)
        return {"characters": [], "notices": [notice], "duration": len(result.frames) / result.fps}, f"note: {notice}"
    return panel | {"notices": []}, report.text
