r"""Encode a folder of shards into the feature cache before training, optionally in parallel.

    python -m training.data.fill_cache --data SHARDS --encoders official --buckets 49x480x720 --device cuda --part 0/8

Training with the same encoders, buckets and cache folder then needs neither decoding nor encoding.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bya_core.errors import InputError
from training.command_line import OutputFile, run_command
from training.data.dataset import EncodedClips, open_data

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """Encode shards into the feature cache.

    Args:
        data: folder of shards.
        encoders: model whose encoders are used.
        buckets: lengths and sizes used in training.
        cache: folder of the features; default: `cache` beside the shards.
        part: "r/w" encodes part r of w equal parts of the clips, for w parallel processes.
        fit: how images are fitted to a bucket.
        canvas: "released" for the official flavour.
        device: where the encoders run.
        skip_broken: skip unusable clips.
    """

    data: Path
    encoders: str = "toy"
    buckets: tuple[str, ...] = ()
    cache: OutputFile = None
    part: str = "0/1"
    fit: Literal["cover", "letterbox"] = "cover"
    canvas: Literal["row", "released"] = "row"
    device: str = "cpu"
    skip_broken: bool = False


def fill(arguments: Arguments) -> Counter[str]:
    """Encode the clips and return the event counts of the cache.

    Raises:
        InputError: an invalid part, data that is already encoded, or an unusable clip (without `skip_broken`).
    """
    r, _, w = arguments.part.partition("/")
    if not (r.isdigit() and w.isdigit() and int(r) < int(w)):
        raise InputError(f"--part {arguments.part}", "r/w with r from 0 to w - 1, such as 0/8", "correct it")
    data = open_data(
        arguments.data,
        arguments.encoders,
        buckets=arguments.buckets,
        cache=arguments.cache,
        on_broken="skip" if arguments.skip_broken else "error",
        fit=arguments.fit,
        canvas=arguments.canvas,
        device=arguments.device,
    )
    if not isinstance(data, EncodedClips):
        raise InputError(f"{arguments.data} is already encoded", "shards", "train with it directly")
    started = time.monotonic()
    for done, total in data.encode_all(int(r), int(w)):
        if done % 100 == 0 or done == total:
            rate = done / (time.monotonic() - started)
            log.info("%d of %d clips, %.2f clips/s, %.0f min remaining", done, total, rate, (total - done) / rate / 60)
    return data.cache.counts


def main(arguments: Arguments) -> None:
    """Encode and print the counts."""
    counts = fill(arguments)
    print("  ".join(f"{name} {count}" for name, count in sorted(counts.items())))


if __name__ == "__main__":
    run_command(main, Arguments)
