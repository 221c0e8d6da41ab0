"""Post-denoise router (paper sec. 3.3.1): masks from a first pass without speech.

The second pass starts from the same noise, so that the characters appear at the same positions, now with speech.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange
from torch import Generator, Tensor

from bya_core.config import SamplingConfig
from bya_core.encoders.segmentation import Segmenter, load_sam2
from bya_core.progress import ProgressTracker
from bya_core.routing.result import Routing
from bya_core.sampling import Conditions, build_scheduler, denoise
from bya_core.sampling.cfg_parallel import cache_context, reset_step_cache
from bya_core.sampling.conditions import Prepared, build_branch_inputs
from bya_core.sampling.guidance import guidance_branches
from bya_core.weights.bundle import ModelBundle
from bya_core.weights.cache import downloaded_folder

PREDICTION_TIMESTEP = 0.2
"""Noise level at which the router predicts masks of clean latents, as a fraction of the training timesteps. It hardly
matters for the toy model: mask IoU 0.696 at 0.06, 0.709 at 0.2, 0.712 at 0.44 (validation seeds)."""


@torch.no_grad()
def route_post(prepared: Prepared, bundle: ModelBundle, tracker: ProgressTracker) -> Routing:
    """Masks of a first pass with silence for all characters, extracted by `scene.routing.segmenter`.

    Raises:
        InputError: SAM 2 is not available, or a character was not found in the first frame of the pass.
        Cancelled: the progress callback cancelled.
    """
    scene = prepared.scene
    segmenter: Segmenter | None = None
    if scene.routing.segmenter == "sam2":  # raises before the first pass if it is not available
        segmenter = load_sam2(downloaded_folder(scene.routing.segmenter_weights), str(bundle.device), bundle.dtype)
    conditions = without_speech(prepared.conditions)
    # With silence in every branch, equal scales give the same prediction with one branch less.
    sampling = replace(scene.sampling, audio_guidance_scale=scene.sampling.guidance_scale)
    with tracker.stage("Denoising without speech", sampling.steps) as step:
        scheduler = build_scheduler(sampling.scheduler, bundle.scheduler_config)
        latents = denoise(bundle.transformer, scheduler, conditions, sampling, callback=step).latents
    with tracker.stage("Predicting masks"):
        if segmenter is None:
            masks, calls = router_masks(latents, conditions, sampling, bundle), sampling.steps + 1
        else:
            masks, calls = segmented_masks(latents, prepared, bundle, segmenter), sampling.steps
    return Routing.of("post", masks, scene.matrix, strength=1.0, calls=calls)


def without_speech(conditions: Conditions) -> Conditions:
    """Conditions with encoded silence in every speech stream."""
    return replace(conditions, audio_tokens=conditions.silent_audio_tokens)


def router_masks(latents: Tensor, conditions: Conditions, sampling: SamplingConfig, bundle: ModelBundle) -> Tensor:
    """Masks [N, T, h, w] that the router predicts for clean latents (segmenter "self"), with one transformer call.

    Args:
        latents: clean, [1, T, C, H, W].
        conditions: of the run that made them; their mask control is ignored.
        sampling: settings of that run.
        bundle: the model.
    """
    device, dtype = bundle.device, bundle.dtype
    scheduler = build_scheduler(sampling.scheduler, bundle.scheduler_config)
    timestep = round(PREDICTION_TIMESTEP * scheduler.config.num_train_timesteps)
    noise = torch.randn(latents.shape, generator=Generator("cpu").manual_seed(sampling.seed))
    noisy = scheduler.add_noise(latents.float().cpu(), noise, torch.tensor([timestep]))
    inputs = build_branch_inputs(
        conditions, guidance_branches(1.0, 1.0), drop_identity=False, device=device, dtype=dtype
    )
    reset_step_cache(bundle.transformer)
    with cache_context(bundle.transformer, "router"):
        output = bundle.transformer(
            hidden_states=torch.cat([noisy.to(device, dtype), inputs.image_latents], dim=2),
            timestep=torch.full((1,), timestep, device=device, dtype=torch.long),
            **inputs.kwargs,
        )
    return output.used_masks[0]


def segmented_masks(latents: Tensor, prepared: Prepared, bundle: ModelBundle, segmenter: Segmenter) -> Tensor:
    """Masks [N, T, h, w] by video segmentation of decoded latents [1, T, C, H, W], prompted with character boxes."""
    from bya_core.routing.pre import character_boxes

    video = bundle.codec.decode(latents.to(bundle.device, bundle.dtype))[0].float().cpu()
    pixels = ((video + 1) / 2).clamp(0, 1)  # [3, F, H, W]
    boxes = character_boxes(pixels[:, 0], prepared.scene, bundle)
    frames = rearrange(pixels * 255, "c f h w -> f h w c").round().to(torch.uint8)
    return prepared.grid.pixels_to_tokens(segmenter.segment(frames, boxes))
