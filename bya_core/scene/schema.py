"""The scene file: every key it may have, its meaning and range; read strictly, and as a JSON schema.

`python -m bya_core.scene.schema` writes the schema to docs/reference/scene.schema.json.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bya_core.config import (
    Bystanders,
    ProbeConfig,
    RefineConfig,
    Region,
    RouterMode,
    RoutingConfig,
    SegmenterName,
    SpeedName,
    WindowConfig,
)
from bya_core.errors import InputError
from bya_core.scene.strict_json import entry, json_schema, read
from bya_core.scene.types import FrameFit

SCHEMA_FILE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "scene.schema.json"

PROBE, REFINE, ROUTING, WINDOWS = ProbeConfig(), RefineConfig(), RoutingConfig(), WindowConfig()


@dataclass(frozen=True)
class ClipEntry:
    file: str = entry("recording (wav, flac, mp3, m4a, ...)")
    start: float = entry("second of the video at which it starts", 0.0, minimum=0, maximum=36_000)
    gain: float = entry("loudness of this clip in dB; 0 = as recorded", 0.0, minimum=-60, maximum=60)
    from_: float = entry("second of the recording at which the clip begins", 0.0, minimum=0, maximum=36_000)
    to: float | None = entry(
        "second of the recording at which the clip ends; null = its end", None, minimum=0, maximum=36_000
    )


@dataclass(frozen=True)
class TurnEntry:
    speaker: str = entry("name of a character, or what its `speaker` says")
    start: float = entry("second at which the turn starts", minimum=0, maximum=36_000)
    end: float = entry("second at which it ends", minimum=0, maximum=36_000)
    text: str | None = entry("what is said; for people who read the file, not used", None)


@dataclass(frozen=True)
class PromptEntry:
    start: float = entry("second of the video from which it holds", minimum=0, maximum=36_000)
    end: float = entry("second of the video up to which it holds", minimum=0, maximum=36_000)
    prompt: str = entry("what is seen then, in place of the scene's prompt")


@dataclass(frozen=True)
class CharacterEntry:
    name: str = entry("what to call the character in masks, legend and report; each name once")
    image: str = entry("picture of the face (png, jpg, webp, ...)")
    speech: str | list[ClipEntry] | None = entry(
        "recording of the voice (wav, flac, mp3, m4a, ...), or a list of clips; null = a silent listener, or what "
        "the timeline cuts out of the dialogue",
        None,
        least_items=1,
    )
    offset: float = entry(
        "seconds of video before the speech starts; negative skips its beginning",
        0.0,
        minimum=-3600,
        maximum=3600,
    )
    gain: float = entry("loudness of the speech in dB; 0 = as recorded", 0.0, minimum=-60, maximum=60)
    speech_strength: float = entry(
        "how strongly speech moves this character; 1 = as trained, 0 = not at all", 1.0, minimum=0, maximum=2
    )
    speaker: str | None = entry("name in the timeline, such as SPEAKER_00; null = as `name`", None)
    mask: str | None = entry(
        "where the character is: a picture (white = there), or an npz file with an array, still or per frame; "
        "null = what the router says",
        None,
    )
    mask_blend: float = entry("0 = the router decides ... 1 = only the mask", 1.0, minimum=0, maximum=1)
    mask_from: float = entry("share of the run from which the mask acts", 0.0, minimum=0, maximum=1)
    mask_to: float = entry("share of the run up to which the mask acts", 1.0, minimum=0, maximum=1)


@dataclass(frozen=True)
class ProbeEntry:
    settled: float = entry(
        "the probe ends when masks change by less than this from step to step (mean, 0..1)",
        PROBE.settled,
        minimum=0,
        maximum=1,
    )
    most: float = entry("largest share of all steps that the probe may take", PROBE.most, minimum=0, maximum=1)
    steps: int | None = entry("exactly so many steps instead; null = until settled", None, minimum=1, maximum=1000)
    tries: int = entry(
        "seeds to try while somebody has no place in the picture; without first frame and masks only",
        PROBE.tries,
        minimum=1,
        maximum=100,
    )


@dataclass(frozen=True)
class RefineEntry:
    drop_below: float = entry(
        "tokens whose best claim is weaker lose their owner first; 0 = none", REFINE.drop_below, minimum=0, maximum=1
    )
    propagate: bool = entry("owners spread from sure tokens to those without one", REFINE.propagate)
    regions: int = entry(
        "connected regions kept per character and frame; 0 = all", REFINE.regions, minimum=0, maximum=1000
    )
    fill_holes: bool = entry("fill what a character encloses", REFINE.fill_holes)
    smooth: float = entry("smoothing over time, in latent frames; 0 = none", REFINE.smooth, minimum=0, maximum=100)
    exclusive: bool = entry("each token has one owner, which may be the background", REFINE.exclusive)
    grow: int = entry(
        "tokens by which masks grow to all sides; negative = shrink", REFINE.grow, minimum=-100, maximum=100
    )


@dataclass(frozen=True)
class RouterEntry:
    mode: RouterMode = entry(
        '"intra" = predicted while denoising; "pre" = still, from the first frame; "post" = from a first, silent '
        'pass; "manual" = only the given masks',
        "intra",
    )
    probe: ProbeEntry = entry('only with mode "intra": how long the router is watched', ProbeEntry())
    region: Region = entry('only with mode "pre": what is drawn around a face', ROUTING.region)
    segmenter: SegmenterName = entry(
        'only with mode "post": what finds the characters in the silent pass', ROUTING.segmenter
    )
    segmenter_weights: str = entry(
        'with segmenter "sam2": its weights, a folder or a name in the Hugging Face cache', ROUTING.segmenter_weights
    )
    static: bool = entry("use the union over time in every frame", ROUTING.static)
    refine: RefineEntry | bool | None = entry(
        "how the router's masks are cleaned before they act; true = as is usual, null or false = not at all", None
    )
    bystanders: Bystanders = entry(
        'what hears where nobody is: "hear" = every voice, "silent" = none, "model" = as the weights were trained',
        ROUTING.bystanders,
    )
    masks: str | None = entry(
        'masks drawn over the router\'s: npz file with an array "masks" of values 0..1: (characters, latent frames, '
        "token rows, token columns), as --masks writes it, or (characters, video frames, any height, width)",
        None,
    )
    blend: float = entry("of `masks`: 0 = the router decides ... 1 = the masks are forced", 1.0, minimum=0, maximum=1)


@dataclass(frozen=True)
class WindowsEntry:
    frames: int | None = entry(
        "video frames of a window (1 + a multiple of 4); null = as many as the model was trained for",
        None,
        minimum=1,
        maximum=100_000,
    )
    overlap: int | None = entry(
        "frames that a window shares with the one before it (1 + a multiple of 4); null = 9, or less in short windows",
        WINDOWS.overlap,
        minimum=1,
        maximum=100_000,
    )
    hold_colours: bool = entry(
        "give each window the colours of the first, so that they cannot drift", WINDOWS.hold_colours
    )


@dataclass(frozen=True)
class SceneFile:
    prompt: str = entry("what is seen: who is where and does what")
    characters: list[CharacterEntry] = entry("who is in the scene, in the order of all masks", least_items=1)
    prompts: list[PromptEntry] = entry("other prompts for parts of the video", [])
    negative_prompt: str = entry("what should not be seen", "")
    first_frame: str | None = entry("picture that fixes the start of the video", None)
    first_frame_fit: FrameFit = entry(
        'how it gets the size of the video: "crop" = it covers it, the rest is cut evenly; "pad" = all of it, between '
        'black bars; "stretch" = pulled to the size, with the released weights only (what their own code does)',
        "crop",
    )
    dialogue: str | None = entry("one recording of all voices, which the timeline cuts apart", None)
    timeline: str | list[TurnEntry] | None = entry(
        "who speaks when: a file (rttm, srt, vtt, json), or the turns themselves", None, least_items=1
    )
    audio_character_matrix: list[list[float]] | Literal["identity", "swapped", "auto"] | None = entry(
        "one row for the speech of each character, one column for each character, values 0..1: "
        '1 = that speech moves that character; "identity" or null = each speech moves its own character; "swapped" = '
        'each moves the next character, of two the other one; "auto" = voices are matched to faces',
        None,
    )
    height: int | None = entry("pixels; null = as the model was trained", None, minimum=8, maximum=4096)
    width: int | None = entry("pixels; null = as the model was trained", None, minimum=8, maximum=4096)
    length: Literal["auto"] | int = entry(
        'video frames (1 + a multiple of 4), or "auto" = the longest speech',
        "auto",
        minimum=1,
        maximum=100_000,
    )
    fps: Literal[25] = entry("frames a second; speech features come 25 a second, so nothing else is possible", 25)
    seed: int | None = entry("of all random numbers; null = 0", None, minimum=0, maximum=2**63 - 1)
    steps: int | None = entry("denoising steps; null = what suits the model", None, minimum=1, maximum=1000)
    guidance_text: float | None = entry("guidance scale of the prompt; 1 = off", None, minimum=0, maximum=100)
    guidance_speech: float | None = entry(
        "guidance scale of the speech; null = as guidance_text; a different one costs one more pass per step",
        None,
        minimum=0,
        maximum=100,
    )
    scheduler: Literal["dpm", "ddim"] | None = entry("how a step is made; null = what suits the model", None)
    speed: SpeedName | None = entry(
        'work that may be left out: "exact" or null = none, "balanced" = what can hardly be seen, "fast" = more', None
    )
    router: RouterEntry = entry("where the masks come from", RouterEntry())
    windows: WindowsEntry = entry("how a video is made that is longer than the model's clips", WindowsEntry())


def read_scene_file(path: Path) -> SceneFile:
    """The scene file as written, checked for keys, types and ranges, before any file it names is opened."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_no_key_twice)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the scene {path} is no valid JSON ({error})", "a JSON file", "correct it there") from error
    if isinstance(data, dict):
        data.pop("$schema", None)
    return read(SceneFile, data, path.name)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise InputError(f'the key "{key}" stands twice in one object of the scene', "it once", "remove one")
        result[key] = value
    return result


def scene_schema() -> dict[str, Any]:
    """JSON schema of scene files."""
    schema = json_schema(SceneFile, "A scene of Bind-Your-Avatar")
    for name, default in (("router", RouterEntry()), ("windows", WindowsEntry())):
        schema["properties"][name]["default"] = asdict(default)
    schema["properties"] = {"$schema": {"type": "string"}} | schema["properties"]
    return schema


def schema_text() -> str:
    """The schema as it stands in docs/reference/scene.schema.json."""
    return json.dumps(scene_schema(), indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.parent.mkdir(exist_ok=True)
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
