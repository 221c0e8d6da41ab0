"""Layout of the Bind-Your-Avatar benchmark (paper sec. 5.1): 40 pairs of characters, two speeches, a prompt.

    BENCHMARK/
      001/
        source.json      {"prompt": "...", "speaker_pos": "left" | "right"}; "left" (default) = the first speech belongs
                         to the first face, "right" = to the second face
        face_1.jpg       left character (jpg, png or webp, like all images)
        face_2.jpg       right character
        speech_1.wav     two streams of equal length, one speaker each (any format and sample rate)
        speech_2.wav
        first_frame.jpg  in 20 of the pairs
      002/ ...

A pair with one recording of both speakers (mix.wav) instead of two streams can be generated, but binding cannot be
measured. `check` reports everything that does not match the layout.
"""

from __future__ import annotations

import hashlib
import json as jsonlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bya_core.errors import InputError
from bya_core.io.media import read_audio, read_image

VERSION = "byab-1"
NUM_PAIRS, NUM_WITH_FIRST_FRAME = 40, 20
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".m4a", ".ogg")
MAX_LENGTH_DIFFERENCE = 0.1  # seconds between the two streams


@dataclass(frozen=True)
class Pair:
    """One pair of characters.

    Args:
        name: name of its folder.
        faces: two images.
        speeches: two streams, or one recording of both.
        prompt: text prompt.
        swapped: whether the first speech belongs to the second face.
        first_frame: image, or None.
    """

    name: str
    faces: tuple[Path, Path]
    speeches: tuple[Path, ...]
    prompt: str
    swapped: bool
    first_frame: Path | None

    @property
    def separate(self) -> bool:
        """Whether each speaker has a separate stream."""
        return len(self.speeches) == 2

    @property
    def images(self) -> tuple[Path, ...]:
        return (*self.faces, *([self.first_frame] if self.first_frame is not None else []))

    def scene(self, **options: Any) -> dict[str, Any]:
        """Contents of a scene file (docs/reference/scene.md) with absolute paths and further keys."""
        speeches = self.speeches if self.separate else self.speeches * 2
        characters = [
            {"name": name, "image": str(face.resolve()), "speech": str(speech.resolve())}
            for name, face, speech in zip(("left", "right"), self.faces, speeches, strict=True)
        ]
        scene: dict[str, Any] = {"prompt": self.prompt, "characters": characters, **options}
        if self.swapped:
            scene["audio_character_matrix"] = "swapped"
        if self.first_frame is not None:
            scene["first_frame"] = str(self.first_frame.resolve())
        return scene


def read_pair(folder: Path) -> Pair:
    """Read one folder. Raises InputError if it does not match the layout."""
    source = folder / "source.json"
    try:
        data = jsonlib.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{source} cannot be read", 'JSON with a "prompt"', "create it") from error
    prompt = data.get("prompt") if isinstance(data, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{source} has no prompt", '"prompt": a description of the scene', "add it")
    side = data.get("speaker_pos", "left")
    if side not in ("left", "right"):
        raise InputError(f'"speaker_pos": "{side}" in {source}', '"left" or "right"', "correct it")
    first, second = (_require(folder, f"face_{k}", IMAGE_SUFFIXES) for k in (1, 2))
    streams = [_find(folder, f"speech_{k}", AUDIO_SUFFIXES) for k in (1, 2)]
    present = tuple(stream for stream in streams if stream is not None)
    if len(present) == 1:
        raise InputError(f"{folder} has only one of two speech streams", "speech_1 and speech_2", "add the other one")
    speeches = present or (_require(folder, "mix", AUDIO_SUFFIXES),)
    first_frame = _find(folder, "first_frame", IMAGE_SUFFIXES)
    return Pair(folder.name, (first, second), speeches, prompt, side == "right", first_frame)


def read_pairs(root: Path) -> list[Pair]:
    """Read all pairs, sorted by name. Raises InputError if there is none or one is invalid."""
    if not root.is_dir():
        raise InputError(f"no folder {root}", "the folder of the benchmark", "check the path")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and (path / "source.json").is_file())
    if not folders:
        expected = "folders with source.json, face_1, face_2, ..."
        raise InputError(f"{root} contains no pairs", expected, "see docs/how-to/benchmark.md")
    return [read_pair(folder) for folder in folders]


def check(root: Path) -> list[str]:
    """Read every file and return a sentence about everything that does not match the layout."""
    if not root.is_dir():
        return [f"no folder {root}"]
    notices: list[str] = []
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    for folder in folders:
        try:
            pair = read_pair(folder)
            for image in pair.images:
                read_image(image)
            audio = [read_audio(speech) for speech in pair.speeches]
        except InputError as error:
            notices.append(f"{folder.name}: {error}")
            continue
        lengths = [waveform.shape[1] / rate for waveform, rate in audio]
        if not pair.separate:
            notices.append(f"{folder.name}: one recording of both speakers; measuring binding needs two streams")
        elif abs(lengths[0] - lengths[1]) > MAX_LENGTH_DIFFERENCE:
            durations = f"{lengths[0]:.2f} and {lengths[1]:.2f} s"
            notices.append(f"{folder.name}: streams of {durations}; expected equal lengths")
    if len(folders) != NUM_PAIRS:
        notices.append(f"{len(folders)} pairs instead of {NUM_PAIRS}; figures are not comparable with the benchmark's")
    with_frame = sum(_find(folder, "first_frame", IMAGE_SUFFIXES) is not None for folder in folders)
    if len(folders) == NUM_PAIRS and with_frame != NUM_WITH_FIRST_FRAME:
        notices.append(f"{with_frame} pairs with a first frame instead of {NUM_WITH_FIRST_FRAME}")
    return notices


def fingerprint(pairs: list[Pair]) -> str:
    """SHA-256 of names, prompts and files, which identifies a version of the benchmark."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(f"{pair.name}\0{pair.prompt}\0{pair.swapped}\0".encode())
        for file in (*pair.faces, *pair.speeches, *pair.images[2:]):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _find(folder: Path, stem: str, suffixes: tuple[str, ...]) -> Path | None:
    return next((path for suffix in suffixes if (path := folder / (stem + suffix)).is_file()), None)


def _require(folder: Path, stem: str, suffixes: tuple[str, ...]) -> Path:
    path = _find(folder, stem, suffixes)
    if path is None:
        raise InputError(f"{folder} has no {stem}", f"{stem} as {', '.join(suffixes)}", "add it")
    return path
