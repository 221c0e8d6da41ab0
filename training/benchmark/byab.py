"""The layout of the Bind-Your-Avatar benchmark (paper sec. 5.1): 40 pairs of people, two speeches, a prompt.

    BENCHMARK/
      001/
        source.json      {"prompt": "...", "speaker_pos": "left" | "right"}; "left" (or left out) = the first speech
                         moves the first face, "right" = the second one
        face_1.jpg       the person on the left (jpg, png or webp, as all pictures)
        face_2.jpg       the person on the right
        speech_1.wav     two streams of one length, each with one voice (any format and rate)
        speech_2.wav
        first_frame.jpg  in 20 of the pairs; the other 20 are made without
      002/ ...

A pair that has one recording of both (mix.wav) in place of the two streams can be made and looked at, but not judged:
nobody can say which mouth should follow what. `check` says everything that does not fit, pair by pair.
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
PAIRS, WITH_FIRST_FRAME = 40, 20
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
SOUNDS = (".wav", ".flac", ".mp3", ".m4a", ".ogg")
LONGEST_GAP = 0.1  # seconds by which the two streams may differ


@dataclass(frozen=True)
class Pair:
    """One pair.

    Args:
        name: of its folder.
        faces: two pictures.
        speeches: two streams, or one recording of both.
        prompt: what is seen.
        swapped: whether the first speech moves the second face.
        first_frame: None = made without.
    """

    name: str
    faces: tuple[Path, Path]
    speeches: tuple[Path, ...]
    prompt: str
    swapped: bool
    first_frame: Path | None

    @property
    def separate(self) -> bool:
        """Whether each voice has a stream of its own."""
        return len(self.speeches) == 2

    def scene(self, **more: Any) -> dict[str, Any]:
        """As a scene file (docs/reference/scene.md), with absolute paths; `more` are further keys of it."""
        heard = self.speeches if self.separate else self.speeches * 2
        people = [
            {"name": name, "image": str(face.resolve()), "speech": str(speech.resolve())}
            for name, face, speech in zip(("left", "right"), self.faces, heard, strict=True)
        ]
        scene: dict[str, Any] = {"prompt": self.prompt, "characters": people, **more}
        if self.swapped:
            scene["audio_character_matrix"] = "swapped"
        if self.first_frame is not None:
            scene["first_frame"] = str(self.first_frame.resolve())
        return scene


def read_pair(folder: Path) -> Pair:
    """One folder. Raises InputError, with what is wrong, where it does not fit the layout."""
    source = folder / "source.json"
    try:
        given = jsonlib.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{source} cannot be read", 'JSON with a "prompt"', "write one") from error
    prompt = given.get("prompt") if isinstance(given, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{source} without a prompt", '"prompt": what is seen', "add it")
    side = given.get("speaker_pos", "left")
    if side not in ("left", "right"):
        raise InputError(f'"speaker_pos": "{side}" in {source}', '"left" or "right"', "correct it")
    first, second = (_one(folder, f"face_{k}", PICTURES) for k in (1, 2))
    streams = [_maybe(folder, f"speech_{k}", SOUNDS) for k in (1, 2)]
    present = tuple(stream for stream in streams if stream is not None)
    if len(present) == 1:
        came = f"{folder} with one of two speech streams"
        raise InputError(came, "speech_1 and speech_2", "add the other; silence is a recording too")
    speeches = present or (_one(folder, "mix", SOUNDS),)
    start = _maybe(folder, "first_frame", PICTURES)
    return Pair(folder.name, (first, second), speeches, prompt, side == "right", start)


def read_pairs(root: Path) -> list[Pair]:
    """All pairs of a benchmark, by name. Raises InputError where there is none, or one is broken."""
    if not root.is_dir():
        raise InputError(f"no folder {root}", "the benchmark's folder", "check the path")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and (path / "source.json").is_file())
    if not folders:
        rule = "folders with source.json, face_1, face_2, ..."
        raise InputError(f"{root} without pairs", rule, "see docs/how-to/benchmark.md")
    return [read_pair(folder) for folder in folders]


def check(root: Path) -> list[str]:
    """Everything that does not fit the layout, one sentence each; empty where all does. Reads every file."""
    said: list[str] = []
    if not root.is_dir():
        return [f"no folder {root}"]
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    for folder in folders:
        try:
            pair = read_pair(folder)
            for picture in (*pair.faces, *([pair.first_frame] if pair.first_frame is not None else [])):
                read_image(picture)
            lengths = []
            for speech in pair.speeches:
                wave, rate = read_audio(speech)
                lengths.append(wave.shape[1] / rate)
        except InputError as error:
            said.append(f"{folder.name}: {error}")
            continue
        if not pair.separate:
            said.append(f"{folder.name}: one recording of both voices; binding cannot be judged without two streams")
        elif abs(lengths[0] - lengths[1]) > LONGEST_GAP:
            told = f"streams of {lengths[0]:.2f} and {lengths[1]:.2f} s"
            said.append(f"{folder.name}: {told}; they should be of one length")
    if len(folders) != PAIRS:
        said.append(f"{len(folders)} pairs; the benchmark has {PAIRS}, so figures are not comparable with its own")
    started = sum((_maybe(folder, "first_frame", PICTURES) is not None) for folder in folders)
    if len(folders) == PAIRS and started != WITH_FIRST_FRAME:
        said.append(f"{started} pairs with a first frame; the benchmark has {WITH_FIRST_FRAME}")
    return said


def fingerprint(pairs: list[Pair]) -> str:
    """SHA-256 over names, prompts and files: tells two versions of a benchmark apart."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(f"{pair.name}\0{pair.prompt}\0{pair.swapped}\0".encode())
        for file in (*pair.faces, *pair.speeches, *([pair.first_frame] if pair.first_frame is not None else [])):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _maybe(folder: Path, stem: str, endings: tuple[str, ...]) -> Path | None:
    return next((path for ending in endings if (path := folder / (stem + ending)).is_file()), None)


def _one(folder: Path, stem: str, endings: tuple[str, ...]) -> Path:
    path = _maybe(folder, stem, endings)
    if path is None:
        raise InputError(f"{folder} without {stem}", f"{stem} as {', '.join(endings)}", "add it")
    return path
