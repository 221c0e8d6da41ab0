"""`bya script`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from bya_core.cli.common import ProgressBar, optional, output, report_saved, warn
from bya_core.errors import InputError

if TYPE_CHECKING:
    from bya_core.scene.spoken import SpokenScript

Pairs = tyro.conf.UseAppendAction[tuple[str, ...]]
IMAGES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Script:
    """Make a scene from a written dialogue: speech is synthesized and placed with natural gaps.

    The script has lines such as "ADA: Good morning!" (docs/how-to/script.md). One recording per line and
    subtitles are written into a folder beside the scene.
    """

    script: Annotated[Positional[Path], arg(help="Text file with the dialogue.", metavar="SCRIPT")]
    output: Annotated[Path | None, output("Scene file to save (json).", "")] = None
    image: Annotated[
        Pairs,
        arg(
            help="Reference image of a character. Default: NAME.png beside the script. May be repeated.",
            metavar="NAME=FILE",
        ),
    ] = ()
    voice: Annotated[
        Pairs,
        arg(
            help="Voice of a character: en-us+f3 (espeak-ng), FILE.onnx (Piper), af_heart (Kokoro).",
            metavar="NAME=VOICE",
        ),
    ] = ()
    engine: Annotated[
        Literal["auto", "espeak", "piper", "kokoro"],
        arg(help="Speech synthesizer. auto is Piper for voices that are .onnx files, else espeak-ng."),
    ] = "auto"
    language: Annotated[str, arg(help="Language of the default voices of espeak-ng.", metavar="CODE")] = "en"
    prompt: Annotated[str | None, optional("Prompt of the scene. Default: a plain one.", "TEXT")] = None
    estimate: Annotated[bool, arg(help="Only print when each line is said, estimated from the text.")] = False

    def run(self) -> int:
        from bya_core.io.files import existing_file, read_text
        from bya_core.io.outputs import check_folder, check_output
        from bya_core.scene.script import own_overlaps, parse_script, speakers
        from bya_core.scene.spoken import SpokenScript, choose_voices, estimate, named_values, timetable

        path = existing_file(self.script, "the script")
        lines = parse_script(read_text(path, "the script"), path.name)
        starts, seconds = estimate(lines)
        if self.estimate:
            warn(own_overlaps(lines, starts, seconds))
            print(timetable(lines, starts, seconds))
            return 0
        if self.output is None:
            raise InputError("no output", "--output SCENE.json, or --estimate", "add one of them")
        scene = check_output(self.output, (".json",), "the scene")
        names = speakers(lines)
        given = named_values(self.voice, names, "--voice")
        images = self._images(names)
        if os.path.lexists(folder := speech_folder(scene)):
            check_folder(folder, "the speech")
        check_scene(scene, images, self.prompt)
        voices, synthesizer = choose_voices(names, given, self.engine, self.language)
        total = max(map(sum, zip(starts, seconds, strict=True)))
        what = "a line" if len(lines) == 1 else f"{len(lines)} lines"
        with ProgressBar() as bar:
            bar.stage(f"Synthesizing {what} with {synthesizer.name}, about {total:.0f} s in total")
            recordings = [synthesizer.synthesize(line.text, voices[line.speaker]) for line in lines]
            spoken = SpokenScript.of(lines, recordings)
        saved = write_scene(scene, spoken, images, self.prompt)
        print(spoken.text)
        for name in names:
            print(f"Voice of {name}: {voices[name]}")
        report_saved(*saved)
        return 0

    def _images(self, names: Sequence[str]) -> dict[str, Path]:
        """The reference image of each character."""
        from bya_core.io.files import existing_file
        from bya_core.scene.spoken import named_values
        from bya_core.scene.types import name_key

        given = named_values(self.image, names, "--image")
        beside = {
            name_key(path.stem).casefold(): path
            for path in sorted(self.script.absolute().parent.iterdir())
            if path.suffix.lower() in IMAGES
        }
        images = {}
        for name in names:
            found = Path(given[name]) if name in given else beside.get(name_key(name).casefold())
            if found is None:
                expected = f"{name}.png beside the script, or --image"
                raise InputError(f"no reference image of {name}", expected, f'add --image "{name}=FILE"')
            images[name] = existing_file(found, f"the image of {name}")
        return images


def scene_prompt(names: Iterable[str], prompt: str | None) -> str:
    """The prompt, or a plain one."""
    return prompt or f"{', '.join(names)} from left to right, talking to each other."


def speech_folder(scene: Path) -> Path:
    """The folder for the recordings of a scene."""
    return scene.with_name(f"{scene.stem}_speech")


def check_scene(path: Path, images: Mapping[str, Path], prompt: str | None) -> None:
    """Raise InputError for names or a prompt that a scene file cannot have, before anything is synthesized."""
    from bya_core.scene.schema import SceneFile
    from bya_core.validation import from_mapping

    characters = [{"name": name, "image": image.name} for name, image in images.items()]
    from_mapping(SceneFile, {"prompt": scene_prompt(images, prompt), "characters": characters}, path.name)


def write_scene(path: Path, spoken: SpokenScript, images: Mapping[str, Path], prompt: str | None = None) -> list[Path]:
    """Write the scene, and recordings and subtitles into a folder beside it; returns both."""
    from bya_core.io.atomic import AtomicFiles, write_json
    from bya_core.io.synthesis import write_wave
    from bya_core.scene.script import subtitles

    warn(spoken.notices)
    folder = speech_folder(path)
    files = [f"{number:03}.wav" for number in range(1, len(spoken.lines) + 1)]
    characters = []
    for name, image in images.items():
        own = [k for k, line in enumerate(spoken.lines) if line.speaker == name]
        speech = [{"file": f"{folder.name}/{files[k]}", "start": spoken.starts[k]} for k in own]
        characters.append({"name": name, "image": relative_path(image, path.parent), "speech": speech})
    text = scene_prompt(images, prompt)
    with AtomicFiles() as written:
        write_json(written.at(path), {"prompt": text, "characters": characters})
        for file, (waveform, rate) in zip(files, spoken.clips, strict=True):
            write_wave(written.at(folder / file), waveform, rate)
        srt = subtitles(spoken.lines, spoken.starts, spoken.seconds)
        written.at(folder / "subtitles.srt").write_text(srt, encoding="utf-8")
    return [path, folder]


def relative_path(file: Path, folder: Path) -> str:
    """A file as a scene in `folder` names it; absolute on another drive of Windows."""
    target = os.path.join(os.path.realpath(file.parent), file.name)  # ".." leads out of the target of a linked folder
    try:
        return Path(os.path.relpath(target, os.path.realpath(folder))).as_posix()
    except ValueError:
        return Path(target).as_posix()
