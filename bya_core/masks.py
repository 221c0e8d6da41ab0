"""Character masks and audio masks on the token grid.

A character mask contains the tokens of a character, an audio mask the tokens that attend to a speech stream.
Shapes: B batch, N characters, M speech streams, T latent frames, h w token rows and columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bya_core.errors import InputError


@dataclass(frozen=True, eq=False)
class MaskControl:
    """Character masks that override the router's prediction, and where in the run they act.

    Args:
        masks: [N, T, h, w] in [0, 1].
        strength: [N], or [N, T] per latent frame; 0 = the router's masks, 1 = only these masks.
        start_percent: [N], fraction of the denoising steps (0..1) from which a mask acts.
        end_percent: [N], fraction of the denoising steps (0..1) until which it acts.

    `strength`, `start_percent` and `end_percent` may be scalars: they hold for every character then.

    Raises:
        InputError: other shapes, values outside 0..1, or a range that ends before it starts.
    """

    masks: Tensor
    strength: Tensor = torch.tensor(1.0)
    start_percent: Tensor = torch.tensor(0.0)
    end_percent: Tensor = torch.tensor(1.0)

    def __post_init__(self) -> None:
        if self.masks.ndim != 4 or 0 in self.masks.shape:
            shape = "[characters, latent frames, token rows, token columns]"
            raise InputError(f"masks of shape {list(self.masks.shape)}", shape, "provide one mask per character")
        count, frames = self.masks.shape[:2]
        for name in ("strength", "start_percent", "end_percent"):
            value = torch.as_tensor(getattr(self, name), dtype=torch.float32).cpu()
            object.__setattr__(self, name, value.expand(count) if value.ndim == 0 else value)
            shapes = ((count,), (count, frames)) if name == "strength" else ((count,),)
            if tuple(getattr(self, name).shape) not in shapes:
                problem = f"mask {name} of shape {list(value.shape)}"
                raise InputError(problem, f"[{count}], one value per character", f"correct {name}")
        for name in ("masks", "strength", "start_percent", "end_percent"):
            value = getattr(self, name)
            if not bool(((value >= 0) & (value <= 1)).all()):
                what = "masks" if name == "masks" else f"mask {name}"
                raise InputError(f"{what} with values outside 0..1", "values in 0..1", "rescale them")
        if bool((self.start_percent >= self.end_percent).any()):
            pairs = zip(self.start_percent.tolist(), self.end_percent.tolist(), strict=True)
            start, end = next((start, end) for start, end in pairs if start >= end)
            problem = f"a mask that acts from {start:g} to {end:g} of the run"
            raise InputError(problem, "start_percent < end_percent", "correct them")

    @property
    def is_active(self) -> bool:
        """Whether any mask has a strength above 0."""
        return bool((self.strength > 0).any())

    def at(self, fraction: float) -> tuple[Tensor, Tensor | None] | None:
        """Masks and strength at one point of the run.

        Args:
            fraction: step / number of steps, 0..1.

        Returns:
            masks [N, T, h, w] and strength [N, 1 or T, 1, 1] (None = 1 everywhere), or None where no mask acts.
        """
        acts = (self.start_percent <= fraction) & (fraction < self.end_percent)
        strength = self.strength.view(len(acts), -1, 1, 1) * acts.view(-1, 1, 1, 1)
        if not bool((strength > 0).any()):
            return None
        return self.masks, None if bool((strength == 1).all()) else strength

    def latent_frames(self, frames: slice) -> MaskControl:
        """The same for a range of latent frames."""
        strength = self.strength[:, frames] if self.strength.ndim == 2 else self.strength
        return replace(self, masks=self.masks[:, frames], strength=strength)

    def override(self, other: MaskControl) -> MaskControl:
        """Apply `other` on top of this one.

        The existing masks keep the share 1 - other.strength: the router's prediction r and these masks m with strength
        w become r (1 - w) (1 - v) + m w (1 - v) + m' v. Characters with a strength of 0 in `other` do not change.

        Raises:
            InputError: masks of another shape.
        """
        if other.masks.shape != self.masks.shape:
            problem = f"masks of shape {list(other.masks.shape)}"
            raise InputError(problem, f"{list(self.masks.shape)}", "provide masks at the resolution of the token grid")
        old, new = self.strength, other.strength
        if old.ndim != new.ndim:  # one of them per latent frame
            frames = self.masks.shape[1]
            old, new = (x.view(len(x), -1).expand(-1, frames) for x in (old, new))
        strength = torch.where(new == 1, 1.0, old * (1 - new) + new)
        share = torch.where(new > 0, new / strength.clamp(min=1e-9), 0.0).clamp(max=1)
        acts = new.view(len(new), -1).amax(dim=1) > 0
        return replace(
            self,
            masks=torch.lerp(self.masks, other.masks.to(self.masks), share.view(len(share), -1, 1, 1)),
            strength=strength,
            start_percent=torch.where(acts, other.start_percent, self.start_percent),
            end_percent=torch.where(acts, other.end_percent, self.end_percent),
        )


def audio_masks(character_masks: Tensor, matrix: Tensor | None, inflate: bool) -> Tensor:
    """Audio masks from character masks: A^av = A^ac A^cv (paper eq. 6).

    Args:
        character_masks: [B, N, ...] in [0, 1], any token axes.
        matrix: audio-character matrix [B, M, N]; None = stream i drives character i.
        inflate: extend each audio mask to all tokens outside the other streams' masks (paper sec. 3.3.3, "flip and
            swap"); for two streams this is the rule of the released code.

    Returns:
        [B, M, ...] in [0, 1].
    """
    masks = character_masks if matrix is None else torch.einsum("bmn,bn...->bm...", matrix, character_masks)
    if inflate:
        others = 1 - torch.eye(masks.shape[1], dtype=masks.dtype, device=masks.device)
        masks = 1 - torch.einsum("mk,bk...->bm...", others, masks)
    return masks.clamp(0, 1)


def blend_masks(router: Tensor, override: Tensor | None, strength: Tensor | float | None) -> Tensor:
    """Interpolate between the router's masks (strength 0) and overriding masks (strength 1 or None).

    Args:
        router: [B, N, T, h, w].
        override: same shape, or None.
        strength: number or tensor broadcastable to [B, N, T, h, w].
    """
    if override is None:
        return router
    if strength is None:
        return override
    return torch.lerp(router, override.to(router), torch.as_tensor(strength).to(router))


def time_union(masks: Tensor) -> Tensor:
    """Static masks: the union over time, repeated in every frame. [..., T, h, w] -> [..., T, h, w]."""
    return masks.amax(dim=-3, keepdim=True).expand_as(masks)


def to_boxes(masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Bounding boxes of each mask in each frame as binary masks (paper sec. 5.4.1); boxes may overlap.

    Masks and boxes are [..., T, h, w].
    """
    own = masks > threshold
    rows, columns = own.any(dim=-1, keepdim=True), own.any(dim=-2, keepdim=True)
    return (_between(rows, -2) & _between(columns, -1)).to(masks.dtype)


