"""The toy video VAE, trained on puppets.

    python -m training.toy.vae --output runs/toy/vae

It is `AutoencoderKLCogVideoX` with two down-samplings (4x in time, 4x4 in space) and few channels. It learns from small
crops of short clips, half of them around a mouth: mouths are a few pixels, and what the VAE loses no transformer can
move. The decoder learns on from whole pictures (`--resume --decoder-only --crop 96 --frames 17`).
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

from training.puppets import MOUTH_RGB, make_clip

log = logging.getLogger(__name__)

LIKENESS = 0.25  # colours nearer than this (of 0..1) look like the inside of a mouth
BLUR = 0.15  # noise on the latents where only the decoder learns, as a share of their deviation
TOY_VAE = {
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
    """How the toy VAE is trained.

    Args:
        output: folder of the checkpoint, in diffusers' layout.
        minutes: wall-clock time; the learning rate falls to zero over it.
        crop: side of a crop in pixels, as far as the picture goes: 96 takes whole pictures. Group norms see what they
            are given, so that a decoder that only knows crops about mouths shows whole pictures worse.
        frames: frames of a crop (1 + a multiple of 8: the codec decodes an even number of latent frames to more).
        batch: crops per step.
        lr: peak learning rate of AdamW.
        kl: weight of the Kullback-Leibler term.
        opening: weight of the error of how far each mouth is open, see `opening_error`; 0 = not scored.
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
    opening: float = 0.0
    seed: int = 600_000
    resume: bool = False
    decoder_only: bool = False
    bf16: bool = False
    threads: int = 2


class Crops(IterableDataset):
    """Endless crops: video [3,F,c,c] in -1..1, people and mouths [F,c,c]: 1 where they are, more where mouths meet."""

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
            people = clip.masks.any(0).astype(np.float32)
            away = (x - clip.mouth_centres[..., 0, None, None]) ** 2 + (y - clip.mouth_centres[..., 1, None, None]) ** 2
            mouths = np.exp(-away / (2 * 5.0**2)).sum(0).astype(np.float32)
            high, wide = min(self.crop, height), min(self.crop, width)
            for k in range(1 if (high, wide) == (height, width) else 3):
                if k % 2 == 0:
                    cx, cy = clip.mouth_centres[rng.integers(len(clip.masks)), 0] + rng.normal(0, 8, 2)
                else:
                    cx, cy = rng.uniform(0, width), rng.uniform(0, height)
                x0 = int(np.clip(cx - wide / 2, 0, width - wide))
                y0 = int(np.clip(cy - high / 2, 0, height - high))
                box = (slice(None), slice(y0, y0 + high), slice(x0, x0 + wide))
                pixels = torch.from_numpy(clip.frames[box]).permute(3, 0, 1, 2).float() / 127.5 - 1.0
                yield pixels, torch.from_numpy(people[box]), torch.from_numpy(mouths[box])


def vae_loss(
    model: AutoencoderKLCogVideoX, video: Tensor, people: Tensor, mouths: Tensor, settings: VaeTraining
) -> tuple[Tensor, dict[str, float]]:
    """(total, its parts) of video [B,3,F,H,W] with people and mouths [B,F,H,W], see `Crops`.

    The error is the mean of the absolute difference and of the squared one: by the absolute one alone a mouth of two
    pixels is outvoted by the skin around it.
    """
    with torch.set_grad_enabled(not settings.decoder_only):
        posterior = model.encode(video).latent_dist
    latents = posterior.sample()
    if settings.decoder_only:  # what a transformer makes is never exact: a decoder that trusts every digit shows it
        latents = latents + BLUR * posterior.mean.std((0, 2, 3, 4), keepdim=True) * torch.randn_like(latents)
    rebuilt = model.decode(latents).sample.float()
    away, weight = rebuilt - video, 1.0 + 1.5 * people + 8.0 * mouths
    error = ((away.abs() + away**2) * weight[:, None]).mean() / weight.mean()
    opening = opening_error(rebuilt, video, mouths)
    total = error + settings.opening * opening
    if not settings.decoder_only:
        mean, variance, logvar = posterior.mean.float(), posterior.var.float(), posterior.logvar.float()
        total = total + settings.kl * 0.5 * (mean**2 + variance - 1.0 - logvar).mean()
    return total, {"error": error.item(), "opening": opening.item()}


def opening_error(rebuilt: Tensor, video: Tensor, mouths: Tensor) -> Tensor:
    """How far off the opening of mouths is, frame by frame, over a mean opening: [B,3,F,H,W] twice, [B,F,H,W] -> [].

    An opening is the area about a mouth that looks like the inside of one. Errors of single pixels hardly tell a mouth
    that is half open from one that is blurred; whoever looks at lips sees the area, and its change from frame to frame.
    """
    inside = torch.tensor(MOUTH_RGB).view(1, 3, 1, 1, 1) * 2 - 1

    def area(pixels: Tensor) -> Tensor:
        likeness = torch.exp(-((pixels - inside) ** 2).sum(1) / (2 * LIKENESS) ** 2)  # colours are in -1..1
        return (likeness * mouths).sum((-2, -1))

    wanted = area(video)
    return (area(rebuilt) - wanted).abs().mean() / wanted.mean().clamp(min=1e-3)


def train(settings: VaeTraining) -> dict:
    """Train, save under `settings.output`, and return what was measured."""
    torch.manual_seed(settings.seed)
    if settings.resume:
        model = AutoencoderKLCogVideoX.from_pretrained(settings.output)
    else:
        model = AutoencoderKLCogVideoX(**TOY_VAE)
    loader = iter(
        DataLoader(Crops(settings.crop, settings.frames, settings.seed), batch_size=settings.batch, num_workers=1)
    )
    trained = model.decoder if settings.decoder_only else model
    optimiser = torch.optim.AdamW(trained.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    start, step = time.monotonic(), 0
    smooth: dict[str, float] = {}
    while (passed := (time.monotonic() - start) / (60 * settings.minutes)) < 1.0:
        rate = settings.lr * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * passed)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            loss, errors = vae_loss(model, *next(loader), settings)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimiser.step()
        smooth = {name: value + 0.97 * (smooth.get(name, value) - value) for name, value in errors.items()}
        step += 1
        if step % 50 == 0:
            told = ", ".join(f"{name} {value:.4f}" for name, value in smooth.items())
            log.info("step %d  %.0f %% of the time  %s", step, 100 * passed, told)
        if step % 200 == 0:
            model.save_pretrained(settings.output)
    if not settings.decoder_only:
        mean, std = latent_statistics(model)
        model.register_to_config(latents_mean=mean, latents_std=std)
    model.save_pretrained(settings.output)
    measured = {
        "steps": step,
        **smooth,
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
