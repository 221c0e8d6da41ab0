"""Convert the annotation layout of the released training code to shards (see training/data/import_released.py).

python -m training.data.convert --entries LIST.txt --output SHARDS
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from bya_core.errors import InputError
from bya_core.io.atomic import AtomicFiles
from training.command_line import OutputPath, run_command
from training.data.import_released import UnusableVideo, read_entries
from training.data.shards.writer import ShardWriter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """Convert the annotation layout of the released training code to shards.

    Args:
        entries: text file with lines VIDEO_FOLDER,ANNOTATIONS.json,ANNOTATION_FOLDER.
        output: output folder; `convert-PREFIX.json` in it lists the rejected videos.
        min_frames: minimum length of a clip.
        max_frames: maximum length of a clip; longer sequences are split into equal parts.
        per_shard: clips per shard.
        prefix: start of the shard names; concurrent conversions need different prefixes.
        strict: fail at the first unusable video instead of skipping it.
    """

    entries: Path
    output: OutputPath
    min_frames: int = 49
    max_frames: int = 490
    per_shard: int = 32
    prefix: str = "clips"
    strict: bool = False


def convert(arguments: Arguments) -> dict[str, str]:
    """Write the shards.

    Returns:
        Reason by rejected video.

    Raises:
        InputError: an invalid entry list, no usable video, or a full disk; with `strict`, the first problem.
    """
    if not 1 <= arguments.min_frames <= arguments.max_frames:
        problem = f"clips of {arguments.min_frames} to {arguments.max_frames} frames"
        raise InputError(problem, "at least 1, and the maximum not below the minimum", "correct one of them")
    annotations = read_entries(arguments.entries)
    rejected: dict[str, str] = {}
    names: Counter[str] = Counter()
    with ShardWriter(arguments.output, arguments.per_shard, prefix=arguments.prefix) as writer:
        for annotation in annotations:
            names[annotation.name] += 1
            try:
                for clip in annotation.clips(arguments.min_frames, arguments.max_frames):
                    suffix = f"_{names[annotation.name]}" if names[annotation.name] > 1 else ""
                    writer.write(replace(clip, key=clip.key + suffix))
            except UnusableVideo as error:
                if arguments.strict:
                    raise UnusableVideo(f"{annotation.video}: {error.problem}", error.expected, error.hint) from error
                log.warning("rejected: %s: %s; expected %s", annotation.video, error.problem, error.expected)
                rejected[str(annotation.video)] = f"{error.problem}; expected {error.expected}"
    report = {"videos": len(annotations), "clips": writer.clips, "rejected": rejected}
    report_path = arguments.output / f"convert-{arguments.prefix}.json"
    with AtomicFiles() as files:
        files.at(report_path).write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    if not writer.clips:
        problem = f"none of {len(annotations)} videos is usable"
        raise InputError(problem, "at least one", f"see {report_path}")
    return rejected


def main(arguments: Arguments) -> None:
    """Convert and print a summary."""
    rejected = convert(arguments)
    print(f"wrote shards to {arguments.output}; {len(rejected)} videos rejected (see convert-*.json)")


if __name__ == "__main__":
    run_command(main, Arguments)
