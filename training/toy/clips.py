"""Puppet clips encoded for the toy model, once and in several processes (the tensors of training/data/dataset.py).

The quick way to its training data; `training/shards` has the way that real footage takes.

python -m training.toy.clips --encoders runs/toy --output runs/toy/data --clips 6000 --frames 17
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from safetensors.torch import save_file

from bya_core.errors import InputError
from bya_core.toy.bundle import load_toy_encoders
from training.data.buckets import Bucket, View
from training.data.encode import ClipEncoder, content_of
from training.data.puppet_plan import puppet_sample
from training.puppets.world import Motion, make_clip

log = logging.getLogger(__name__)
EVALUATION_SEEDS = 1_000_000


@dataclass(frozen=True)
class Settings:
    """What is drawn and where it goes.

    Args:
        encoders: folder with vae/, face.safetensors and speech.safetensors.
        output: folder for the shards.
        clips: how many.
        frames: video frames of a clip (1 + a multiple of 4).
        height, width: pixels.
        seed: of the first clip; the last must stay below 1,000,000.
        shares: parts of the clips with 1, 2, 3, 4 characters.
        motion: how people move.
        free_start: the given first frame shows mouths by lot, not those that fit the speech.
        shard: clips per file.
        processes: how many draw and encode at once.
    """

    encoders: Path
    output: Path
    clips: int
    frames: int = 17
    height: int = 64
    width: int = 96
    seed: int = 0
    shares: tuple[float, float, float, float] = (0.12, 0.72, 0.10, 0.06)
    motion: Motion = "mixed"
    free_start: bool = False
    shard: int = 64
    processes: int = 2


def write_shards(settings: Settings) -> None:
    """Draw, encode and write all shards; those that are there already are left.

    Raises:
        InputError: seeds that belong to the evaluation.
    """
    if settings.seed + settings.clips > EVALUATION_SEEDS:
        raise InputError(
            f"seeds up to {settings.seed + settings.clips}",
            f"seeds below {EVALUATION_SEEDS}",
            "start lower: the others are for evaluation",
        )
    settings.output.mkdir(parents=True, exist_ok=True)
    jobs = [(settings, start, n) for start, n in _plan(settings)]
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(settings.processes, initializer=_start) as pool:
        for done, _ in enumerate(pool.imap_unordered(_write_one, jobs), 1):
            if done % 10 == 0 or done == len(jobs):
                log.info(
                    "%d of %d shards, %.1f clips/s",
                    done,
                    len(jobs),
                    done * settings.shard / (time.monotonic() - started),
                )


def _plan(settings: Settings) -> list[tuple[int, int]]:
    """(first seed, number of characters) of every shard, in fixed random order."""
    rng = np.random.default_rng(settings.seed)
    starts = range(settings.seed, settings.seed + settings.clips, settings.shard)
    share = np.array(settings.shares) / sum(settings.shares)
    return [(start, int(rng.choice(4, p=share)) + 1) for start in starts]


def _start() -> None:
    torch.set_num_threads(1)


def _write_one(job: tuple[Settings, int, int]) -> None:
    settings, start, n = job
    path = settings.output / f"f{settings.frames:03d}_n{n}_{start:07d}.safetensors"
    if path.exists():
        return
    encoder = ClipEncoder(load_toy_encoders(settings.encoders))
    view = View(0, Bucket(settings.frames, settings.height, settings.width))
    clips = [_encoded(settings, encoder, seed, n, view) for seed in range(start, start + settings.shard)]
    temporary = path.with_suffix(f".{os.getpid()}.part")
    save_file({name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}, temporary)
    os.replace(temporary, path)


def _encoded(settings: Settings, encoder: ClipEncoder, seed: int, n: int, view: View) -> dict[str, torch.Tensor]:
    """The tensors of one clip; its video is always the true one, only the given first frame may differ."""
    draw = partial(make_clip, seed, n, settings.height, settings.width, settings.frames, motion=settings.motion)
    tensors = encoder.encode(content_of(puppet_sample(draw())), view)
    if settings.free_start:
        tensors["first_frame"] = encoder.first_frame(content_of(puppet_sample(draw(free_start=True))), view)
    return tensors


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    write_shards(tyro.cli(Settings))
