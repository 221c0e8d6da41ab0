"""BYA Dub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from bya_core.config import DubConfig

from . import convert, host, results, types
from .schema import schema, widget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bya_core.config import DubRegion
    from bya_core.pipelines.dub.dub import DubbedFilm
    from bya_core.pipelines.dub.film import Film


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
        from bya_core.pipelines.dub.film import masks_of

        model, core = scene.model, scene.scene
        source = _film(film)
        with host.running(model, core):
            done = dub_film(
                source,
                core,
                model.bundle,
                DubConfig(region, feather, strength),
                masks=None if masks is None else masks_of(masks.cpu(), len(core.names), source),
                callback=host.progress_callback(model, core),
                folder=host.temporary_folder(),
            )
        return _output(done, source, core.notices)


def _film(film: Any) -> Film:
    """VIDEO -> film with its sound."""
    from bya_core.pipelines.dub.film import film_of

    parts = film.get_components()
    sound = None if parts.audio is None else (parts.audio["waveform"][0].cpu().float(), parts.audio["sample_rate"])
    return film_of(convert.to_uint8(parts.images), float(parts.frame_rate), sound)


def _output(done: DubbedFilm, source: Film, known: Sequence[str]) -> io.NodeOutput:
    """The outputs of the node; notices that the cast has shown already are not repeated."""
    made = done.load()
    frames, audio = convert.images(made.frames), convert.audio(done.audio, source.seconds)
    video = convert.video(frames, audio if done.audio is not None else None, source.fps)
    report = done.summary()
    shown = {**results.text(report), **results.notices(done.notices, known)}
    return io.NodeOutput(video, frames, audio, made.weights, convert.images(made.overlay), report, ui=shown)
