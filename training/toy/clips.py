"""Draw puppet clips and encode them for the toy model (tensors as in training/data/batches.py).

    python -m training.toy.clips --encoders bya_core/toy/weights --output runs/toy/data --clips 6000 --frames 17

Existing files are kept, so that an interrupted run can be resumed and a longer one extends a shorter one. Images pass
through the VAE in batches and in bfloat16.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor

from bya_core.encoders.canvas import reference_canvas
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.io.atomic import atomic_write
from bya_core.toy.bundle import ToyEncoders, load_toy_encoders
from bya_core.toy.encoders import ToyTextEncoder
from training.command_line import OutputPath, run_command
from training.data.encode import mouth_emphasis
from training.puppets.world import Motion, PuppetClip, make_clip

log = logging.getLogger(__name__)
RESERVED_SEEDS = range(1_000_000, 10_000_000)
"""Seeds of the evaluation and of validation."""


@dataclass(frozen=True)
class ClipOptions:
    """Draw puppet clips and encode them for the toy model.

    Args:
        output: output folder; existing files are kept.
        clips: number of clips, rounded up to whole files.
        encoders: folder with vae/, face.safetensors and speech.safetensors.
        frames: video frames per clip (1 + a multiple of 4).
        height, width: size in pixels.
        seed: seed of the first clip; seeds from 1,000,000 to 9,999,999 are reserved.
        fractions: fractions of the clips with 1, 2, 3, 4 characters.
        motion: motion of the characters.
        random_first_mouths: fraction of the files with a first-frame condition whose mouths do not match the speech.
        describe_motion: describe the motion in the prompts.
        eye_emphasis: emphasis of eyes in the loss, relative to mouths.
        max_words: number of tokens of the encoded prompts.
        per_file: clips per file.
        vae_batch: maximum number of frames in one batch of the VAE.
        processes: number of parallel processes; 0 = one per core.
        device: device of the VAE.
    """

    output: OutputPath
    clips: int
    encoders: Path = Path("bya_core/toy/weights")
    frames: int = 17
    height: int = 64
    width: int = 96
    seed: int = 0
    fractions: tuple[float, float, float, float] = (0.12, 0.72, 0.10, 0.06)
    motion: Motion = "mixed"
    random_first_mouths: float = 0.0
    describe_motion: bool = False
    eye_emphasis: float = 0.0
    max_words: int = 48
    per_file: int = 64
    vae_batch: int = 128
    processes: int = 2
    device: str = "cpu"


@dataclass(frozen=True)
class ClipFile:
    """One file: clips `seed`, `seed + 1`, ... with the same number of characters."""

    seed: int
    characters: int
    random_first_mouths: bool


def main(options: ClipOptions) -> None:
    """Draw, encode and write all files.

    Raises:
        InputError: reserved seeds.
    """
    seeds = range(options.seed, options.seed + options.clips)
    if max(seeds.start, RESERVED_SEEDS.start) < min(seeds.stop, RESERVED_SEEDS.stop):
        expected = f"seeds below {RESERVED_SEEDS.start} or from {RESERVED_SEEDS.stop}"
        raise InputError(f"seeds {seeds.start} to {seeds.stop - 1}", expected, "others are for evaluation")
    options.output.mkdir(parents=True, exist_ok=True)
    files = [file for file in plan(options) if not _path(options, file).exists()]
    start = time.monotonic()
    for done, _ in enumerate(_write_files(options, files), 1):
        if done % 10 == 0 or done == len(files):
            rate = done * options.per_file / (time.monotonic() - start)
            log.info("%d of %d files, %.1f clips/s", done, len(files), rate)


def plan(options: ClipOptions) -> list[ClipFile]:
    """All files; each depends on its own seed alone."""
    files, fractions = [], np.array(options.fractions) / sum(options.fractions)
    for seed in range(options.seed, options.seed + options.clips, options.per_file):
        rng = np.random.default_rng([seed, 0x70F])
        characters = int(rng.choice(4, p=fractions)) + 1
        files.append(ClipFile(seed, characters, bool(rng.random() < options.random_first_mouths)))
    return files


def _write_files(options: ClipOptions, files: list[ClipFile]) -> Iterator[None]:
    """Write files in this process or in several, and yield after each."""
    processes = min(options.processes or os.cpu_count() or 1, len(files))
    if processes <= 1:
        for file in files:
            _write_file(options, file)
            yield
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for future in as_completed([pool.submit(_write_file, options, file) for file in files]):
            yield future.result()


def _path(options: ClipOptions, file: ClipFile) -> Path:
    return options.output / f"f{options.frames:03d}_n{file.characters}_{file.seed:08d}.safetensors"


def _write_file(options: ClipOptions, file: ClipFile) -> None:
    encoders = _encoders(options)
    seeds = range(file.seed, file.seed + options.per_file)
    tensors = encode_clips(
        [_draw(options, file, seed) for seed in seeds], encoders, options.vae_batch, options.eye_emphasis
    )
    if file.random_first_mouths:
        first = np.stack([_draw(options, file, seed, random_first_mouths=True).frames[:1] for seed in seeds])
        tensors["first_frame"] = encode_videos(first, encoders, options.vae_batch)[:, 0]
    with atomic_write(_path(options, file)) as temporary:
        save_file(tensors, temporary)


@lru_cache(1)
def _encoders(options: ClipOptions) -> ToyEncoders:
    encoders = load_toy_encoders(options.encoders)._replace(text=ToyTextEncoder(max_words=options.max_words))
    encoders.codec.vae.to(options.device).bfloat16()
    return encoders


def _draw(options: ClipOptions, file: ClipFile, seed: int, random_first_mouths: bool = False) -> PuppetClip:
    return make_clip(
        seed,
        file.characters,
        options.height,
        options.width,
        options.frames,
        motion=options.motion,
        random_first_mouths=random_first_mouths,
        describe_motion=options.describe_motion,
    )


@torch.no_grad()
def encode_clips(
    clips: list[PuppetClip], encoders: ToyEncoders, vae_batch: int = 128, eye_emphasis: float = 0.0
) -> dict[str, Tensor]:
    """Encode clips of equal shape to the tensors listed in `training.data.batches`.

    Args:
        clips: the clips.
        encoders: encoders of the toy model.
        vae_batch: maximum number of frames in one batch of the VAE.
        eye_emphasis: emphasis of eyes relative to mouths.
    """
    frames = np.stack([clip.frames for clip in clips])
    _, length, height, width, _ = frames.shape
    codec = encoders.codec
    grid = TokenGrid.from_pixels(length, height, width, space_factor=codec.space_factor, time_factor=codec.time_factor)
    latents = encode_videos(frames, encoders, vae_batch)
    first = latents if length == 1 else encode_videos(frames[:, :1], encoders, vae_batch)
    portraits = torch.from_numpy(np.stack([clip.portraits for clip in clips])).float() / 255.0
    portraits = rearrange(portraits, "k n h w c -> k n c h w")
    canvases = torch.stack([reference_canvas(list(images), height, width) for images in portraits])
    canvases = rearrange((canvases * 255.0).round().byte(), "k c h w -> k 1 h w c")
    identity, hidden = encoders.face.network(portraits.flatten(0, 1))
    masks, emphasis, speech = [], [], []
    for clip in clips:
        visible = torch.from_numpy(clip.masks)
        masks.append((grid.pixels_to_tokens(visible) * 255.0).round().to(torch.uint8))
        mouths = mouth_emphasis(visible, clip.mouth_centers, grid)
        eyes = mouth_emphasis(visible, clip.eye_centers.mean(2), grid)
        emphasis.append(torch.maximum(mouths, (eyes * eye_emphasis).to(torch.uint8)))
        streams = [encoders.speech.encode(torch.from_numpy(waveform), length) for waveform in clip.speeches]
        speech.append(torch.stack(streams))
    return {
        "latents": latents,
        "first_frame": first[:, 0].clone(),
        "canvas": encode_videos(canvases.numpy(), encoders, vae_batch)[:, 0].clone(),
        "text": encoders.text.encode([clip.prompt for clip in clips]).half(),
        "masks": torch.stack(masks).contiguous(),
        "emphasis": torch.stack(emphasis).contiguous(),
        "identity": identity.unflatten(0, (len(clips), -1)).half().contiguous(),
        "hidden": hidden.unflatten(0, (len(clips), -1)).half().contiguous(),
        "speech": torch.stack(speech).half().contiguous(),
        "seed": torch.tensor([clip.seed for clip in clips]),
    }


def encode_videos(frames: np.ndarray, encoders: ToyEncoders, vae_batch: int) -> Tensor:
    """Encode videos uint8 [K, F, H, W, 3] to latents [K, T, C, h, w] in float16."""
    vae, size = encoders.codec.vae, max(1, vae_batch // frames.shape[1])
    latents = []
    for videos in torch.from_numpy(frames).split(size):
        video = rearrange(videos, "k f h w c -> k c f h w").float() / 127.5 - 1.0
        latents.append(encoders.codec.encode(video.to(vae.device)).half().cpu())
    return torch.cat(latents).contiguous()


if __name__ == "__main__":
    run_command(main, ClipOptions)
