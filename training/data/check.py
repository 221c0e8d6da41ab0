r"""Validate all clips of a folder of shards, print statistics, and repair what can be repaired safely.

    python -m training.data.check --shards FOLDER
    python -m training.data.check --shards FOLDER --fix --output REPAIRED

Found are damaged and unpaired files, keys that occur twice, characters whose mask is always empty or equals that of
another one, voices that belong to several characters and characters with several voices, voices of wrong loudness, and
voices that are shorter or longer than the video. `--fix` writes a copy in which 16-bit voices are scaled and long
ones cut, duplicate keys are renamed, and unlisted files are left out; clips that cannot be read are left out and named.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bya_core.errors import InputError
from training.command_line import OptionalOutput, run_command
from training.data.clip import SAMPLE_RATE, ClipSample
from training.data.files import list_files, warn_skipped
from training.data.puppet_plan import PuppetPlan
from training.data.shards.members import with_voices
from training.data.shards.reader import find_shards, read_members, read_shards
from training.data.shards.writer import ShardWriter

MAX_PEAK = 2.0  # of a voice; full scale is 1
INTEGERS = (64.0, 33_000.0)  # peaks of 16-bit samples that were not scaled
SHORT, LONG = 0.1, 0.5  # seconds by which a voice may be shorter or longer than the video


@dataclass(frozen=True)
class Arguments:
    """Validate shards.

    Args:
        shards: folder of shards, or a single shard.
        reference: `--puppets` value from which the shards were written; prints the PSNR of the videos.
        fix: write a repaired copy to `output`.
        output: folder of the repaired shards.
    """

    shards: Path
    reference: str | None = None
    fix: bool = False
    output: OptionalOutput = None


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a clip that can be read.

    Args:
        text: what is wrong.
        fixable: whether `fix` corrects it.
    """

    text: str
    fixable: bool = False


def find_problems(clip: ClipSample, members: Mapping[str, bytes] | None = None) -> list[Problem]:
    """The problems of a clip.

    Args:
        clip: the clip.
        members: its files by extension, to find those that it does not use.
    """
    found = []
    for n, mask in enumerate(clip.masks):
        if not mask.any():
            found.append(Problem(f"the mask of character {n} is empty in all frames"))
        same = next((k for k in range(n) if mask.any() and np.array_equal(mask, clip.masks[k])), None)
        if same is not None:
            found.append(Problem(f"characters {same} and {n} have the same mask"))
    for m, row in enumerate(clip.matrix):
        if row.sum() > 1:
            found.append(Problem(f"voice {m} belongs to {int(row.sum())} characters, see the matrix"))
    for n, column in enumerate(clip.matrix.T):
        if column.sum() > 1:
            found.append(Problem(f"character {n} has {int(column.sum())} voices, see the matrix"))
    found += _voice_problems(clip)
    if clip.caption.strip() == "":
        found.append(Problem("the caption is empty"))
    expected = {"json", "mp4", "masks.npz", "features.safetensors"}
    expected |= {f"portrait{n}.png" for n in range(len(clip.masks))}
    expected |= {f"speech{m}.wav" for m in range(len(clip.matrix))}
    if extra := sorted(set(members or ()) - expected):
        found.append(Problem(f"the files {', '.join(extra[:3])} belong to nothing in its JSON", True))
    return found


def _voice_problems(clip: ClipSample) -> Iterator[Problem]:
    samples = clip.speeches.shape[1]
    if not samples:  # features only
        return
    for m, peak in enumerate(np.abs(clip.speeches).max(axis=1)):
        if peak > MAX_PEAK:
            text = f"voice {m} peaks at {peak:.4g}; full scale is 1"
            yield Problem(text, INTEGERS[0] < peak < INTEGERS[1])
    seconds, video = samples / SAMPLE_RATE, len(clip.frames) / clip.fps
    if not -SHORT <= seconds - video <= LONG:
        yield Problem(f"the voices last {seconds:.2f} s, the video {video:.2f} s", seconds > video)


def repaired_voices(clip: ClipSample) -> np.ndarray:
    """Voices scaled from 16-bit integers, and cut to the video if they are much longer; [M, samples] float32."""
    peaks = np.abs(clip.speeches).max(axis=1, initial=0.0)
    integers = (INTEGERS[0] < peaks) & (peaks < INTEGERS[1])
    speeches = clip.speeches / np.where(integers, 32768.0, 1.0).astype(np.float32)[:, None]
    video = len(clip.frames) / clip.fps
    if speeches.shape[1] / SAMPLE_RATE - video > LONG:
        speeches = speeches[:, : round(video * SAMPLE_RATE)]
    return np.ascontiguousarray(speeches)


