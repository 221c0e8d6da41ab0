"""The tiny video VAE, trained on puppets.

    python -m training.tiny.vae --output runs/tiny/vae

It is `AutoencoderKLCogVideoX` with two down-samplings (4x in time, 4x4 in space) and few channels. Being
convolutional it learns from small crops of short clips, half of them around a mouth: mouths are a few pixels,
and what the VAE loses no transformer can move.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from training.puppets import make_clip

log = logging.getLogger(__name__)

BLUR = 0.15  # noise on the latents where only the decoder learns, as a share of their deviation
TINY_VAE = {
    "block_out_channels": (16, 32, 48),
    "down_block_types": ("CogVideoXDownBlock3D",) * 3,
    "up_block_types": ("CogVideoXUpBlock3D",) * 3,
    "latent_channels": 8,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_height": 64,
    "sample_width": 96,
    "scaling_factor": 1.0,
}


@dataclass(frozen=True)
class VaeTraining:
    """How the tiny VAE is trained.

    Args:
        output: folder of the checkpoint, in diffusers' layout.
        minutes: wall-clock time; the learning rate falls to zero over it.
        crop: side of a crop in pixels.
        frames: frames of a crop (1 + a multiple of 4).
        batch: crops per step.
        lr: peak learning rate of AdamW.
        kl: weight of the Kullback-Leibler term.
        seed: first training seed of the puppets; must stay below 1,000,000.
        resume: go on from the weights in `output`.
        decoder_only: the encoder stays as it is, so that latents and what was trained on them stay valid.
        bf16: compute in bfloat16: quicker on processors that have it, several times slower on others.
        threads: of the processor.
    """

    output: Path
    minutes: float = 12.0
    crop: int = 32
    frames: int = 9
    batch: int = 16
    lr: float = 2e-3
    kl: float = 2e-4
    seed: int = 600_000
    resume: bool = False
    decoder_only: bool = False
    bf16: bool = False
    threads: int = 2


class Crops(IterableDataset):
    """Endless crops: (video [3,F,c,c] in -1..1, weight [F,c,c] that is larger on people and largest on mouths)."""

    def __init__(self, crop: int, frames: int, seed: int) -> None:
        self.crop, self.frames, self.seed = crop, frames, seed

    def __iter__(self):
        rng = np.random.default_rng(self.seed)
        seed = self.seed
        while True:
            # crowds more often than in the clips: their mouths are the smallest
            clip = make_clip(seed, int(rng.choice(4, p=(0.1, 0.3, 0.25, 0.35))) + 1, num_frames=self.frames)
            seed += 1
            height, width = clip.frames.shape[1:3]
            y, x = np.mgrid[0:height, 0:width].astype(np.float32)
            weight = 1.0 + 1.5 * clip.masks.any(0)
            for centre in clip.mouth_centres:
                away = (x - centre[:, 0, None, None]) ** 2 + (y - centre[:, 1, None, None]) ** 2
                weight = weight + 8.0 * np.exp(-away / (2 * 5.0**2))
            for k in range(3):
                if k % 2 == 0:
                    cx, cy = clip.mouth_centres[rng.integers(len(clip.masks)), 0] + rng.normal(0, 8, 2)
                else:
                    cx, cy = rng.uniform(0, width), rng.uniform(0, height)
                x0 = int(np.clip(cx - self.crop / 2, 0, width - self.crop))
                y0 = int(np.clip(cy - self.crop / 2, 0, height - self.crop))
                box = (slice(None), slice(y0, y0 + self.crop), slice(x0, x0 + self.crop))
                pixels = torch.from_numpy(clip.frames[box]).permute(3, 0, 1, 2).float() / 127.5 - 1.0
                yield pixels, torch.from_numpy(weight[box].astype(np.float32))


def vae_loss(
    model: AutoencoderKLCogVideoX, video: Tensor, weight: Tensor, kl: float, decoder_only: bool = False
) -> tuple[Tensor, Tensor]:
    """(total, weighted reconstruction error) of video [B,3,F,H,W] with weight [B,F,H,W].

    The error is the mean of the absolute difference and of the squared one: by the absolute one alone a mouth of two
    pixels is outvoted by the skin around it.
    """
    with torch.set_grad_enabled(not decoder_only):
        posterior = model.encode(video).latent_dist
    latents = posterior.sample()
    if decoder_only:  # what a transformer makes is never exact: a decoder that trusts every digit shows it
        latents = latents + BLUR * posterior.mean.std((0, 2, 3, 4), keepdim=True) * torch.randn_like(latents)
    rebuilt = model.decode(latents).sample.float()
    away = rebuilt - video
    error = ((away.abs() + away**2) * weight[:, None]).mean() / weight.mean()
    if decoder_only:
        return error, error
    divergence = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1.0 - posterior.logvar.float()).mean()
    return error + kl * divergence, error


def train(settings: VaeTraining) -> dict:
    """Train, save under `settings.output`, and return what was measured."""
    torch.manual_seed(settings.seed)
    if settings.resume:
        model = AutoencoderKLCogVideoX.from_pretrained(settings.output)
    else:
        model = AutoencoderKLCogVideoX(**TINY_VAE)
    loader = iter(
        DataLoader(Crops(settings.crop, settings.frames, settings.seed), batch_size=settings.batch, num_workers=1)
    )
    trained = model.decoder if settings.decoder_only else model
    optimiser = torch.optim.AdamW(trained.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    start, step, smooth = time.monotonic(), 0, 0.0
    while (passed := (time.monotonic() - start) / (60 * settings.minutes)) < 1.0:
        rate = settings.lr * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * passed)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        video, weight = next(loader)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            loss, error = vae_loss(model, video, weight, settings.kl, settings.decoder_only)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimiser.step()
        smooth = error.item() if step == 0 else 0.97 * smooth + 0.03 * error.item()
        step += 1
        if step % 50 == 0:
            log.info("step %d  %.0f %% of the time  weighted error %.4f", step, 100 * passed, smooth)
        if step % 200 == 0:
            model.save_pretrained(settings.output)
    if not settings.decoder_only:
        mean, std = latent_statistics(model)
        model.register_to_config(latents_mean=mean, latents_std=std)
    model.save_pretrained(settings.output)
    measured = {
        "steps": step,
        "weighted_error": smooth,
        "settings": {k: str(v) for k, v in asdict(settings).items()},
    }
    (settings.output / "training.json").write_text(json.dumps(measured, indent=1))
    return measured


@torch.no_grad()
def latent_statistics(model: AutoencoderKLCogVideoX, clips: int = 64) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every latent channel over training clips.

    Without the means most of what a diffusion loss counts would be constant, and it would look learned.
    """
    latents = []
    for k in range(clips):
        video = torch.from_numpy(make_clip(700_000 + k).frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0
        latents.append(model.encode(video).latent_dist.mode())
    every = torch.cat(latents)
    mean, std = every.mean((0, 2, 3, 4)), every.std((0, 2, 3, 4))
    return [round(float(x), 5) for x in mean], [round(float(x), 5) for x in std]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    asked = tyro.cli(VaeTraining)
    torch.set_num_threads(asked.threads)
    print(json.dumps(train(asked), indent=1))
