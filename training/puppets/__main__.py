"""Draw a puppet clip as a video, or a scene file with its inputs.

python -m training.puppets --seed 7 -o clip.mp4
python -m training.puppets --seed 1000042 --scene demo          # scene.json, portraits, recordings, first frame
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import soundfile
import torch
from PIL import Image

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_contents, write_json
from bya_core.io.media import write_video
from bya_core.validation import Field, validated
from training.command_line import OptionalOutput, OutputFile, run_command
from training.puppets.recordings import load_recordings
from training.puppets.world import SAMPLE_RATE, PuppetClip, make_clip

Pixels = Annotated[int, Field(ge=16, le=4096)]


@validated
class Arguments:
    """Draw one puppet clip.

    Args:
        seed: random seed of the scene.
        output: video file with the ground-truth audio.
        scene: folder for a scene instead: scene.json and its inputs.
        characters: number of characters; 0 = random.
        height, width: size in pixels (of a scene: of its first frame).
        frames: length in frames.
        motion: motion of the characters.
        talk: conversation pattern.
        first_frame: add a first frame to the scene.
        recordings: speech files that drive the mouths instead of synthetic voices, one per character.
    """

    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 7
    output: OptionalOutput = None
    scene: OutputFile = None
    characters: Annotated[int, Field(ge=0, le=4)] = 0
    height: Pixels = 256
    width: Pixels = 384
    frames: Annotated[int, Field(ge=1, le=100_000)] = 49
    motion: Literal["still", "moving", "crossing", "mixed"] = "mixed"
    talk: Literal["turns", "overlap", "one", "mixed"] = "mixed"
    first_frame: bool = True
    recordings: tuple[Path, ...] = ()


def write_scene(clip: PuppetClip, folder: Path, first_frame: bool = True) -> Path:
    """Write portraits (PNG), recordings (16-bit WAV), first frame and scene.json; returns the path of the latter."""
    with atomic_contents(folder) as contents:
        _write_files(clip, contents, first_frame)
    return folder / "scene.json"


def _write_files(clip: PuppetClip, folder: Path, first_frame: bool) -> None:
    names = [f"puppet {chr(ord('A') + k)}" for k in range(len(clip.looks))]
    characters = []
    for k, name in enumerate(names):
        stem = name.replace(" ", "_")
        Image.fromarray(clip.portraits[k]).save(folder / f"{stem}.png")
        soundfile.write(folder / f"{stem}.wav", clip.speeches[k], SAMPLE_RATE, subtype="PCM_16")
        characters.append({"name": name, "image": f"{stem}.png", "speech": f"{stem}.wav"})
    scene = {"prompt": clip.prompt, "characters": characters, "length": len(clip.frames), "seed": 0}
    if first_frame:
        Image.fromarray(clip.first_frame).save(folder / "first_frame.png")
        scene["first_frame"] = "first_frame.png"
    write_json(folder / "scene.json", scene)


def main(arguments: Arguments) -> None:
    """Draw and write the clip or scene."""
    if (arguments.output is None) == (arguments.scene is None):
        raise InputError("none or both of --output and --scene", "-o FILE.mp4 or --scene FOLDER", "use one of them")
    tracks = load_recordings(arguments.recordings, arguments.frames) if arguments.recordings else None
    characters = len(arguments.recordings) or arguments.characters or None
    if arguments.characters and characters != arguments.characters:
        problem = f"{len(arguments.recordings)} recordings for {arguments.characters} characters"
        raise InputError(problem, "one per character", "remove --characters")
    clip = make_clip(
        arguments.seed,
        characters,
        arguments.height,
        arguments.width,
        arguments.frames,
        motion=arguments.motion,
        talk=arguments.talk,
        portrait_size=96 if arguments.scene else 48,
        tracks=tracks,
    )
    print(clip.prompt)
    if arguments.scene is not None:
        print(f"wrote {write_scene(clip, arguments.scene, arguments.first_frame)}")
    if arguments.output is not None:
        sound = torch.from_numpy(np.stack([clip.mix]))
        write_video(arguments.output, iter(clip.frames), clip.fps, (sound, SAMPLE_RATE))
        print(f"wrote {arguments.output}")


if __name__ == "__main__":
    run_command(main, Arguments)
