"""Scene to video: the whole job, top to bottom.

    scene -> prepare -> route -> sample -> video

Each step can be called on its own (the nodes do): `prepare` encodes, `route` finds out who is where and can be looked
at and edited, `sample` goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

from bya_core.grid import TokenGrid
from bya_core.io.atomic import check_output
from bya_core.io.media import mix_speeches, write_video
from bya_core.pipelines.prepare import prepare
from bya_core.progress import Progress, ProgressCallback, ProgressTracker
from bya_core.routing import Routing
from bya_core.routing.route import route
from bya_core.sampling import Prepared, build_scheduler, denoise
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle

__all__ = ["Progress", "ProgressCallback", "Video", "generate", "prepare", "route", "sample"]


@dataclass(frozen=True)
class Video:
    """What `generate` makes.

    Args:
        frames: uint8 [F, H, W, 3].
        masks: [N, T, h, w] in 0..1, the masks that acted in the last step.
        grid: of the masks; `grid.tokens_to_pixels(masks)` lays them over the frames.
        audio: ([channels, samples], rate in Hz) of all speeches as recorded, or None where nobody speaks.
        matrix: audio-character matrix [M, N] that acted.
        notices: what a person should know, one sentence each.
        seconds: time taken by each part of the work.
        fps: frames per second.
    """

    frames: Tensor
    masks: Tensor
    grid: TokenGrid
    audio: tuple[Tensor, int] | None
    matrix: Tensor
    notices: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    fps: float = 25.0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the video with its audio as mp4.

        Raises:
            InputError: A path that does not end in .mp4 or cannot be written.
        """
        write_video(check_output(path, (".mp4",), "the video"), self.frames, self.fps, self.audio)


@torch.no_grad()
def generate(scene: Scene, bundle: ModelBundle, callback: ProgressCallback | None = None) -> Video:
    """Make the video of a scene.

    Raises:
        InputError: the scene does not fit the model, or holds an image without a face.
        Cancelled: `callback` returned False.
    """
    tracker = ProgressTracker(callback)
    prepared = prepare(scene, bundle, tracker)
    routing = route(prepared, bundle, tracker)
    return sample(prepared, routing, bundle, tracker)


@torch.no_grad()
def sample(prepared: Prepared, routing: Routing, bundle: ModelBundle, tracker: ProgressTracker | None = None) -> Video:
    """Denoise with the masks of `routing`, from where its router stopped, and decode. Raises as `generate` does."""
    scene, tracker = prepared.scene, tracker or ProgressTracker()
    latents, masks = denoised(prepared, routing, bundle, tracker)
    frames = decoded(latents, bundle, tracker)
    audio = mix_speeches(scene.sounds, scene.seconds)
    notices = (*scene.notices, *routing.notices, *doubts(scene, bundle))
    return Video(frames, masks, prepared.grid, audio, routing.matrix, notices, tracker.seconds, scene.fps)


@torch.no_grad()
def denoised(
    prepared: Prepared, routing: Routing, bundle: ModelBundle, tracker: ProgressTracker
) -> tuple[Tensor, Tensor]:
    """First half of `sample`: clean latents [1, T, C, H, W], and the masks [N, T, h, w] that acted in the last step."""
    sampling = prepared.scene.sampling
    conditions = routing.apply_to(prepared.conditions)
    with tracker.stage("Denoising", sampling.steps) as step:
        scheduler = build_scheduler(sampling.scheduler, bundle.scheduler_config)
        made = denoise(bundle.transformer, scheduler, conditions, sampling, callback=step, state=routing.state)
    masks = routing.masks if made.masks is None else made.masks.float().cpu()  # None: the probe took every step
    return made.latents, masks


@torch.no_grad()
def decoded(latents: Tensor, bundle: ModelBundle, tracker: ProgressTracker) -> Tensor:
    """Second half of `sample`: latents [1, T, C, H, W] -> uint8 [F, H, W, 3] on the CPU."""
    with tracker.stage("Decoding"):
        pixels = bundle.codec.decode(latents.to(bundle.device, bundle.dtype))[0].float()
        frames = rearrange((pixels + 1) * 127.5, "c f h w -> f h w c").round().clamp(0, 255).to(torch.uint8)
    return frames.cpu()


def doubts(scene: Scene, bundle: ModelBundle) -> Iterator[str]:
    """Where the scene goes beyond what the weights were trained for."""
    native, count = bundle.native, len(scene.characters)
    if bundle.max_characters is not None and count > bundle.max_characters:
        yield f"{count} characters, but {bundle.name} was trained with at most {bundle.max_characters}."
    if (scene.height, scene.width) != (native.height, native.width):
        trained = f"{native.width}x{native.height}"
        yield f"{scene.width}x{scene.height} pixels, but {bundle.name} was trained at {trained}: expect less."
