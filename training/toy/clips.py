"""Draw puppet clips and encode them for the toy model (tensors as in training/data/dataset.py).

python -m training.toy.clips --encoders runs/toy --output runs/toy/data --clips 6000 --frames 17
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write
from bya_core.toy.bundle import load_toy_encoders
from training.command_line import OutputPath, run_command
from training.data.buckets import Bucket, Window
from training.data.clip import LazyClip
from training.data.encode import ClipEncoder
from training.data.puppet_plan import EVALUATION_SEEDS, puppet_sample
from training.puppets.world import Motion, make_clip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """Draw puppet clips and encode them for the toy model.

    Args:
        encoders: folder with vae/, face.safetensors and speech.safetensors.
        output: output folder; existing files are kept.
        clips: number of clips, rounded up to whole files.
        frames: video frames per clip (1 + a multiple of 4).
        height, width: size in pixels.
        seed: seed of the first clip; all seeds must be below 1,000,000.
        fractions: fractions of the clips with 1, 2, 3, 4 characters.
        motion: motion of the characters.
        random_first_mouths: randomize the mouths of the first-frame condition independently of the speech.
        per_file: clips per file.
        processes: number of parallel processes.
    """

    encoders: Path
    output: OutputPath
    clips: int
    frames: int = 17
    height: int = 64
    width: int = 96
    seed: int = 0
    fractions: tuple[float, float, float, float] = (0.12, 0.72, 0.10, 0.06)
    motion: Motion = "mixed"
    random_first_mouths: bool = False
    per_file: int = 64
    processes: int = 2


def main(settings: Arguments) -> None:
    """Draw, encode and write all files.

    Raises:
        InputError: seeds reserved for evaluation.
    """
    if (end := settings.seed + settings.clips) > EVALUATION_SEEDS.start:
        problem, expected = f"seeds up to {end}", f"seeds below {EVALUATION_SEEDS.start}"
        raise InputError(problem, expected, "use a lower seed: higher ones are for evaluation")
    settings.output.mkdir(parents=True, exist_ok=True)
    jobs = [(settings, start, n) for start, n in _plan(settings)]
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(settings.processes, initializer=_limit_threads) as pool:
        for done, _ in enumerate(pool.imap_unordered(_write_one, jobs), 1):
            if done % 10 == 0 or done == len(jobs):
                rate = done * settings.per_file / (time.monotonic() - started)
                log.info("%d of %d files, %.1f clips/s", done, len(jobs), rate)


def _plan(settings: Arguments) -> list[tuple[int, int]]:
    """(first seed, number of characters) of every file."""
    rng = np.random.default_rng(settings.seed)
    starts = range(settings.seed, settings.seed + settings.clips, settings.per_file)
    fractions = np.array(settings.fractions) / sum(settings.fractions)
    return [(start, int(rng.choice(4, p=fractions)) + 1) for start in starts]


def _limit_threads() -> None:
    torch.set_num_threads(1)


def _write_one(job: tuple[Arguments, int, int]) -> None:
    settings, start, n = job
    path = settings.output / f"f{settings.frames:03d}_n{n}_{start:07d}.safetensors"
    if path.exists():
        return
    encoder = ClipEncoder(load_toy_encoders(settings.encoders))
    window = Window(0, Bucket(settings.frames, settings.height, settings.width))
    clips = [_encoded(settings, encoder, seed, n, window) for seed in range(start, start + settings.per_file)]
    with atomic_write(path) as temporary:
        save_file({name: torch.stack([clip[name] for clip in clips]) for name in clips[0]}, temporary)


def _encoded(settings: Arguments, encoder: ClipEncoder, seed: int, n: int, window: Window) -> dict[str, torch.Tensor]:
    """The tensors of one clip; only the first-frame condition is affected by `random_first_mouths`."""
    size = settings.height, settings.width, settings.frames

    def draw(random_first_mouths: bool = False) -> LazyClip:
        clip = make_clip(seed, n, *size, motion=settings.motion, random_first_mouths=random_first_mouths)
        return LazyClip.of(puppet_sample(clip))

    tensors = encoder.encode(draw(), window)
    if settings.random_first_mouths:
        tensors["first_frame"] = encoder.first_frame(draw(random_first_mouths=True), window)
    return tensors


if __name__ == "__main__":
    run_command(main, Arguments)
