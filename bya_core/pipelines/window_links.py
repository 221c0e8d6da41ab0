"""What a window of a long video takes over from the others: latents, masks, colors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bya_core.masks import MaskControl
from bya_core.pipelines.window_files import StoredWindow
from bya_core.sampling.conditions import Prepared
from bya_core.scene.windows import Window

OVERRIDE_END = 0.3
"""Fraction of the steps during which the masks of the previous window override the router in the shared frames."""


def carry_over(
    prepared: Prepared, window: Window, previous: StoredWindow | None, following: StoredWindow | None = None
) -> Prepared:
    """Conditions of a window with the latents and masks it shares with its neighbors.

    Args:
        prepared: the encoded window, starting from the first shared frame of `previous`.
        window: its position.
        previous: the shared frames at the end of the previous window.
        following: an earlier version of this window, whose end the next window continues from.
    """
    conditions, frames = prepared.conditions, prepared.grid.frames
    known = torch.zeros(frames, dtype=torch.bool)
    given, fixed = conditions.known_latents, conditions.known_mask  # of footage
    latents = torch.zeros(1, *conditions.latent_shape) if given is None else given.float().cpu()
    masks = torch.zeros(conditions.characters, *prepared.grid.shape)
    if previous is not None and conditions.first_frame_latents is not None:
        lead = window.latent_lead
        latents[:, :lead], masks[:, :lead] = previous.latents, previous.masks
        # the first latent frame covers one video frame here, but four in the previous window
        latents[:, :1] = conditions.first_frame_latents[:, :1].to(latents)
        known[:lead] = True
    if following is not None:
        tail = window.latent_tail
        latents[:, -tail:], masks[:, -tail:] = following.latents[:, -tail:], following.masks[:, -tail:]
        known[-tail:] = True
    if not bool(known.any()):
        return prepared
    strength = known.float().expand(conditions.characters, -1)
    control = MaskControl(masks, strength, end_percent=torch.tensor(OVERRIDE_END))
    known_mask = known if fixed is None else fixed.cpu() | known[:, None, None]
    conditions = replace(conditions, known_latents=latents, known_mask=known_mask, mask_control=control)
    return replace(prepared, conditions=conditions)


def window_seed(seed: int, index: int, take: int) -> int:
    """Seed of a window, derived from the seed of the scene; the first window uses the seed itself."""
    if index == 0 and take == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {index} {take}".encode()).digest()[:7], "big")


def shared_end(stored: StoredWindow, window: Window) -> StoredWindow:
    """The frames that the next window shares, copied so that the rest can be freed."""
    if not window.tail:
        return stored
    shared = window.latent_tail
    return replace(
        stored,
        frames=stored.frames[-window.tail :].clone(),
        latents=stored.latents[:, -shared:].clone(),
        masks=stored.masks[:, -shared:].clone(),
    )


def channel_statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [1, 1, C, 1, 1] of the channels of latents [1, T, C, H, W]."""
    deviation, mean = torch.std_mean(latents.float(), dim=(1, 3, 4), keepdim=True)
    return mean, deviation


def match_statistics(latents: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
    """Latents [1, T, C, H, W] with the mean and standard deviation of `channel_statistics`."""
    mean, deviation = channel_statistics(latents)
    return (latents - mean) / deviation.clamp(min=1e-6) * target[1].to(latents) + target[0].to(latents)


@dataclass
class CachedEncoder:
    """A text or face encoder that encodes equal inputs once."""

    encoder: Any
    cache: dict[Any, Any] = field(default_factory=dict)

    def encode(self, inputs: list[str] | Tensor) -> Any:
        key = tuple(inputs) if isinstance(inputs, list) else (inputs.shape, inputs.cpu().numpy().tobytes())
        if key not in self.cache:
            self.cache[key] = self.encoder.encode(inputs)
        return self.cache[key]

    def truncation(self, prompt: str) -> str | None:
        found: str | None = self.encoder.truncation(prompt) if hasattr(self.encoder, "truncation") else None
        return found