def _between(line: Tensor, axis: int) -> Tensor:
    """True from the first to the last true value along `axis`."""
    return (line.cumsum(axis) > 0) & (line.flip(axis).cumsum(axis).flip(axis) > 0)


@dataclass(frozen=True)
class MaskStatistics:
    """How much of the frame a character mask covers and how certain it is.

    Args:
        coverage: fraction of all tokens where the mask is above 0.5.
        confidence: mean of the mask over those tokens; 0 where there are none.
    """

    coverage: float
    confidence: float

    def __str__(self) -> str:
        return f"{100 * self.coverage:.0f}% of the frame, confidence {self.confidence:.2f}"


MIN_COVERAGE = 0.005
"""Fraction of the frame below which a character is practically absent."""
MIN_RELATIVE_AREA = 0.1
"""Characters whose mask covers less than this share of the largest mask have no region."""


def mask_notices(names: Sequence[str], masks: Tensor) -> list[str]:
    """One notice per character without a region.

    Args:
        names: of the N characters.
        masks: [N, T, h, w], those that act.
    """
    shares = [statistics.coverage for statistics in mask_statistics(masks)]
    return [
        f"{name} covers {100 * share:.1f}% of the frame: face and speech may have no effect."
        for name, share in zip(names, shares, strict=True)
        if share < max(MIN_COVERAGE, MIN_RELATIVE_AREA * max(shares))
    ]


def mask_statistics(masks: Tensor) -> list[MaskStatistics]:
    """Statistics of each of the N masks [N, T, h, w]."""
    statistics = []
    for mask in masks:
        own = mask > 0.5
        confidence = float(mask[own].mean()) if bool(own.any()) else 0.0
        statistics.append(MaskStatistics(round(float(own.float().mean()), 4), round(confidence, 4)))
    return statistics
