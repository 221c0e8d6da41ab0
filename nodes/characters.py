"""Who is in the scene: a face and a voice make a character, characters make a cast."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from bya_core.errors import InputError

from . import convert, host, types
from .schema import schema


class FaceEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "FaceEncode",
            "Face Encode (character)",
            "Makes one character of a picture and a voice. Chain several, or join them with Cast; their order is "
            "that of all masks. The face is read by the model when the router runs; Preflight shows beforehand what "
            "it sees.",
            search_aliases=["character", "reference face", "identity"],
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="One picture of this character's face, from the front, any size. Puppets of 'toy': on "
                    "white. A batch of several pictures is refused.",
                ),
                io.String.Input(
                    "name",
                    default="character A",
                    tooltip="What to call the character in legends and reports; each name once in a cast.",
                ),
                io.Float.Input(
                    "speech_strength",
                    default=1.0,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How strongly the voice moves this character: 1 = as trained, 0 = not at all. "
                    "0.7 to 1.3 is safe; more makes mouths overact.",
                ),
                types.Speech.Input(
                    "speech",
                    optional=True,
                    tooltip="The voice of this character, from Audio Encode. Left open: a silent listener.",
                ),
                types.Cast.Input(
                    "cast",
                    optional=True,
                    tooltip="Characters so far; this one is added at the end. Left open: the first.",
                ),
            ],
            outputs=[
                types.Cast.Output("cast", tooltip="The characters so far and this one; feeds Scene or Face Encode.")
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return True if name is None or name.strip() else "a character without a name; write one"

    @classmethod
    @host.told_plainly
    def execute(
        cls, image: Any, name: str, speech_strength: float, speech: Any = None, cast: Any = None
    ) -> io.NodeOutput:
        from bya_core.scene.compose import Member, joined

        member = Member(name.strip(), convert.one_picture(image, f"the picture of {name}"), speech, speech_strength)
        return io.NodeOutput(joined(cast or (), (member,)))


class AudioEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "AudioEncode",
            "Audio Encode (speech)",
            "Makes a voice of a recording: when it starts, how loud it is, and where in it somebody speaks.",
            search_aliases=["voice", "speech", "talk"],
            inputs=[
                io.Audio.Input(
                    "audio",
                    tooltip="A recording of one person alone, any sample rate, mono or stereo. Best without music.",
                ),
                io.Float.Input(
                    "offset",
                    default=0.0,
                    min=-3600.0,
                    max=3600.0,
                    step=0.04,
                    tooltip="Seconds of video before the recording starts; negative skips its beginning. One frame is "
                    "0.04 s.",
                ),
                io.Float.Input(
                    "gain",
                    default=0.0,
                    min=-60.0,
                    max=60.0,
                    step=0.5,
                    tooltip="Loudness in decibels, for the mouth and for the sound of the video alike; 0 = as "
                    "recorded, -12 to 12 is safe.",
                ),
            ],
            outputs=[
                types.Speech.Output("speech", tooltip="The voice; feeds Face Encode."),
                io.String.Output(
                    "spans", tooltip="When somebody speaks in it, in seconds of the video, one span a line."
                ),
            ],
        )

    @classmethod
    @host.told_plainly
    def execute(cls, audio: Any, offset: float, gain: float) -> io.NodeOutput:
        from bya_core.encoders.vad import speaking_spans

        speech = convert.one_speech(audio, offset, gain)
        lines = [f"{start:.2f} - {end:.2f} s" for start, end in speaking_spans(speech)]
        return io.NodeOutput(speech, "\n".join(lines) or "nobody speaks")


class Cast(io.ComfyNode):
    """Only where the host has inputs that grow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        member = types.Cast.Input("character", tooltip="One character, or several chained ones, from Face Encode.")
        return schema(
            "Cast",
            "Cast",
            "Joins characters into one cast, in the order of the inputs. The same as chaining Face Encode.",
            search_aliases=["characters", "people"],
            inputs=[
                io.Autogrow.Input(
                    "characters",
                    template=io.Autogrow.TemplatePrefix(member, prefix="character", min=1, max=8),
                    tooltip="1 to 8 characters; a further input appears when one is connected.",
                )
            ],
            outputs=[types.Cast.Output("cast", tooltip="All of them; feeds Scene.")],
        )

    @classmethod
    @host.told_plainly
    def execute(cls, characters: dict[str, Any]) -> io.NodeOutput:
        from bya_core.scene.compose import joined

        given = [cast for cast in characters.values() if cast is not None]
        if not given:
            raise InputError("a cast of nobody", "at least 1 character", "connect a Face Encode")
        return io.NodeOutput(joined(*given))