def check(source: Path) -> tuple[Counter[str], list[str]]:
    """(statistics, errors) after verifying every checksum and decoding every file."""
    skipped: list[str] = []
    paths = find_shards(source, skipped)
    warn_skipped(source, skipped)
    counts, broken, keys = Counter[str](shards=len(paths), skipped=len(skipped)), list[str](), dict[str, str]()
    for path in paths:
        for clip, members in read_members([path], "skip", broken):
            counts["clips"] += 1
            counts["frames"] += len(clip.frames)
            counts["milliseconds"] += round(1000 * len(clip.frames) / clip.fps)
            counts[f"clips with {len(clip.masks)} characters"] += 1
            for extension, content in members.items():
                kind = re.sub(r"^(portrait|speech)\d+", r"\1", extension.partition(".")[0])
                counts[f"bytes of {kind}"] += len(content)
            problems = find_problems(clip, members)
            if clip.key in keys:
                problems.append(Problem(f"the key occurs in {keys[clip.key]} already", True))
            keys.setdefault(clip.key, path.name)
            for problem in problems:
                counts["fixable"] += problem.fixable
                hint = " (--fix repairs it)" if problem.fixable else ""
                broken.append(f"{path.name}: clip {clip.key!r}: {problem.text}{hint}")
    return counts, broken


def fix(source: Path, output: Path) -> tuple[int, list[str]]:
    """Write a repaired copy of shards.

    Returns:
        The number of clips, and what was left out.

    Raises:
        InputError: the output has shards already, or is inside the source.
    """
    if output.resolve().is_relative_to(source.resolve()) or (output.is_dir() and list_files(output, ".tar", [])):
        raise InputError(f"--output {output}", "an empty folder outside of the shards", "choose another folder")
    left_out, used = list[str](), Counter[str]()
    with ShardWriter(output) as writer:
        for clip, members in read_members(source, "skip", left_out):
            used[clip.key] += 1
            key = clip.key if used[clip.key] == 1 else f"{clip.key}_{used[clip.key]}"
            writer.write_members(key, with_voices(members, repaired_voices(clip)))
    return writer.clips, left_out


def video_psnr(source: Path, plan: PuppetPlan) -> list[float]:
    """PSNR of the video of each puppet clip in dB."""
    errors = [
        np.mean((clip.frames.astype(np.float32) - plan.clip(number).frames) ** 2)
        for number, clip in enumerate(read_shards(source))
    ]
    return [float(10 * np.log10(255**2 / error)) for error in errors]


def table(counts: Counter[str], broken: list[str]) -> str:
    """The statistics as text."""
    clips = max(1, counts["clips"])
    lines = [
        f"{counts['clips']} clips in {counts['shards']} shards, {counts['frames']} frames, "
        f"{counts['milliseconds'] / 3.6e6:.3f} hours, {counts['skipped']} skipped"
    ]
    lines += [f"  {name}: {counts[name]}" for name in sorted(counts) if name.startswith("clips with")]
    lines += [
        f"  {name.removeprefix('bytes of '):<10} {counts[name] / clips / 1000:10.1f} kB per clip"
        for name in sorted(counts)
        if name.startswith("bytes of")
    ]
    return "\n".join([*lines, f"{len(broken)} broken", *(f"  {text}" for text in broken)])


def main(arguments: Arguments) -> int:
    """Print the statistics; returns 1 if a clip has a problem."""
    if arguments.fix != (arguments.output is not None):
        raise InputError("--fix without --output, or --output without --fix", "both or none", "use --fix -o FOLDER")
    if arguments.output is not None:
        clips, left_out = fix(arguments.shards, arguments.output)
        print("\n".join([f"wrote {clips} clips to {arguments.output}, left out {len(left_out)}", *left_out]))
        return main(replace(arguments, shards=arguments.output, fix=False, output=None))
    counts, broken = check(arguments.shards)
    print(table(counts, broken))
    if arguments.reference is not None:
        decibels = video_psnr(arguments.shards, PuppetPlan.parse(arguments.reference))
        print(f"video PSNR: {min(decibels):.1f} to {max(decibels):.1f} dB")
    return 1 if broken else 0


if __name__ == "__main__":
    run_command(main, Arguments)
