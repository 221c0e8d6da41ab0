"""Read all clips of a folder of shards once: what they are, what they weigh, and what is broken.

python -m training.data.shards.check --shards FOLDER
"""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from bya_core.errors import InputError
from training.data.puppet_plan import PuppetPlan
from training.data.shards.members import BrokenClip, unpack
from training.data.shards.reader import find_shards, members_of, read_shards


@dataclass(frozen=True)
class Arguments:
    """Check shards.

    Args:
        shards: folder of shards, or one of them.
        drawn_as: what `training.data.puppet_plan` wrote them from; tells what the video codec lost.
    """

    shards: Path
    drawn_as: str | None = None


def check(source: Path) -> tuple[Counter[str], list[str]]:
    """(what was counted, what is broken): every checksum is tested and every file decoded."""
    counts: Counter[str] = Counter()
    broken: list[str] = []
    for path in find_shards(source):
        counts["shards"] += 1
        try:
            with path.open("rb") as file:
                for key, members in members_of(file):
                    try:
                        clip = unpack(key, members)
                    except BrokenClip as error:
                        broken.append(f"{path.name}: {error.problem}")
                        continue
                    counts["clips"] += 1
                    counts["frames"] += len(clip.frames)
                    counts["milliseconds"] += round(1000 * len(clip.frames) / clip.fps)
                    counts[f"clips with {len(clip.masks)} characters"] += 1
                    for ending, content in members.items():
                        kind = re.sub(r"^(portrait|speech)\d+", r"\1", ending.partition(".")[0])
                        counts[f"bytes of {kind}"] += len(content)
        except BrokenClip as error:
            broken.append(f"{path.name}: {error.problem}")
    return counts, broken


def losses(source: Path, plan: PuppetPlan) -> list[float]:
    """Signal to noise of each drawn clip's video in dB."""
    errors = [
        np.mean((clip.frames.astype(np.float32) - plan.clip(number).frames) ** 2)
        for number, clip in enumerate(read_shards(source))
    ]
    return [float(10 * np.log10(255**2 / error)) for error in errors]


def table(counts: Counter[str], broken: list[str]) -> str:
    """What was found, for people."""
    clips = max(1, counts["clips"])
    lines = [
        f"{counts['clips']} clips in {counts['shards']} shards, {counts['frames']} frames, "
        f"{counts['milliseconds'] / 3.6e6:.3f} hours"
    ]
    lines += [f"  {name}: {counts[name]}" for name in sorted(counts) if name.startswith("clips with")]
    lines += [
        f"  {name.removeprefix('bytes of '):<10} {counts[name] / clips / 1000:10.1f} kB a clip"
        for name in sorted(counts)
        if name.startswith("bytes of")
    ]
    return "\n".join([*lines, f"{len(broken)} broken", *(f"  {text}" for text in broken)])


def main(arguments: Arguments) -> int:
    """Print the table; 1 where something is broken."""
    counts, broken = check(arguments.shards)
    print(table(counts, broken))
    if arguments.drawn_as is not None:
        decibels = losses(arguments.shards, PuppetPlan.parse(arguments.drawn_as))
        print(f"the videos' signal to noise is {min(decibels):.1f} to {max(decibels):.1f} dB")
    return 1 if broken else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        sys.exit(main(tyro.cli(Arguments)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
