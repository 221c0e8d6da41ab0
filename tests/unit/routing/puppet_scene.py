"""Synthetic scenes with validation seeds for the toy model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from einops import rearrange

from bya_core.scene.types import Character, Scene, Speech
from bya_core.weights.bundle import ModelBundle
from bya_core.weights.registry import MODELS
from training.puppets import PuppetClip, make_clip
from training.puppets.world import SAMPLE_RATE

VALIDATION = 2_000_000
needs_toy = pytest.mark.skipif(not MODELS["toy"].available, reason="no weights of the toy model")


def picture(pixels: np.ndarray) -> torch.Tensor:
    """[H, W, 3] uint8 -> [3, H, W] in 0..1."""
    return rearrange(torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255, "h w c -> c h w")


def puppet_scene(
    bundle: ModelBundle, clip: PuppetClip, steps: int, first_frame: bool = True, **sampling: object
) -> Scene:
    """Scene whose ideal video is the clip."""
    frames, height, width = clip.frames.shape[:3]
    return Scene(
        prompt=clip.prompt,
        characters=[Character(f"puppet {n + 1}", picture(portrait)) for n, portrait in enumerate(clip.portraits)],
        speeches=[Speech(torch.from_numpy(samples)[None], SAMPLE_RATE) for samples in clip.speeches],
        height=height,
        width=width,
        num_frames=frames,
        first_frame=picture(clip.first_frame) if first_frame else None,
        sampling=replace(bundle.sampling, steps=steps, seed=clip.seed, **sampling),  # type: ignore[arg-type]
    )


def two_puppets(seed: int = VALIDATION, num_frames: int = 9, motion: str = "still") -> PuppetClip:
    """Clip of two characters who both talk."""
    return make_clip(seed, 2, 64, 96, num_frames, motion=motion, talk="overlap")  # type: ignore[arg-type]
