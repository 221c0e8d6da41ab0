"""`bya script`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from bya_core.cli.common import ProgressBar, optional, output, report_saved, warn
from bya_core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from bya_core.io.synthesis import SpeechSynthesizer
    from bya_core.scene.script import ScriptLine

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
        from bya_core.io.outputs import check_output
        from bya_core.scene.script import estimate_seconds, own_overlaps, parse_script, schedule, speakers

        path = existing_file(self.script, "the script")
        lines = parse_script(read_text(path, "the script"), path.name)
        seconds = [estimate_seconds(line.text) for line in lines]
        if self.estimate:
            starts = schedule(lines, seconds)
            warn(own_overlaps(lines, starts, seconds))
            print_lines(lines, starts, seconds)
            return 0
        if self.output is None:
            raise InputError("no output", "--output SCENE.json, or --estimate", "add one of them")
        scene = check_output(self.output, (".json",), "the scene")
        names = speakers(lines)
        voices = named_values(self.voice, names, "--voice")
        images = self._images(names)
        from bya_core.io.synthesis import find_synthesizer

        synthesizer = find_synthesizer(self.engine, list(voices.values()), self.language)
        if missing := [name for name in names if name not in voices]:
            voices |= dict(zip(missing, synthesizer.default_voices(len(missing)), strict=True))
        with ProgressBar() as bar:
            total = sum(seconds) + 0.3 * len(lines)
            bar.stage(f"Synthesizing {len(lines)} lines with {synthesizer.name}, about {total:.0f} s of speech")
            clips = synthesize(lines, voices, synthesizer)
        saved = write_scene(scene, lines, clips, images, self.prompt)
        for name in names:
            print(f"{name}: {voices[name]}")
        report_saved(*saved)
        return 0

    def _images(self, names: Sequence[str]) -> dict[str, Path]:
        """The reference image of each character."""
        from bya_core.io.files import existing_file

        given = named_values(self.image, names, "--image")
        beside = {
            path.stem.casefold(): path
            for path in sorted(self.script.absolute().parent.iterdir())
            if path.suffix.lower() in IMAGES
        }
        images = {}
        for name in names:
            found = Path(given[name]) if name in given else beside.get(name.casefold())
            if found is None:
                expected = f"{name}.png beside the script, or --image"
                raise InputError(f"no reference image of {name}", expected, f'add --image "{name}=FILE"')
            images[name] = existing_file(found, f"the image of {name}")
        return images


def named_values(pairs: Sequence[str], names: Sequence[str], option: str) -> dict[str, str]:
    """NAME=VALUE pairs by the name in the script.

    Raises:
        InputError: Another form, or a name that the script does not have.
    """
    from bya_core.scene.types import name_key

    known, values = {name_key(name).casefold(): name for name in names}, {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = known.get(name_key(name).casefold(), "")
        if not equals or not value or not name:
            expected = f"NAME=VALUE with one of {', '.join(names)}"
            raise InputError(f"{option} {pair}", expected, "correct it")
        values[name] = value
    return values


def synthesize(
    lines: Sequence[ScriptLine], voices: Mapping[str, str], synthesizer: SpeechSynthesizer
) -> list[tuple[Tensor, int]]:
    """The speech of each line without silence around it, and its sample rate."""
    from bya_core.io.media import check_sample_rate, check_samples
    from bya_core.scene.script import trim_silence

    clips = []
    for line in lines:
        waveform, rate = synthesizer.synthesize(line.text, voices[line.speaker])
        check_samples(waveform, f"the speech of line {line.number}")
        rate = check_sample_rate(rate, f"the speech of line {line.number}")
        clips.append((trim_silence(waveform, rate), rate))
    return clips


def write_scene(
    path: Path,
    lines: Sequence[ScriptLine],
    clips: Sequence[tuple[Tensor, int]],
    images: Mapping[str, Path],
    prompt: str | None = None,
) -> list[Path]:
    """Write the scene, and recordings and subtitles into a folder beside it; returns both."""
    from bya_core.io.atomic import AtomicFiles, write_json
    from bya_core.io.synthesis import write_wave
    from bya_core.scene.script import own_overlaps, schedule, subtitles

    seconds = [waveform.shape[1] / rate for waveform, rate in clips]
    starts = schedule(lines, seconds)
    warn(own_overlaps(lines, starts, seconds))
    folder = path.with_name(f"{path.stem}_speech")
    files = [f"{number:03}.wav" for number in range(1, len(lines) + 1)]
    characters = []
    for name, image in images.items():
        own = [k for k, line in enumerate(lines) if line.speaker == name]
        speech = [{"file": f"{folder.name}/{files[k]}", "start": starts[k]} for k in own]
        characters.append({"name": name, "image": relative_path(image, path.parent), "speech": speech})
    text = prompt or f"{', '.join(images)} from left to right, talking to each other."
    with AtomicFiles() as written:
        write_json(written.at(path), {"prompt": text, "characters": characters})
        for file, (waveform, rate) in zip(files, clips, strict=True):
            write_wave(written.at(folder / file), waveform, rate)
        written.at(folder / "subtitles.srt").write_text(subtitles(lines, starts, seconds), encoding="utf-8")
    print_lines(lines, starts, seconds)
    return [path, folder]


def relative_path(file: Path, folder: Path) -> str:
    """A file as a scene in `folder` names it; absolute on another drive of Windows."""
    target = os.path.join(os.path.realpath(file.parent), file.name)  # ".." leads out of the target of a linked folder
    try:
        return Path(os.path.relpath(target, os.path.realpath(folder))).as_posix()
    except ValueError:
        return Path(target).as_posix()


def print_lines(lines: Sequence[ScriptLine], starts: Sequence[float], seconds: Sequence[float]) -> None:
    """Print when each line is said."""
    for line, start, duration in zip(lines, starts, seconds, strict=True):
        print(f"{start:7.2f} to {start + duration:7.2f} s  {line.speaker}: {line.text}")
    print(f"{max(start + duration for start, duration in zip(starts, seconds, strict=True)):.1f} s in total")
