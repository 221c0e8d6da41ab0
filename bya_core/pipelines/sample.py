"""Denoise and decode a prepared scene."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from einops import rearrange
from torch import Tensor

from bya_core.grid import TokenGrid
from bya_core.io.media import write_video
from bya_core.io.outputs import check_output
from bya_core.masks import mask_notices
from bya_core.memory.planner import run_codec
from bya_core.pipelines.kept_latents import Denoised, KeptLatents
from bya_core.progress import ProgressTracker
from bya_core.routing import Routing
from bya_core.sampling import Prepared, build_scheduler, denoise
from bya_core.scene.spatial import video_audio
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle


@dataclass(frozen=True)
class Video:
    """A generated video.

    Args:
        frames: uint8 [F, H, W, 3].
        masks: character masks [N, T, h, w] in 0..1, those of the last denoising step.
        grid: token grid of the masks; `grid.tokens_to_pixels(masks)` resizes them to the frames.
        audio: ([channels, samples], sample rate in Hz), the mix of all speeches (`scene.spatial`); None without speech.
        matrix: audio-character matrix [M, N] that was used.
        notices: what the user should know, one sentence each.
        seconds: duration of each stage in seconds.
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
def sample(
    prepared: Prepared,
    routing: Routing,
    model: ModelBundle,
    tracker: ProgressTracker | None = None,
    kept: KeptLatents | None = None,
) -> Video:
    """Denoise and decode the video, continuing from the latents of the router. Raises as `generate` does.

    Args:
        prepared: the encoded scene.
        routing: character masks and, with the intra router, partially denoised latents.
        model: the model.
        tracker: reports and measures the stages.
        kept: where the denoised latents are saved before they are decoded; None = nowhere.
    """
    scene, tracker = prepared.scene, tracker or ProgressTracker()
    latents, masks = denoise_latents(prepared, routing, model, tracker)
    notices = (*scene.notices, *routing.notices, *model_notices(scene, model), *mask_notices(scene.names, masks))
    notices = tuple(dict.fromkeys((*notices, *tracker.notices)))
    denoised = Denoised(latents, masks, routing.matrix, notices)
    if kept is not None:
        kept.save(denoised)
    return decode_video(denoised, scene, model, tracker)


@torch.no_grad()
def decode_video(denoised: Denoised, scene: Scene, model: ModelBundle, tracker: ProgressTracker) -> Video:
    """The video of a scene of one window from its latents."""
    frames = decode_latents(denoised.latents, model, tracker)
    grid = model.grid(scene.num_frames, scene.height, scene.width)
    audio = video_audio(scene, denoised.masks, grid, denoised.matrix)
    notices = tuple(dict.fromkeys((*denoised.notices, *tracker.notices)))
    return Video(frames, denoised.masks, grid, audio, denoised.matrix, notices, tracker.seconds, scene.fps)


@torch.no_grad()
def denoise_latents(
    prepared: Prepared, routing: Routing, model: ModelBundle, tracker: ProgressTracker
) -> tuple[Tensor, Tensor]:
    """Clean latents [1, T, C, H, W] and the masks [N, T, h, w] of the last step."""
    sampling = prepared.scene.sampling
    conditions = routing.apply_to(prepared.conditions)
    scheduler = build_scheduler(sampling.scheduler, model.scheduler_config)
    with tracker.stage("Denoising", sampling.steps) as callback:
        result = denoise(model.transformer, scheduler, conditions, sampling, callback=callback, state=routing.state)
    # no masks: the router has run all steps
    masks = routing.masks if result.masks is None else result.masks.float().cpu()
    return result.latents, masks


@torch.no_grad()
def decode_latents(latents: Tensor, model: ModelBundle, tracker: ProgressTracker) -> Tensor:
    """Latents [1, T, C, H, W] to frames, uint8 [F, H, W, 3] on the CPU; in tiles if memory runs out."""
    latents = latents.to(model.device, model.dtype)
    with tracker.stage("Decoding"):
        pixels = run_codec(model.codec, lambda: model.codec.decode(latents), "Decoding")[0].float()
        frames = rearrange((pixels + 1) * 127.5, "c f h w -> f h w c").round().clamp(0, 255).to(torch.uint8)
    return frames.cpu()


def model_notices(scene: Scene, model: ModelBundle) -> Iterator[str]:
    """Notices where the scene differs from the training data of the model."""
    native, count = model.native, len(scene.characters)
    if model.max_characters is not None and count > model.max_characters:
        yield f"{count} characters, but {model.name} was trained with at most {model.max_characters}."
    if (scene.height, scene.width) != (native.height, native.width):
        trained = f"{native.width}x{native.height}"
        yield f"{scene.width}x{scene.height} pixels, but {model.name} was trained at {trained}; expect reduced quality."
