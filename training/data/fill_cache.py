r"""Encode a folder of shards before training, on as many processes or machines as there are.

python -m training.data.fill_cache --data SHARDS --encoders official --buckets 49x480x720 --device cuda --part 0/8

Training with the same encoders, buckets and cache folder then decodes and encodes nothing.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from bya_core.errors import InputError
from training.data.dataset import EncodedClips, open_data

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """Encode shards into the feature cache.

    Args:
        data: folder of shards.
        encoders: model whose encoders are used.
        buckets: lengths and sizes, as training will have them.
        cache: folder of the features; none = `cache` beside the shards.
        part: "r/w": the r-th of w equal parts of the clips, for w processes that share the work.
        fit: how pictures get the shape of a bucket.
        canvas: "released" for a model of the official flavour.
        device: where the encoders run.
        skip_broken: go on where a clip cannot be used.
    """

    data: Path
    encoders: str = "toy"
    buckets: tuple[str, ...] = ()
    cache: Path | None = None
    part: str = "0/1"
    fit: Literal["cover", "letterbox"] = "cover"
    canvas: Literal["row", "released"] = "row"
    device: str = "cpu"
    skip_broken: bool = False


def fill(arguments: Arguments) -> Counter[str]:
    """Encode; returns what the cache counted.

    Raises:
        InputError: a wrong part, data that needs no cache, or a clip that cannot be used (without `skip_broken`).
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
        raise InputError(f"{arguments.data} with clips that are encoded already", "shards", "train with it as it is")
    started = time.monotonic()
    for done, total in data.encode_all(int(r), int(w)):
        if done % 100 == 0 or done == total:
            rate = done / (time.monotonic() - started)
            log.info("%d of %d clips, %.2f a second, %.0f min left", done, total, rate, (total - done) / rate / 60)
    return data.cache.counts


def main(arguments: Arguments) -> None:
    """Encode and tell."""
    counts = fill(arguments)
    print("  ".join(f"{name} {count}" for name, count in sorted(counts.items())))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        main(tyro.cli(Arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
