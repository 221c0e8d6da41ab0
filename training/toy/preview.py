"""Images of a run beside the ground truth and the shipped weights: same scenes and noise, ground-truth masks.

    python -m training.toy.preview --run runs/toy_wide/stills --output stills.png

Scenes have validation seeds. Of a run in progress, the averaged weights of the latest checkpoint are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from bya_core.io.atomic import atomic_write
from bya_core.sampling.schedulers import build_scheduler, retrieve_timesteps, step
from bya_core.toy.bundle import load_toy, load_toy_encoders
from bya_core.toy.encoders import ToyTextEncoder
from training.benchmark.validation import VALIDATION_SEEDS
from training.command_line import OutputPath, run_command
from training.engine.recipe import load_recipe
from training.puppets.world import PuppetClip, make_clip
from training.toy.assemble import load_latest
from training.toy.clips import encode_clips

SHIPPED = Path("bya_core/toy/weights")
CHARACTERS = (1, 2, 2, 3, 4, 2)


@dataclass(frozen=True)
class PreviewOptions:
    """Write images of a run beside the ground truth and the shipped weights.

    Args:
        run: output folder of a stage.
        output: PNG file.
        recipe: recipe of the run.
        frames: video frames; of clips, the first, middle and last frame are shown.
        scenes: number of scenes.
        steps: number of sampling steps.
        guidance_scale: guidance on prompt and faces.
        shipped: also show the shipped weights.
        threads: CPU threads.
        scale: upscaling of the images.
    """

    run: Path
    output: OutputPath = Path("preview.png")
    recipe: str = "toy_wide"
    frames: int = 1
    scenes: int = 12
    steps: int = 24
    guidance_scale: float = 1.5
    shipped: bool = True
    threads: int = 1
    scale: int = 2


def main(options: PreviewOptions) -> None:
    """Sample, decode and write the image."""
    torch.set_num_threads(options.threads)
    recipe = load_recipe(options.recipe)
    model, steps = load_latest(options.run, recipe.model)
    shipped = load_toy(SHIPPED) if options.shipped else None
    encoders = load_toy_encoders(SHIPPED)._replace(text=ToyTextEncoder(**recipe.text_encoder))
    rows: list[list[np.ndarray]] = [[] for _ in range(3 if shipped else 2)]
    numbers = [CHARACTERS[k % len(CHARACTERS)] for k in range(options.scenes)]
    for n in sorted(set(numbers)):
        seeds = [VALIDATION_SEEDS + k for k, number in enumerate(numbers) if number == n]
        clips = _clips(seeds, n, options.frames, describe_motion=True)
        batch = encode_clips(clips, encoders)
        results = [batch["latents"].float()]
        if shipped is not None:
            prompts = [clip.prompt for clip in _clips(seeds, n, options.frames, describe_motion=False)]
            other = {**batch, "text": shipped.text.encode(prompts)}
            config = dict(shipped.scheduler_config)
            results.append(sample(shipped.transformer, other, config, options.steps, 2.0, speech=True))
        results.append(sample(model, batch, recipe.scheduler, options.steps, options.guidance_scale))
        for row, latents in zip(rows, results, strict=True):
            row += [_image(video) for video in encoders.codec.decode(latents)]
    per_line = 6 if options.frames == 1 else 2
    lines = []
    for start in range(0, options.scenes, per_line):
        for row in rows:
            images = row[start : start + per_line]
            lines.append(np.concatenate([*images, *[np.zeros_like(row[0])] * (per_line - len(images))], axis=1))
    sheet = Image.fromarray(np.concatenate(lines))
    sheet = sheet.resize((sheet.width * options.scale, sheet.height * options.scale), Image.Resampling.BICUBIC)
    with atomic_write(options.output) as temporary:
        sheet.save(temporary)
    print(f"step {steps}: {options.output}")


@torch.no_grad()
def sample(
    model: Any,
    batch: dict[str, Tensor],
    scheduler_config: dict[str, Any],
    steps: int,
    guidance_scale: float,
    speech: bool = False,
) -> Tensor:
    """Sample latents [K,T,C,h,w] without first frame, with the ground-truth masks of a batch from `encode_clips`."""
    scheduler = build_scheduler("dpm", scheduler_config)
    generators = [torch.Generator().manual_seed(int(seed)) for seed in batch["seed"]]
    latents = torch.stack([torch.randn(batch["latents"].shape[1:], generator=g) for g in generators])
    canvas = batch["canvas"].float()
    images = torch.cat([canvas, torch.zeros_like(canvas)], 1)[:, None]
    images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, latents.shape[1] - 1))
    text, identity, hidden = (batch[name].float() for name in ("text", "identity", "hidden"))
    shared = {"mask_override": batch["masks"].float() / 255.0}
    if speech:
        shared["audio_tokens"] = model.encode_speech(batch["speech"].float())
    conditional = {"encoder_hidden_states": text, "face_tokens": model.encode_faces(identity, hidden)}
    dropped = model.encode_faces(torch.zeros_like(identity), torch.zeros_like(hidden))
    unconditional = {"encoder_hidden_states": torch.zeros_like(text), "face_tokens": dropped}
    timesteps, x0 = retrieve_timesteps(scheduler, steps), None
    generator = torch.Generator().manual_seed(0)
    for index, timestep in enumerate(timesteps):
        time = torch.full((len(latents),), timestep)
        velocity = model(torch.cat([latents, images], 2), timestep=time, **conditional, **shared).sample
        if guidance_scale != 1.0:
            blank = torch.cat([latents, torch.zeros_like(images)], 2)
            base = model(blank, timestep=time, **unconditional, **shared).sample
            velocity = base + guidance_scale * (velocity - base)
        latents, x0 = step(scheduler, velocity, latents, timesteps, index, x0, generator)
    return latents


def _clips(seeds: list[int], n: int, frames: int, describe_motion: bool) -> list[PuppetClip]:
    return [make_clip(seed, n, num_frames=frames, describe_motion=describe_motion) for seed in seeds]


def _image(video: Tensor) -> np.ndarray:
    """A decoded still [3,1,H,W], or the first, middle and last frame of a video side by side, uint8 [H,W,3]."""
    frames = video.shape[1]
    shown = video[:, sorted({0, frames // 2, frames - 1})]
    return rearrange((shown + 1) * 127.5, "c f h w -> h (f w) c").round().clamp(0, 255).byte().numpy()


if __name__ == "__main__":
    run_command(main, PreviewOptions)
