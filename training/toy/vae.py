"""Train the video VAE of the toy model on puppets.

    python -m training.toy.vae --output runs/toy/vae

An `AutoencoderKLCogVideoX` with two downsampling stages (4x in time, 4x4 in space) and few channels. It is trained on
small crops of short clips, half of them around a mouth, as mouths are only a few pixels. The decoder is then trained
further on whole frames (`--resume --decoder-only --crop 96 --frames 17`).
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from bya_core.io.atomic import atomic_contents, write_json
from training.command_line import OutputPath, run_command
from training.puppets import MOUTH_RGB, make_clip

log = logging.getLogger(__name__)

COLOR_TOLERANCE = 0.25  # color distance (0..1) within which a pixel counts as the inside of a mouth
LATENT_NOISE = 0.15  # noise added to the latents for decoder training, relative to their standard deviation
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
class Arguments:
    """Train the video VAE of the toy model.

    Args:
        output: folder of the checkpoint, in diffusers format.
        minutes: training time; the learning rate decays to zero over it.
        crop: side of a crop in pixels, clamped to the frame: 96 = whole frames. Group norm statistics differ between
            crops and whole frames, so decoders trained on crops only are worse on whole frames.
        frames: frames of a crop (1 + a multiple of 8, as the VAE decodes even numbers of latent frames differently).
        batch_size: crops per step.
        lr: peak learning rate of AdamW.
        kl_weight: weight of the KL divergence.
        opening_weight: weight of `opening_error`.
        seed: first puppet seed; all must be below 1,000,000.
        resume: continue from the weights in `output`.
        decoder_only: freeze the encoder, so that existing latents remain valid.
        bf16: compute in bfloat16; faster on CPUs that support it, several times slower on others.
        threads: CPU threads.
    """

    output: OutputPath
    minutes: float = 12.0
    crop: int = 32
    frames: int = 9
    batch_size: int = 16
    lr: float = 2e-3
    kl_weight: float = 2e-4
    opening_weight: float = 0.0
    seed: int = 600_000
    resume: bool = False
    decoder_only: bool = False
    bf16: bool = False
    threads: int = 2


class Crops(IterableDataset):
    """Infinite crops: video [3,F,c,c] in -1..1, and weights of characters and mouths [F,c,c], 1 inside."""

    def __init__(self, crop: int, frames: int, seed: int) -> None:
        self.crop, self.frames, self.seed = crop, frames, seed

    def __iter__(self):
        rng = np.random.default_rng(self.seed)
        seed = self.seed
        while True:
            # more characters than in the clips, as their mouths are smaller
            clip = make_clip(seed, int(rng.choice(4, p=(0.1, 0.3, 0.25, 0.35))) + 1, num_frames=self.frames)
            seed += 1
            height, width = clip.frames.shape[1:3]
            y, x = np.mgrid[0:height, 0:width].astype(np.float32)
            characters = clip.masks.any(0).astype(np.float32)
            mouth_x, mouth_y = np.moveaxis(clip.mouth_centers[..., None, None], 2, 0)
            mouths = np.exp(-((x - mouth_x) ** 2 + (y - mouth_y) ** 2) / (2 * 5.0**2)).sum(0).astype(np.float32)
            high, wide = min(self.crop, height), min(self.crop, width)
            for k in range(1 if (high, wide) == (height, width) else 3):
                if k % 2 == 0:
                    cx, cy = clip.mouth_centers[rng.integers(len(clip.masks)), 0] + rng.normal(0, 8, 2)
                else:
                    cx, cy = rng.uniform(0, width), rng.uniform(0, height)
                x0 = int(np.clip(cx - wide / 2, 0, width - wide))
                y0 = int(np.clip(cy - high / 2, 0, height - high))
                box = (slice(None), slice(y0, y0 + high), slice(x0, x0 + wide))
                pixels = torch.from_numpy(clip.frames[box]).permute(3, 0, 1, 2).float() / 127.5 - 1.0
                yield pixels, torch.from_numpy(characters[box]), torch.from_numpy(mouths[box])


def vae_loss(
    model: Any, video: Tensor, characters: Tensor, mouths: Tensor, settings: Arguments
) -> tuple[Tensor, dict[str, float]]:
    """(total loss, metrics) of video [B,3,F,H,W] with weights of characters and mouths [B,F,H,W], see `Crops`.

    The reconstruction error combines absolute and squared differences; the absolute difference alone neglects small
    mouths.
    """
    with torch.set_grad_enabled(not settings.decoder_only):
        posterior = model.encode(video).latent_dist
    latents = posterior.sample()
    if settings.decoder_only:  # generated latents are never exact, so the decoder must tolerate noise
        latents = latents + LATENT_NOISE * posterior.mean.std((0, 2, 3, 4), keepdim=True) * torch.randn_like(latents)
    rebuilt = model.decode(latents).sample.float()
    difference, weight = rebuilt - video, 1.0 + 1.5 * characters + 8.0 * mouths
    error = ((difference.abs() + difference**2) * weight[:, None]).mean() / weight.mean()
    opening = opening_error(rebuilt, video, mouths)
    total = error + settings.opening_weight * opening
    if not settings.decoder_only:
        mean, variance, logvar = posterior.mean.float(), posterior.var.float(), posterior.logvar.float()
        total = total + settings.kl_weight * 0.5 * (mean**2 + variance - 1.0 - logvar).mean()
    return total, {"error": error.item(), "opening": opening.item()}


def opening_error(rebuilt: Tensor, video: Tensor, mouths: Tensor) -> Tensor:
    """Mean error of the mouth opening per frame relative to the mean opening: [B,3,F,H,W] twice, [B,F,H,W] -> [].

    The opening is the area near a mouth with the color of its inside. Pixel errors hardly distinguish a half-open mouth
    from a blurred one.
    """
    inside = torch.tensor(MOUTH_RGB).view(1, 3, 1, 1, 1) * 2 - 1

    def area(pixels: Tensor) -> Tensor:
        similarity = torch.exp(-((pixels - inside) ** 2).sum(1) / (2 * COLOR_TOLERANCE) ** 2)  # colors are in -1..1
        return (similarity * mouths).sum((-2, -1))

    target = area(video)
    return (area(rebuilt) - target).abs().mean() / target.mean().clamp(min=1e-3)


def train(settings: Arguments) -> dict:
    """Train, save to `settings.output`, and return the metrics."""
    torch.manual_seed(settings.seed)
    kind: Any = AutoencoderKLCogVideoX
    model = kind.from_pretrained(settings.output) if settings.resume else kind(**TOY_VAE)
    crops = Crops(settings.crop, settings.frames, settings.seed)
    loader = iter(DataLoader(crops, batch_size=settings.batch_size, num_workers=1))
    module = model.decoder if settings.decoder_only else model
    optimizer = torch.optim.AdamW(module.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    start, step = time.monotonic(), 0
    averages: dict[str, float] = {}
    while (fraction := (time.monotonic() - start) / (60 * settings.minutes)) < 1.0:
        rate = settings.lr * min(1.0, (step + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fraction)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            video, characters, mouths = next(loader)
            loss, errors = vae_loss(model, video, characters, mouths, settings)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        averages = {name: value + 0.97 * (averages.get(name, value) - value) for name, value in errors.items()}
        step += 1
        if step % 50 == 0:
            text = ", ".join(f"{name} {value:.4f}" for name, value in averages.items())
            log.info("step %d  %.0f %% of the time  %s", step, 100 * fraction, text)
        if step % 200 == 0:
            save(model, settings.output)
    if not settings.decoder_only:
        mean, std = latent_statistics(model)
        model.register_to_config(latents_mean=mean, latents_std=std)
    metrics = {"steps": step, **averages, "settings": {k: str(v) for k, v in asdict(settings).items()}}
    save(model, settings.output, metrics)
    return metrics


def save(model: Any, folder: Path, metrics: dict | None = None) -> None:
    """Write the weights and, at the end, training.json."""
    with atomic_contents(folder) as contents:
        model.save_pretrained(contents)
        if metrics is not None:
            write_json(contents / "training.json", metrics)


@torch.no_grad()
def latent_statistics(model: Any, clips: int = 64) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every latent channel over training clips.

    Without normalization the diffusion loss would be dominated by the constant means.
    """
    latents = []
    for k in range(clips):
        video = torch.from_numpy(make_clip(700_000 + k).frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1.0
        latents.append(model.encode(video).latent_dist.mode())
    every = torch.cat(latents)
    mean, std = every.mean((0, 2, 3, 4)), every.std((0, 2, 3, 4))
    return [round(float(x), 5) for x in mean], [round(float(x), 5) for x in std]


def main(arguments: Arguments) -> None:
    """Train and print the metrics."""
    torch.set_num_threads(arguments.threads)
    print(json.dumps(train(arguments), indent=1))


if __name__ == "__main__":
    run_command(main, Arguments)
