"""The scene file: its keys, types and ranges, its strict reader and its JSON schema.

Options shared with the command line and the nodes come from `bya_core.config`.
`python -m bya_core.scene.schema` writes the JSON schema to docs/reference/scene.schema.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import TypeAdapter

from bya_core.config import (
    MAX_CHARACTERS,
    MAX_NAME,
    MAX_SECONDS,
    MAX_TEXT,
    AudioGuidanceScale,
    DubConfig,
    GuidanceScale,
    MaskEnd,
    MaskStart,
    MaskStrength,
    PresetOption,
    RefineConfig,
    RouterConfig,
    SchedulerOption,
    Seed,
    SpeechStrength,
    Steps,
    WindowConfig,
)
from bya_core.io.files import read_json
from bya_core.io.inputs import note_input
from bya_core.scene.types import FrameFit
from bya_core.validation import Field, from_mapping, validated

SCHEMA_FILE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "scene.schema.json"

Seconds = Annotated[float, Field(ge=0, le=MAX_SECONDS)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Speaker = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
FilePath = Annotated[str, Field(min_length=1, max_length=4096)]
Gain = Annotated[float, Field(ge=-60, le=60, description="Gain in dB.")]
Pixels = Annotated[int, Field(ge=8, le=4096)]


@validated
class ClipEntry:
    """A part of a recording, placed in the video."""

    file: Annotated[FilePath, Field(description="Audio file (wav, flac, mp3, m4a, ...).")]
    start: Annotated[Seconds, Field(description="Start of the clip in the video, in seconds.")] = 0.0
    gain: Gain = 0.0
    from_: Annotated[
        Seconds, Field(validation_alias="from", description="Start of the clip in the recording, in seconds.")
    ] = 0.0
    to: Annotated[
        Seconds | None, Field(description="End of the clip in the recording, in seconds. null is the end of the file.")
    ] = None


@validated
class TurnEntry:
    """One turn of a speaker."""

    speaker: Annotated[Speaker, Field(description="Name of a character, or the `speaker` of a character.")]
    start: Annotated[Seconds, Field(description="Start of the turn in seconds.")]
    end: Annotated[Seconds, Field(description="End of the turn in seconds.")]
    text: Annotated[Text | None, Field(description="Transcript, for readers of the file. Not used.")] = None


@validated
class PromptEntry:
    """A prompt for a part of the video."""

    start: Annotated[Seconds, Field(description="Start in the video, in seconds.")]
    end: Annotated[Seconds, Field(description="End in the video, in seconds.")]
    prompt: Annotated[Text, Field(description="Prompt that replaces the prompt of the scene.")]


@validated
class CharacterEntry:
    """One character."""

    name: Annotated[Speaker, Field(description="Unique name, used in masks, legends and reports.")]
    image: Annotated[FilePath, Field(description="Reference image of the face (png, jpg, webp, ...).")]
    speech: Annotated[
        FilePath | Annotated[list[ClipEntry], Field(min_length=1, max_length=1000)] | None,
        Field(
            description="Audio file (wav, flac, mp3, m4a, ...) or a list of clips. null is a silent listener, or a "
            "character whose speech is cut from the dialogue."
        ),
    ] = None
    offset: Annotated[
        float,
        Field(
            ge=-3600,
            le=3600,
            description="Start of the speech in the video, in seconds. Negative values trim the recording.",
        ),
    ] = 0.0
    gain: Gain = 0.0
    speech_strength: SpeechStrength = 1.0
    speaker: Annotated[
        Speaker | None, Field(description="Name in the timeline, such as SPEAKER_00. null is the character's name.")
    ] = None
    mask: Annotated[
        FilePath | None,
        Field(
            description="Mask of the character, an image (white is the character) or an npz file, for all frames or "
            "per frame. null uses the router's mask."
        ),
    ] = None
    mask_strength: MaskStrength = 1.0
    mask_start_percent: MaskStart = 0.0
    mask_end_percent: MaskEnd = 1.0


@validated
class RouterEntry(RouterConfig):
    """The options of the router, and masks for all characters."""

    refine: Annotated[
        RefineConfig | bool | None,
        Field(
            description="How the masks are refined before they are applied. true uses the defaults, null or false "
            "disables it."
        ),
    ] = None  # type: ignore[assignment]
    masks: Annotated[
        FilePath | None,
        Field(
            description='Masks of all characters, an npz file with an array "masks" of values in 0..1 and shape '
            "(characters, latent frames, token rows, token columns), as written by --masks, or (characters, video "
            "frames, any height, any width)."
        ),
    ] = None
    strength: MaskStrength = 1.0

    def config(self) -> RouterConfig:
        """The options without the masks."""
        refine = RefineConfig() if self.refine is True else self.refine or None
        options = {name: getattr(self, name) for name in RouterConfig.__dataclass_fields__}
        return RouterConfig(**options | {"refine": refine})


@validated
class StemEntry:
    """The recording of one old voice of a film, or of everything but the voices."""

    file: Annotated[FilePath, Field(description="Audio file that starts with the film.")]
    character: Annotated[
        Speaker | None,
        Field(description="Whose voice it is. null is everything but the voices, such as music and noise."),
    ] = None


@validated
class DubEntry(DubConfig):
    """How a film is dubbed with this scene, and what is known of its old voices. Used by `bya dub` only."""

    timeline: Annotated[
        FilePath | Annotated[list[TurnEntry], Field(min_length=1, max_length=10_000)] | None,
        Field(
            description="Who speaks when in the film, a file (rttm, srt, vtt, json) or a list. Its sound is muted "
            "where a character with a new voice speaks."
        ),
    ] = None
    stems: Annotated[
        tuple[StemEntry, ...],
        Field(
            max_length=1000,
            description="The sound of the film as separate recordings. Those of characters with a new voice are left "
            "out.",
        ),
    ] = ()

    def config(self) -> DubConfig:
        """The options without what is known of the old voices."""
        return DubConfig(self.region, self.feather, self.strength)


@validated
class SceneFile:
    """A scene of Bind-Your-Avatar."""

    prompt: Annotated[Text, Field(description="Description of the video, with the position of each character.")]
    characters: Annotated[
        list[CharacterEntry],
        Field(min_length=1, max_length=MAX_CHARACTERS, description="Characters, in the order of all masks."),
    ]
    prompts: Annotated[
        tuple[PromptEntry, ...], Field(max_length=1000, description="Prompts for parts of the video.")
    ] = ()
    negative_prompt: Annotated[Text, Field(description="What the video should not contain.")] = ""
    first_frame: Annotated[FilePath | None, Field(description="Image that fixes the first frame.")] = None
    first_frame_fit: Annotated[
        FrameFit,
        Field(
            description="How the image is fitted to the size of the video. crop covers it and crops the rest, pad adds "
            "black bars, stretch ignores the aspect ratio (only with the released weights, as their code does)."
        ),
    ] = "crop"
    dialogue: Annotated[FilePath | None, Field(description="One recording of all speakers, split by the timeline.")] = (
        None
    )
    timeline: Annotated[
        FilePath | Annotated[list[TurnEntry], Field(min_length=1, max_length=10_000)] | None,
        Field(description="Speaker turns, a file (rttm, srt, vtt, json) or a list."),
    ] = None
    audio_character_matrix: Annotated[
        list[list[float]] | Literal["identity", "swapped", "auto"] | None,
        Field(
            description="Which speech drives which character, one row per speech and one column per character, values "
            "in 0..1. identity or null assigns each speech to its own character, swapped to the next character, auto "
            "matches voices to the mouths of reference_video, or to faces."
        ),
    ] = None
    reference_video: Annotated[
        FilePath | None,
        Field(
            description="Video in which the characters, real people, say the speeches, from its start. With "
            "audio_character_matrix auto, each voice drives the character whose lips follow it."
        ),
    ] = None
    height: Annotated[Pixels | None, Field(description="Height in pixels. null is the model's height.")] = None
    width: Annotated[Pixels | None, Field(description="Width in pixels. null is the model's width.")] = None
    length: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=1, le=100_000)],
        Field(description="Number of video frames (rounded to a multiple of 4, plus 1). auto fits the longest speech."),
    ] = "auto"
    force: Annotated[
        bool,
        Field(
            description="Accept reference images of a kind that the model was not trained on, such as photographs with "
            "the toy model, and expect no usable video."
        ),
    ] = False
    fps: Annotated[Literal[25], Field(description="Frames per second. Audio features have 25 frames per second.")] = 25
    seed: Seed | None = None
    steps: Steps | None = None
    guidance_scale: GuidanceScale | None = None
    audio_guidance_scale: AudioGuidanceScale | None = None
    scheduler: SchedulerOption | None = None
    preset: PresetOption | None = None
    router: Annotated[RouterEntry, Field(description="Where the character masks come from.")] = RouterEntry()
    windows: Annotated[WindowConfig, Field(description="How a video longer than one window is generated.")] = (
        WindowConfig()
    )
    dub: Annotated[DubEntry, Field(description="How a film is dubbed with this scene (bya dub).")] = DubEntry()


def read_scene_file(path: Path) -> SceneFile:
    """Read and check a scene file. The files it names are not opened, but recorded as inputs."""
    data = read_json(path, "the scene")
    if isinstance(data, dict):
        data.pop("$schema", None)
    file = from_mapping(SceneFile, data, path.name)
    for name in named_files(file):
        note_input(path.parent / name)
    return file


def named_files(file: SceneFile) -> list[str]:
    """All files that a scene file names, as written in it."""
    names = [file.first_frame, file.dialogue, file.router.masks, file.reference_video]
    names += [each if isinstance(each, str) else None for each in (file.timeline, file.dub.timeline)]
    names += [stem.file for stem in file.dub.stems]
    for character in file.characters:
        names += [character.image, character.mask]
        speech = character.speech
        names += [clip.file for clip in speech] if isinstance(speech, list) else [speech]
    return [name for name in names if name is not None]


def scene_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of scene files."""
    schema = TypeAdapter(SceneFile).json_schema()
    for each in (schema, *schema["$defs"].values()):
        each["properties"] = {key: _described(value) for key, value in each["properties"].items()}
    schema["properties"] = {"$schema": {"type": "string"}} | schema["properties"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _described(entry: dict[str, Any]) -> dict[str, Any]:
    """The schema of one key without generated titles; its description also where only one of its types has one."""
    entry = {key: value for key, value in entry.items() if key != "title"}
    found = [option["description"] for option in entry.get("anyOf", []) if "description" in option]
    return {"description": found[0]} | entry if found and "description" not in entry else entry


def schema_text() -> str:
    """The content of docs/reference/scene.schema.json."""
    return json.dumps(scene_schema(), indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
