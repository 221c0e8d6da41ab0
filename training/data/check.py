"""Validate all clips of a folder of shards and print statistics.

python -m training.data.check --shards FOLDER
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.command_line import run_command
from training.data.puppet_plan import PuppetPlan
from training.data.shards.reader import find_shards, read_members, read_shards


@dataclass(frozen=True)
class Arguments:
    """Validate shards.

    Args:
        shards: folder of shards, or a single shard.
        reference: `--puppets` value from which the shards were written; prints the PSNR of the videos.
    """

    shards: Path
    reference: str | None = None


def check(source: Path) -> tuple[Counter[str], list[str]]:
    """(statistics, errors) after verifying every checksum and decoding every file."""
    counts, broken = Counter[str](shards=len(find_shards(source))), list[str]()
    for clip, members in read_members(source, "skip", broken):
        counts["clips"] += 1
        counts["frames"] += len(clip.frames)
        counts["milliseconds"] += round(1000 * len(clip.frames) / clip.fps)
        counts[f"clips with {len(clip.masks)} characters"] += 1
        for extension, content in members.items():
            kind = re.sub(r"^(portrait|speech)\d+", r"\1", extension.partition(".")[0])
            counts[f"bytes of {kind}"] += len(content)
    return counts, broken


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
        f"{counts['milliseconds'] / 3.6e6:.3f} hours"
    ]
    lines += [f"  {name}: {counts[name]}" for name in sorted(counts) if name.startswith("clips with")]
    lines += [
        f"  {name.removeprefix('bytes of '):<10} {counts[name] / clips / 1000:10.1f} kB per clip"
        for name in sorted(counts)
        if name.startswith("bytes of")
    ]
    return "\n".join([*lines, f"{len(broken)} broken", *(f"  {text}" for text in broken)])


def main(arguments: Arguments) -> int:
    """Print the statistics; returns 1 if a clip is broken."""
    counts, broken = check(arguments.shards)
    print(table(counts, broken))
    if arguments.reference is not None:
        decibels = video_psnr(arguments.shards, PuppetPlan.parse(arguments.reference))
        print(f"video PSNR: {min(decibels):.1f} to {max(decibels):.1f} dB")
    return 1 if broken else 0


if __name__ == "__main__":
    run_command(main, Arguments)
