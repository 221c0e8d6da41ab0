"""The scene file: every key it may have, its meaning and range; read strictly, and as a JSON schema."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bya_core.errors import InputError
from bya_core.schema import entry, json_schema, read


@dataclass(frozen=True)
class CharacterEntry:
    name: str = entry("what to call the character in masks, legend and report; each name once")
    image: str = entry("picture of the face (png, jpg, webp, ...)")
    speech: str | None = entry(
        "recording of the voice (wav, flac, mp3, m4a, ...); null = a silent listener", None
    )
    offset: float = entry(
        "seconds of video before the speech starts; negative skips its beginning",
        0.0,
        minimum=-3600,
        maximum=3600,
    )
    gain: float = entry("loudness of the speech in dB; 0 = as recorded", 0.0, minimum=-60, maximum=60)


@dataclass(frozen=True)
class RouterEntry:
    mode: Literal["intra", "manual"] = entry(
        '"intra" = masks predicted while denoising; "manual" = those of `masks`', "intra"
    )
    masks: str | None = entry(
        'only with mode "manual": npz file with an array "masks" of values 0..1: (characters, latent frames, '
        "token rows, token columns), as --masks writes it, or (characters, video frames, any height, width)",
        None,
    )
    blend: float = entry(
        'only with mode "manual": 0 = the router decides ... 1 = the masks are forced',
        1.0,
        minimum=0,
        maximum=1,
    )


@dataclass(frozen=True)
class SceneFile:
    prompt: str = entry("what is seen: who is where and does what")
    characters: list[CharacterEntry] = entry("who is in the scene, in the order of all masks", least_items=1)
    negative_prompt: str = entry("what should not be seen", "")
    first_frame: str | None = entry("picture that fixes the start of the video; scaled to cover it", None)
    audio_character_matrix: list[list[float]] | None = entry(
        "one row for the speech of each character, one column for each character, values 0..1: "
        "1 = that speech moves that character; null = each speech moves its own character",
        None,
    )
    height: int | None = entry("pixels; null = as the model was trained", None, minimum=8, maximum=4096)
    width: int | None = entry("pixels; null = as the model was trained", None, minimum=8, maximum=4096)
    length: Literal["auto"] | int = entry(
        'video frames (1 + a multiple of 4), or "auto" = the longest speech, at most what the model can',
        "auto",
        minimum=1,
        maximum=100_000,
    )
    fps: Literal[25] = entry(
        "frames a second; speech features come 25 a second, so nothing else is possible", 25
    )
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
    router: RouterEntry = entry("where the masks come from", RouterEntry())


def read_scene_file(path: Path) -> SceneFile:
    """The scene file as written, checked for keys, types and ranges, before any file it names is opened."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_no_key_twice)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"the scene {path} is no valid JSON ({error})", "a JSON file", "correct it there"
        ) from error
    if isinstance(data, dict):
        data.pop("$schema", None)
    return read(SceneFile, data, path.name)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise InputError(
                f'the key "{key}" stands twice in one object of the scene', "it once", "remove one"
            )
        result[key] = value
    return result


def scene_schema() -> dict[str, Any]:
    """JSON schema of scene files."""
    schema = json_schema(SceneFile, "A scene of Bind-Your-Avatar")
    schema["properties"]["router"]["default"] = asdict(RouterEntry())
    schema["properties"] = {"$schema": {"type": "string"}} | schema["properties"]
    return schema


def schema_text() -> str:
    """The schema as it stands in docs/scene.schema.json."""
    return json.dumps(scene_schema(), indent=2) + "\n"
