"""The annotation layout of the released training to shards (what is taken: training/data/import_released.py).

python -m training.data.convert --entries LIST.txt --output SHARDS
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from bya_core.errors import InputError
from bya_core.io.atomic import AtomicFiles
from training.data.import_released import Unusable, read_entries
from training.data.shards.writer import ShardWriter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """Make shards of the annotation layout that the released training reads.

    Args:
        entries: text file with lines VIDEO_FOLDER,ANNOTATIONS.json,ANNOTATION_FOLDER.
        output: folder for the shards; `convert-PREFIX.json` beside them says why videos were left out.
        shortest: frames a clip must have at least.
        longest: frames of a clip at most; longer runs are cut into equal parts.
        per_shard: clips in a shard.
        prefix: of the shards' names; conversions that run at the same time need different ones.
        strict: end at the first video that cannot be used, instead of leaving it out.
    """

    entries: Path
    output: Path
    shortest: int = 49
    longest: int = 490
    per_shard: int = 32
    prefix: str = "clips"
    strict: bool = False


def convert(arguments: Arguments) -> dict[str, str]:
    """Write the shards; returns why each video that was left out was.

    Raises:
        InputError: an entry list that cannot be used, nothing that can, a full disk; with `strict`, the first problem.
    """
    if not 1 <= arguments.shortest <= arguments.longest:
        came = f"clips of {arguments.shortest} to {arguments.longest} frames"
        raise InputError(came, "at least 1, and the longest not below the shortest", "correct one of them")
    annotations = read_entries(arguments.entries)
    rejected: dict[str, str] = {}
    names: Counter[str] = Counter()
    with ShardWriter(arguments.output, arguments.per_shard, prefix=arguments.prefix) as writer:
        for annotation in annotations:
            names[annotation.name] += 1
            try:
                for clip in annotation.clips(arguments.shortest, arguments.longest):
                    again = f"_{names[annotation.name]}" if names[annotation.name] > 1 else ""
                    writer.write(replace(clip, key=clip.key + again))
            except Unusable as error:
                if arguments.strict:
                    raise Unusable(f"{annotation.video}: {error.problem}", error.expected, error.hint) from error
                log.warning("left out: %s: %s; expected %s", annotation.video, error.problem, error.expected)
                rejected[str(annotation.video)] = f"{error.problem}; expected {error.expected}"
    report = {"videos": len(annotations), "clips": writer.clips, "left_out": rejected}
    told = arguments.output / f"convert-{arguments.prefix}.json"
    with AtomicFiles() as files:
        files.at(told).write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    if not writer.clips:
        came = f"{len(annotations)} videos of which none can be used"
        raise InputError(came, "at least one", f"see {told}")
    return rejected


def main(arguments: Arguments) -> None:
    """Convert and tell."""
    rejected = convert(arguments)
    print(f"wrote shards to {arguments.output}; {len(rejected)} videos were left out (convert-*.json says why)")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        main(tyro.cli(Arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
