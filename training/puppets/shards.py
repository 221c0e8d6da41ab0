"""Puppet clips encoded for training (the format is documented in training/dataset.py).

python -m training.puppets.shards --encoders runs/tiny --output runs/tiny/data --clips 6000 --frames 17
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor

from bya_core.canvas import reference_canvas
from bya_core.checkpoints.tiny_bundle import TinyEncoders, load_tiny_encoders
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from training.puppets.world import PuppetClip, make_clip

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
    shard: int = 64
    processes: int = 2


def encode_clips(clips: list[PuppetClip], encoders: TinyEncoders, grid: TokenGrid) -> dict[str, Tensor]:
    """Tensors of one shard; all clips have the same number of characters, frames and pixels."""
    video = torch.from_numpy(np.stack([c.frames for c in clips])).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0
    portraits = [torch.from_numpy(c.portraits).permute(0, 3, 1, 2).float() / 255.0 for c in clips]
    canvases = (
        torch.stack([reference_canvas(list(p), *grid.pixels) for p in portraits])[:, :, None] * 2.0 - 1.0
    )
    faces = [[encoders.face.encode(image) for image in p] for p in portraits]
    speech = [
        torch.stack([encoders.speech.encode(torch.from_numpy(s), grid.video_frames) for s in c.speeches])
        for c in clips
    ]
    masks = torch.stack([grid.pixels_to_tokens(torch.from_numpy(c.masks)) for c in clips])
    return {
        "latents": encoders.codec.encode(video).half(),
        "first_frame": encoders.codec.encode(video[:, :, :1])[:, 0].half(),
        "canvas": encoders.codec.encode(canvases)[:, 0].half(),
        "text": encoders.text.encode([c.prompt for c in clips]).half(),
        "masks": (masks * 255.0).round().to(torch.uint8),
        "emphasis": torch.stack([mouth_emphasis(c, grid) for c in clips]),
        "identity": torch.stack([torch.stack([f.identity for f in row]) for row in faces]).half(),
        "hidden": torch.stack([torch.stack([f.hidden for f in row]) for row in faces]).half(),
        "speech": torch.stack(speech).half(),
        "seed": torch.tensor([c.seed for c in clips]),
    }


def mouth_emphasis(clip: PuppetClip, grid: TokenGrid) -> Tensor:
    """[T,H,W] uint8: 255 at visible mouths, falling off over half a head."""
    height, width = grid.height * grid.patch, grid.width * grid.patch
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    scale = grid.space_factor
    total = np.zeros((clip.frames.shape[0], height, width), np.float32)
    for k, centres in enumerate(clip.mouth_centres):
        dx = x - centres[:, 0, None, None] / scale
        dy = y - centres[:, 1, None, None] / scale
        near = np.exp(-(dx**2 / (2 * 1.8**2) + dy**2 / (2 * 1.5**2)))
        seen = clip.masks[k].reshape(-1, height, scale, width, scale).mean((2, 4))
        total = np.maximum(total, near * seen)
    return (grid.frames_to_latent(torch.from_numpy(total), dim=0) * 255.0).round().to(torch.uint8)


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
    encoders = load_tiny_encoders(settings.encoders)
    codec = encoders.codec
    grid = TokenGrid.from_pixels(
        settings.frames,
        settings.height,
        settings.width,
        patch=2,
        space_factor=codec.space_factor,
        time_factor=codec.time_factor,
    )
    parts = []
    for first in range(start, start + settings.shard, 8):
        clips = [
            make_clip(seed, n, settings.height, settings.width, settings.frames)
            for seed in range(first, first + 8)
        ]
        parts.append(encode_clips(clips, encoders, grid))
    shard = {name: torch.cat([p[name] for p in parts]) for name in parts[0]}
    temporary = path.with_suffix(f".{os.getpid()}.part")
    save_file({name: tensor.contiguous() for name, tensor in shard.items()}, temporary)
    os.replace(temporary, path)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    write_shards(tyro.cli(Settings))
