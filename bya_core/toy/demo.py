"""Demo scenes shipped with the project."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.atomic import AtomicFiles
from bya_core.io.media import read_audio, read_image
from bya_core.scene.schema import read_scene_file

FOLDER = Path(__file__).resolve().parents[2] / "demo"
MAIN = "two puppets"  # scene.json
_NOT_A_NAME = ("scene", "report")  # `make demo` writes the report to the same folder

FILES = {
    "bya_A.png": "puppet_A.png",
    "bya_B.png": "puppet_B.png",
    "bya_A.wav": "puppet_A.wav",
    "bya_B.wav": "puppet_B.wav",
    "bya_first_frame.png": "first_frame.png",
    "bya_video.mp4": "two_puppets.mp4",
    "bya_three_A.png": "three/puppet_A.png",
    "bya_three_B.png": "three/puppet_B.png",
    "bya_three_C.png": "three/puppet_C.png",
    "bya_three_A.wav": "three/puppet_A.wav",
    "bya_three_B.wav": "three/puppet_B.wav",
    "bya_three_C.wav": "three/puppet_C.wav",
    "bya_three_first_frame.png": "three/first_frame.png",
    "bya_long_A.png": "long/puppet_A.png",
    "bya_long_B.png": "long/puppet_B.png",
    "bya_long_dialogue.wav": "long/dialogue.wav",
    "bya_long_first_frame.png": "long/first_frame.png",
}
"""Name in the input folder of ComfyUI -> file of the demo folder, for the workflows."""


def copy_demo_files(folder: Path) -> list[Path]:
    """Copy the images and recordings of the workflows that are not yet in `folder`; returns the new files.

    Raises:
        InputError: they cannot be written.
    """
    missing = {folder / name: FOLDER / source for name, source in FILES.items() if not (folder / name).exists()}
    with AtomicFiles() as files:
        for target, source in missing.items():
            shutil.copyfile(source, files.at(target))
    return list(missing)


@dataclass(frozen=True)
class DemoScene:
    """Contents of a demo scene.

    Args:
        prompt: The prompt.
        frames: Length of the video; 0 selects the length of the longest speech.
        first_frame: First frame [3, H, W] in [0, 1], or `None`.
        characters: Reference image [3, H, W] and speech ([C, S], sample rate in Hz) of each character; the speech of
            listeners is `None`.
    """

    prompt: str
    frames: int
    first_frame: Tensor | None
    characters: tuple[tuple[Tensor, tuple[Tensor, int] | None], ...]


def demo_names() -> list[str]:
    """Names of all demo scenes, the main one first; the others are named after their files."""
    others = (path.stem for path in FOLDER.glob("*.json") if path.stem not in _NOT_A_NAME)
    return [MAIN, *sorted(stem.replace("_", " ") for stem in others)]


def load_demo(name: str) -> DemoScene:
    """Load a demo scene. Raises `InputError` if it does not exist."""
    if name not in demo_names():
        raise InputError(f'unknown demo "{name}"', " or ".join(demo_names()), "choose one of them")
    path = FOLDER / ("scene.json" if name == MAIN else f"{name.replace(' ', '_')}.json")
    if not path.is_file():
        raise InputError(f"no demo scene {path}", "the demo folder of the project", "install the project again")
    scene = read_scene_file(path)
    characters = []
    for character in scene.characters:
        if character.speech is not None and not isinstance(character.speech, str):
            raise InputError(f"the demo {path.name} has a list of clips", "one recording per character", "use one file")
        speech = None if character.speech is None else read_audio(FOLDER / character.speech)
        characters.append((read_image(FOLDER / character.image), speech))
    frame = None if scene.first_frame is None else read_image(FOLDER / scene.first_frame)
    frames = 0 if scene.length == "auto" else int(scene.length)
    return DemoScene(scene.prompt, frames, frame, tuple(characters))
