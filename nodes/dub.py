"""BYA Dub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from bya_core.config import DubConfig

from . import checks, convert, host, results, types
from .schema import audio_inputs, made, schema, widget

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from bya_core.config import DubRegion
    from bya_core.pipelines.dub.dub import DubbedFilm
    from bya_core.pipelines.dub.film import Film
    from bya_core.scene.original_voices import OriginalVoices
    from bya_core.scene.timeline import Turn


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
                made(
                    io.String.Input,
                    "timeline",
                    optional=True,
                    force_input=True,
                    tooltip="Who speaks when in the film: the text of an SRT, WebVTT, RTTM or JSON file with the names "
                    "of the characters, from a text node. The film is muted where a character with a new voice speaks.",
                ),
                *audio_inputs(
                    "old_voice",
                    "Old voice of character {} alone, from the start of the film. If any of these or background is "
                    "connected, they replace the sound of the film, without those of characters with a new voice.",
                ),
                io.Audio.Input(
                    "background",
                    optional=True,
                    tooltip="Sound of the film without voices, such as music and noise, from the start of the film.",
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
    def validate_inputs(cls, timeline: str | None = None) -> bool | str:
        return checks.validate(lambda: _turns(timeline))

    @classmethod
    @host.plain_errors
    def execute(
        cls,
        scene: types.SceneValue,
        film: Any,
        region: DubRegion = "mouth",
        feather: int = 4,
        strength: float = 0.75,
        masks: Tensor | None = None,
        timeline: str | None = None,
        background: Any = None,
        **old_voices: Any,
    ) -> io.NodeOutput:
        from bya_core.pipelines.dub.dub import dub_film

        model, core, source = scene.model, scene.scene, _film(film)
        given = _masks(masks, core.names, source)
        voices = _voices(core.names, timeline, old_voices, background)
        config, folder = DubConfig(region, feather, strength), host.temporary_folder()
        with host.running(model, core):
            progress = host.progress_callback(model, core)
            done = dub_film(
                source, core, model.bundle, config, masks=given, voices=voices, callback=progress, folder=folder
            )
        return _output(done, source, core.notices)


def _film(film: Any) -> Film:
    """VIDEO -> film with its sound."""
    from bya_core.pipelines.dub.film import film_of

    parts = film.get_components()
    sound = None if parts.audio is None else (parts.audio["waveform"][0].cpu().float(), parts.audio["sample_rate"])
    return film_of(convert.to_uint8(parts.images), float(parts.frame_rate), sound)


def _masks(masks: Tensor | None, names: Sequence[str], source: Film) -> np.ndarray | None:
    """MASK -> where the characters are in the film; None = to be found."""
    from bya_core.pipelines.dub.film import masks_of

    return None if masks is None else masks_of(masks.cpu(), len(names), source)


def _turns(timeline: str | None) -> Sequence[Turn]:
    """The turns of a timeline; none of an empty one."""
    from bya_core.scene.timeline import parse_timeline

    return parse_timeline(timeline) if timeline is not None and timeline.strip() else ()


def _voices(
    names: Sequence[str], timeline: str | None, old_voices: dict[str, Any], background: Any
) -> OriginalVoices | None:
    """What is known of the voices in the film; None = nothing."""
    from bya_core.scene.original_voices import OriginalVoices, named_turns

    stems = convert.by_character(old_voices, "old_voice", names)
    voices = OriginalVoices(
        {name: convert.one_speech(audio, 0.0, 0.0) for name, audio in stems.items()},
        None if background is None else convert.one_speech(background, 0.0, 0.0),
        named_turns(_turns(timeline), names),
    )
    return voices if voices.stems or voices.background or voices.turns else None


def _output(done: DubbedFilm, source: Film, known: Sequence[str]) -> io.NodeOutput:
    """The outputs of the node; notices that the cast has shown already are not repeated."""
    made = done.load()
    frames, audio = convert.images(made.frames), convert.audio(done.audio, source.seconds)
    video = convert.video(frames, audio if done.audio is not None else None, source.fps)
    report = done.summary()
    shown = {**results.text(report), **results.notices(done.notices, known)}
    return io.NodeOutput(video, frames, audio, made.weights, convert.images(made.overlay), report, ui=shown)
