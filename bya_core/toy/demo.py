"""The pack's own demo scenes, read into memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.media import read_audio, read_image
from bya_core.scene.schema import read_scene_file

FOLDER = Path(__file__).resolve().parents[2] / "demo"
MAIN = "two puppets"  # scene.json
NO_OTHER = ("scene", "report")  # the report is what `make demo` writes beside them


@dataclass(frozen=True)
class DemoScene:
    """What a demo folder's scene file names.

    Args:
        prompt: what is seen.
        frames: length of the video; 0 = as long as the longest voice.
        first_frame: [3, H, W] in 0..1, or None.
        characters: picture [3, H, W] and voice ([C, S], rate in Hz), None = a silent listener.
    """

    prompt: str
    frames: int
    first_frame: Tensor | None
    characters: tuple[tuple[Tensor, tuple[Tensor, int] | None], ...]


def demo_names() -> list[str]:
    """Names of all demo scenes, the main one first; every other one is called as its file, with spaces for "_"."""
    others = (path.stem for path in FOLDER.glob("*.json") if path.stem not in NO_OTHER)
    return [MAIN, *sorted(stem.replace("_", " ") for stem in others)]


def load_demo(name: str) -> DemoScene:
    """Read a demo scene. Raises InputError where it is not there."""
    if name not in demo_names():
        raise InputError(f'no demo is called "{name}"', " or ".join(demo_names()), "choose one of them")
    path = FOLDER / ("scene.json" if name == MAIN else f"{name.replace(' ', '_')}.json")
    if not path.is_file():
        raise InputError(f"the demo {path} is not there", "the pack's demo folder", "install the pack again")
    given = read_scene_file(path)
    characters = []
    for character in given.characters:
        if character.speech is not None and not isinstance(character.speech, str):
            raise InputError(f"the demo {path.name} has a list of clips", "one recording each", "name one file")
        voice = None if character.speech is None else read_audio(FOLDER / character.speech)
        characters.append((read_image(FOLDER / character.image), voice))
    frame = None if given.first_frame is None else read_image(FOLDER / given.first_frame)
    frames = 0 if given.length == "auto" else int(given.length)
    return DemoScene(given.prompt, frames, frame, tuple(characters))
