"""BYA Script and BYA Script Lines: a written dialogue becomes the speech of a cast."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from comfy_api.latest import io

from bya_core.io.synthesis import Engine

from . import checks, convert, host, results, types
from .schema import audio_inputs, made, schema

if TYPE_CHECKING:
    from bya_core.scene.spoken import Recording

EXAMPLE = "ADA: Have you seen my umbrella?\nBO: It is raining, isn't it?\n(pause 1)\nADA: It is. And I am late."
SCRIPT_TIP = (
    "One line per sentence, as NAME: text. Cues between lines: (pause 1.5), (overlap 0.4), (at 12), in seconds. What "
    "is in brackets is not spoken."
)


def script_input() -> Any:
    """The written dialogue."""
    return made(io.String.Input, "script", multiline=True, default="", placeholder=EXAMPLE, tooltip=SCRIPT_TIP)


class ScriptLines(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "ScriptLines",
            "BYA Script Lines",
            "The lines of a script, one after the other, for the text-to-speech node of another pack: it runs once per "
            "line. Connect its audio to BYA Script. Also estimates when each line is said.",
            folder="characters",
            search_aliases=["script", "dialogue", "text to speech", "tts", "screenplay"],
            has_intermediate_output=True,
            inputs=[
                script_input(),
                io.String.Input(
                    "character",
                    default="",
                    optional=True,
                    tooltip="Only the lines of this character, such as ADA; empty: all lines.",
                ),
            ],
            outputs=[
                io.String.Output(
                    "lines", is_output_list=True, tooltip="The text of each line. Connect to a text-to-speech node."
                ),
                io.String.Output("estimate", tooltip="When each line is said, estimated from its text."),
            ],
        )

    @classmethod
    def validate_inputs(cls, script: str | None = None, character: str | None = None) -> bool | str:
        from bya_core.scene.script import lines_of, parse_script

        def check() -> None:
            if script is not None and (lines := parse_script(script)) and character and character.strip():
                lines_of(lines, character)

        return checks.validate(check)

    @classmethod
    @host.plain_errors
    def execute(cls, script: str, character: str = "") -> io.NodeOutput:
        from bya_core.scene.script import lines_of, parse_script
        from bya_core.scene.spoken import estimate, timetable

        lines = parse_script(script)
        text = timetable(lines, *estimate(lines))
        own = lines_of(lines, character) if character.strip() else lines
        return io.NodeOutput([line.text for line in own], text, ui={"bya_table": [text]})


class Script(io.ComfyNode):
    """Takes lists, so that it receives all recordings of a text-to-speech node at once."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "Script",
            "BYA Script",
            "Gives a cast the speech of a written dialogue, with natural gaps. Speech is synthesized on this machine, "
            "or comes from any text-to-speech node: connect its audio to the recordings of a character.",
            folder="characters",
            search_aliases=["dialogue", "text to speech", "tts", "screenplay", "talking", "multi speaker"],
            has_intermediate_output=True,
            is_input_list=True,
            inputs=[
                types.Cast.Input(
                    "cast", tooltip="The characters, with the names of the script. Who has no line is a listener."
                ),
                script_input(),
                io.Combo.Input(
                    "engine",
                    options=list(get_args(Engine)),
                    default="auto",
                    optional=True,
                    tooltip="Speech synthesizer for lines without a recording: the program espeak-ng, or the Python "
                    "package piper-tts or kokoro. auto: Piper if all voices are .onnx files, else espeak-ng.",
                ),
                io.String.Input(
                    "voices",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="Voices, one NAME=VOICE per line: en-us+f3 (espeak-ng), af_heart (Kokoro), or a .onnx file "
                    "in models/bindyouravatar (Piper). Empty: chosen for you.",
                ),
                made(
                    io.String.Input,
                    "language",
                    default="en",
                    optional=True,
                    advanced=True,
                    tooltip="Language of the chosen voices of espeak-ng, such as en, de, fr or cmn.",
                ),
                *audio_inputs(
                    "recordings",
                    "Recordings of character {} of the cast, one per line, from a text-to-speech node behind BYA "
                    "Script Lines.",
                ),
            ],
            outputs=[
                types.Cast.Output("cast", tooltip="The cast with its speech. Connect to BYA Scene."),
                io.String.Output("timetable", tooltip="When each line is said."),
                io.String.Output("subtitles", tooltip="The dialogue as SRT, with the names of the speakers."),
            ],
        )

    @classmethod
    def validate_inputs(cls, script: Any = None, voices: Any = None) -> bool | str:
        from bya_core.scene.script import parse_script, speakers
        from bya_core.scene.spoken import named_values

        text, pairs = first(script, None), first(voices, "")
        if text is None:  # connected
            return True
        return checks.validate(lambda: named_values(pairs.splitlines(), speakers(parse_script(text)), "voice"))

    @classmethod
    @host.plain_errors
    def execute(
        cls, cast: Any, script: Any, engine: Any = None, voices: Any = None, language: Any = None, **recordings: Any
    ) -> io.NodeOutput:
        from bya_core.scene.script import subtitles
        from bya_core.scene.spoken import SpokenScript, lines_of_cast, named_values, synthesize_missing, with_recordings

        members = first(cast, ())
        names = [member.name for member in members]
        lines = lines_of_cast(first(script, ""), names)
        clips: dict[int, Recording] = {}
        given = {key: audio or None for key, audio in recordings.items()}  # not connected: none, or an empty list
        for name, audio in convert.by_character(given, "recordings", names).items():
            speeches = [convert.one_speech(each, 0.0, 0.0) for each in audio]
            clips |= with_recordings(lines, name, [(each.waveform, each.sample_rate) for each in speeches])
        pairs = named_values(first(voices, "").splitlines(), names, "voice")
        chosen = {name: host.voice(voice) for name, voice in pairs.items()}
        with host.cancellable():
            made_by = synthesize_missing(lines, clips, chosen, first(engine, "auto"), first(language, "en"))
        spoken = SpokenScript.of(lines, [clips.get(k) or made_by[k] for k in range(len(lines))])
        said = {line.speaker for line in lines}
        speaking = tuple(
            replace(each, speech=spoken.speech(each.name) if each.name in said else None) for each in members
        )
        srt = subtitles(lines, spoken.starts, spoken.seconds)
        shown = {"bya_table": [spoken.text], **results.notices(spoken.notices)}
        return io.NodeOutput(speaking, spoken.text, srt, ui=shown)


def first(values: Any, default: Any) -> Any:
    """The value of an input of a node that takes lists."""
    value = values[0] if isinstance(values, list) and values else values
    return default if value is None or value == [] else value
