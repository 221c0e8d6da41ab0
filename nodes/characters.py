"""BYA Face Encode, BYA Audio Encode and BYA Cast: the characters of a scene."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from bya_core.errors import InputError
from bya_core.scene.schema import CharacterEntry

from . import checks, convert, host, results, types
from .schema import schema, widget

ANALYZED = 300  # seconds of a recording in which speech is looked for
NO_SPEECH = "No speech was found in the recording: the mouth will hardly move."


class FaceEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "FaceEncode",
            "BYA Face Encode",
            "Makes one character from a reference image and a voice. Chain several, or join them with BYA Cast; their "
            "order is the order of all masks. Faces are encoded when the router runs; BYA Preflight shows the detected "
            "faces beforehand.",
            folder="characters",
            search_aliases=["character", "reference face", "identity", "avatar", "talking", "multi speaker"],
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="One reference image of the character's face, frontal, any size. For the toy model: a "
                    "drawn puppet on white.",
                ),
                io.String.Input("name", default="character A", tooltip="Unique name, used in legends and reports."),
                widget(CharacterEntry, "speech_strength", hint="0.7 to 1.3 is safe.", optional=True, advanced=True),
                types.Speech.Input(
                    "speech",
                    optional=True,
                    tooltip="Voice of the character, from BYA Audio Encode. Not connected: a silent listener.",
                ),
                types.Cast.Input(
                    "cast",
                    optional=True,
                    tooltip="Previous characters; this one is appended.",
                ),
            ],
            outputs=[
                types.Cast.Output(
                    "cast", tooltip="All characters so far. Connect to BYA Scene or to the next BYA Face Encode."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return checks.validate(lambda: checks.check_character(name))

    @classmethod
    @host.plain_errors
    def execute(
        cls, image: Any, name: str, speech_strength: float = 1.0, speech: Any = None, cast: Any = None
    ) -> io.NodeOutput:
        from bya_core.scene.compose import CastMember, combine_casts

        member = CastMember(name.strip(), convert.one_image(image, f"the image of {name}"), speech, speech_strength)
        return io.NodeOutput(combine_casts(cast or (), (member,)))


class AudioEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AudioEncode",
            "BYA Audio Encode",
            "Makes the voice of one character from a recording, and finds the spans with speech.",
            folder="characters",
            search_aliases=["voice", "speech", "talking", "lip sync", "dialogue", "multi speaker"],
            has_intermediate_output=True,
            inputs=[
                io.Audio.Input(
                    "audio", tooltip="A recording of one speaker, any sample rate, mono or stereo, without music."
                ),
                widget(CharacterEntry, "offset", step=0.04, hint="One frame is 0.04 s.", optional=True),
                widget(
                    CharacterEntry,
                    "gain",
                    step=0.5,
                    hint="Applies to the model and to the audio of the video.",
                    optional=True,
                    advanced=True,
                ),
            ],
            outputs=[
                types.Speech.Output("speech", tooltip="The voice. Connect to BYA Face Encode."),
                io.String.Output("speech_spans", tooltip="Spans with speech, in seconds of the video, one per line."),
            ],
        )

    @classmethod
    @host.plain_errors
    def execute(cls, audio: Any, offset: float = 0.0, gain: float = 0.0) -> io.NodeOutput:
        from bya_core.encoders.vad import first_spans

        speech = convert.one_speech(audio, offset, gain)
        spans = first_spans(speech, ANALYZED)
        lines = [f"{start:.2f} - {end:.2f} s" for start, end in spans]
        if speech.end - max(0.0, speech.offset) > ANALYZED:
            lines.append(f"only the first {ANALYZED} s were searched")
        shown = {**results.waveform(speech, spans), **results.notices([] if spans else [NO_SPEECH])}
        return io.NodeOutput(speech, "\n".join(lines) or "no speech found", ui=shown)


class Cast(io.ComfyNode):
    """Available if ComfyUI supports `io.Autogrow`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        member = types.Cast.Input("character", tooltip="One or several chained characters, from BYA Face Encode.")
        return schema(
            "Cast",
            "BYA Cast",
            "Joins characters into one cast, in the order of the inputs. Equivalent to chaining BYA Face Encode.",
            folder="characters",
            search_aliases=["characters", "people", "dialogue", "multi speaker", "talking"],
            inputs=[
                io.Autogrow.Input(
                    "characters",
                    template=io.Autogrow.TemplatePrefix(member, prefix="character", min=1, max=8),
                    tooltip="1 to 8 characters. Another input appears when one is connected.",
                )
            ],
            outputs=[types.Cast.Output("cast", tooltip="All characters. Connect to BYA Scene.")],
        )

    @classmethod
    @host.plain_errors
    def execute(cls, characters: dict[str, Any]) -> io.NodeOutput:
        from bya_core.scene.compose import combine_casts

        casts = [cast for cast in characters.values() if cast is not None]
        if not casts:
            raise InputError("a cast without characters", "at least 1 character", "connect BYA Face Encode")
        return io.NodeOutput(combine_casts(*casts))
