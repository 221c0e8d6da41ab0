"""Teacher masks: what replaces the router's masks in cross-attention while training (paper appendix B).

The masks that are used carry noise, so that the denoiser learns to live with imperfect ones. What the router
is asked to predict stays clean. The released code let one kind of noise slip into those targets as well;
`released_teacher` reproduces that, because its figures depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Generator, Tensor

from bya_core.errors import InputError


@dataclass(frozen=True)
class TeacherConfig:
    """How teacher masks are roughened.

    Args:
        noise: standard deviation of the Gaussian noise added to every value.
        drop_tokens: share of (character, token) values set to zero.
        drop_masks: probability that a layer of a sample gets no mask at all (everything zero).
    """

    noise: float = 0.1
    drop_tokens: float = 0.1
    drop_masks: float = 0.0

    def __post_init__(self) -> None:
        for name in ("drop_tokens", "drop_masks"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"teacher.{name} = {getattr(self, name)}", "a share from 0 to 1", "give one")
        if self.noise < 0:
            raise InputError(f"teacher.noise = {self.noise}", "0 or more", "give a standard deviation")


@dataclass(frozen=True)
class TeacherMasks:
    """What the cross-attention uses and what the router should say, both [R, B, N, T, h, w] in 0..1."""

    used: Tensor
    target: Tensor


def paper_teacher(
    masks: Tensor, layers: int, config: TeacherConfig | None = None, generator: Generator | None = None
) -> TeacherMasks:
    """Frame-wise teacher masks with dropout and Gaussian noise; targets untouched (paper appendix B).

    Args:
        masks: true masks [B, N, T, h, w], soft 0..1; never written to.
        layers: R, face layers; each gets its own noise.
    """
    config = config or TeacherConfig()
    target = repeat(masks.float(), "b n t h w -> r b n t h w", r=layers)
    keep = _uniform(target.shape, target, generator) >= config.drop_tokens
    used = (target * keep + config.noise * _normal(target.shape, target, generator)).clamp(0, 1)
    return TeacherMasks(_drop_layers(used, config.drop_masks, generator), target)


def released_teacher(
    labels: Tensor,
    characters: int,
    layers: int,
    *,
    noise: float = 0.1,
    corrupt: float = 0.1,
    drop_masks: float = 0.2,
    generator: Generator | None = None,
) -> TeacherMasks:
    """Teacher masks of the released training code.

    The labels become one static mask per character (union over time). A tenth of the values is replaced by
    uniform noise, and that lands in the targets as well; Gaussian noise and dropout do not.

    Args:
        labels: [B, T, h, w] whole numbers: -1 background, k = character k.
        characters: N.
        layers: R.
    """
    one_hot = F.one_hot(labels.long() + 1, characters + 1)[..., 1:]
    union = rearrange(one_hot, "b t h w n -> b n t h w").float().amax(dim=2, keepdim=True)
    static = union.expand(-1, -1, labels.shape[1], -1, -1)
    target = repeat(static, "b n t h w -> r b n t h w", r=layers).contiguous()
    chosen = _uniform(target.shape, target, generator) < corrupt
    target = torch.where(chosen, _uniform(target.shape, target, generator), target)
    used = (target + noise * _normal(target.shape, target, generator)).clamp(0, 1)
    return TeacherMasks(_drop_layers(used, drop_masks, generator), target)


def _uniform(shape: torch.Size, like: Tensor, generator: Generator | None) -> Tensor:
    device = generator.device if generator is not None else like.device
    return torch.rand(shape, generator=generator, device=device).to(like.device)


def _normal(shape: torch.Size, like: Tensor, generator: Generator | None) -> Tensor:
    device = generator.device if generator is not None else like.device
    return torch.randn(shape, generator=generator, device=device).to(like.device)


def _drop_layers(used: Tensor, probability: float, generator: Generator | None) -> Tensor:
    """Zeroes whole [N, T, h, w] masks, independently per layer and sample."""
    if probability == 0:
        return used
    keep = _uniform(used.shape[:2], used, generator) >= probability
    return used * keep[:, :, None, None, None, None]
