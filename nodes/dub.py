"""BYA Dub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from bya_core.config import DubConfig

from . import convert, host, results, types
from .schema import schema, widget

if TYPE_CHECKING:
    from bya_core.config import DubRegion


class Dub(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Dub",
            "BYA Dub",
            "Gives people in an existing video new voices: their mouths are generated again, everything else stays as "
            "it is. Characters without speech keep voice and mouth. Replaces router and sampler.",
            folder="video",
            search_aliases=["dubbing", "re-voice", "lip sync", "translate", "video to video", "edit", "multi speaker"],
            has_intermediate_output=True,
            inputs=[
                types.Scene.Input(
                    "scene",
                    tooltip="From BYA Scene: the characters with their new voices, prompt, seed and settings. Length "
                    "and first frame are those of the film.",
                ),
                io.Video.Input("film", tooltip="The video, from Load Video or any other node; any size and length."),
                widget(DubConfig, "region"),
                widget(DubConfig, "feather"),
                widget(DubConfig, "strength", min=0.05),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Where the characters are in the film: one mask per character, or characters x frames, "
                    "first character first. Not connected: they are found by their reference images.",
                ),
            ],
            outputs=[
                io.Video.Output("video", tooltip="The dubbed film. Connect to Save Video."),
                io.Image.Output("frames", tooltip="Its frames; outside of the regions exactly those of the film."),
                io.Audio.Output("audio", tooltip="New voices, and what stays of the old sound."),
                io.Mask.Output("masks", tooltip="Weight of the generated picture in each frame."),
                io.Image.Output("overlay", tooltip="The frames with the generated regions in color."),
                io.String.Output("report", tooltip="Who was dubbed, what was generated, notices."),
            ],
        )

    @classmethod
    @host.plain_errors
    def execute(
        cls,
        scene: types.SceneValue,
        film: Any,
        region: DubRegion = "mouth",
        feather: int = 4,
        strength: float = 0.75,
        masks: Any = None,
    ) -> io.NodeOutput:
        from bya_core.pipelines.dub.dub import dub_film
        from bya_core.pipelines.dub.film import film_of, masks_of

        model, core, parts = scene.model, scene.scene, film.get_components()
        sound = None if parts.audio is None else (parts.audio["waveform"][0].cpu().float(), parts.audio["sample_rate"])
        source = film_of(convert.to_uint8(parts.images), float(parts.frame_rate), sound)
        given = None if masks is None else masks_of(masks.cpu(), len(core.names), source)
        with host.running(model, core):
            done = dub_film(
                source,
                core,
                model.bundle,
                DubConfig(region, feather, strength),
                masks=given,
                callback=host.progress_callback(model, core),
                folder=host.temporary_folder(),
            )
        made = done.load()
        frames, audio = convert.images(made.frames), convert.audio(done.audio, source.seconds)
        video = convert.video(frames, audio if done.audio is not None else None, source.fps)
        report = done.summary()
        shown = {**results.text(report), **results.notices(done.notices, core.notices)}
        overlay = convert.images(made.overlay)
        return io.NodeOutput(video, frames, audio, made.weights, overlay, report, ui=shown)
