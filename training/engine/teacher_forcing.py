"""Teacher masks, which replace the router's masks in cross-attention during training (paper appendix B).

The masks that act are augmented with dropout and noise, so that the denoiser becomes robust to imperfect masks; the
targets of the router stay clean. In the released code one kind of noise also reaches the targets;
`released_teacher_masks` reproduces that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Generator, Tensor

from bya_core.validation import Field, validated


@validated
class TeacherConfig:
    """Augmentation of the teacher masks.

    Args:
        noise_std: standard deviation of the Gaussian noise added to every value.
        token_dropout: fraction of the (character, token) values that are set to zero.
        layer_dropout: probability that a layer of a sample gets all-zero masks.
    """

    noise_std: Annotated[float, Field(ge=0)] = 0.1
    token_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    layer_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0


class TeacherMasks(NamedTuple):
    """Masks that act in cross-attention and targets of the router, both [R, B, N, T, h, w] in 0..1."""

    forced: Tensor
    target: Tensor


def paper_teacher_masks(
    masks: Tensor, layers: int, config: TeacherConfig | None = None, generator: Generator | None = None
) -> TeacherMasks:
    """Per-frame teacher masks with dropout and Gaussian noise; targets stay clean (paper appendix B).

    Args:
        masks: ground-truth masks [B, N, T, h, w], soft in 0..1; not modified.
        layers: R, number of face attention layers; each gets independent noise.
        config: strength of the augmentation.
        generator: random generator.
    """
    config = config or TeacherConfig()
    target = repeat(masks.float(), "b n t h w -> r b n t h w", r=layers)
    keep = _random(torch.rand, target.shape, target, generator) >= config.token_dropout
    forced = (target * keep + config.noise_std * _random(torch.randn, target.shape, target, generator)).clamp(0, 1)
    return TeacherMasks(_drop_layers(forced, config.layer_dropout, generator), target)


def released_teacher_masks(
    labels: Tensor,
    characters: int,
    layers: int,
    *,
    noise_std: float = 0.1,
    corruption: float = 0.1,
    layer_dropout: float = 0.2,
    generator: Generator | None = None,
) -> TeacherMasks:
    """Teacher masks of the released training code.

    The labels become one static mask per character (union over time). A fraction of the values is replaced by uniform
    noise, in the targets as well; Gaussian noise and layer dropout do not reach the targets.

    Args:
        labels: integers [B, T, h, w]: -1 = background, k = character k.
        characters: N.
        layers: R.
        noise_std: standard deviation of the Gaussian noise.
        corruption: fraction of the values replaced by uniform noise.
        layer_dropout: probability that a layer of a sample gets all-zero masks.
        generator: random generator.
    """
    one_hot = F.one_hot(labels.long() + 1, characters + 1)[..., 1:]
    union = rearrange(one_hot, "b t h w n -> b n t h w").float().amax(dim=2, keepdim=True)
    static = union.expand(-1, -1, labels.shape[1], -1, -1)
    target = repeat(static, "b n t h w -> r b n t h w", r=layers).contiguous()
    corrupted = _random(torch.rand, target.shape, target, generator) < corruption
    target = torch.where(corrupted, _random(torch.rand, target.shape, target, generator), target)
    forced = (target + noise_std * _random(torch.randn, target.shape, target, generator)).clamp(0, 1)
    return TeacherMasks(_drop_layers(forced, layer_dropout, generator), target)


def _random(function: Callable[..., Tensor], shape: torch.Size, like: Tensor, generator: Generator | None) -> Tensor:
    """`torch.rand` or `torch.randn` on the device of the generator, moved to that of `like`."""
    device = generator.device if generator is not None else like.device
    return function(shape, generator=generator, device=device).to(like.device)


def _drop_layers(forced: Tensor, probability: float, generator: Generator | None) -> Tensor:
    """Set whole [N, T, h, w] masks to zero, independently per layer and sample."""
    if probability == 0:
        return forced
    keep = _random(torch.rand, forced.shape[:2], forced, generator) >= probability
    return forced * keep[:, :, None, None, None, None]
