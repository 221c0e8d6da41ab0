"""Losses of the three stages, in both flavours.

Diffusion: velocity prediction, written as a loss on the clean latents, optionally weighted by the masks ("dynamic mask
loss", paper sec. 3.4). Router: cross-entropy with a background class and two geometric priors (paper eqs. 2-5), or the
six terms of the released training code.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from bya_core.validation import Field, validated

Weight = Annotated[float, Field(ge=0)]


@validated
class PaperRouterWeights:
    """Weights of the router loss terms of the paper (sec. 5.2.1): 1, lambda_st, lambda_l."""

    cross_entropy: Weight = 1.0
    smoothness: Weight = 0.001
    layer_variance: Weight = 8.0


@validated
class OfficialRouterWeights:
    """Weights of the six router loss terms of the released training code."""

    router: Weight = 1.0
    consistency: Weight = 8.0
    temporal: Weight = 0.002
    spatial: Weight = 0.0009
    spatial_dist: Weight = 10.0
    id_dist: Weight = 10.0


def _like(values: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] with as many axes as x, float32."""
    return values.to(x.device, torch.float32).reshape(-1, *[1] * (x.ndim - 1))


def add_noise(clean: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """sqrt(abar) x0 + sqrt(1 - abar) eps: clean, noise [B, ...], alpha_bar [B] -> [B, ...]."""
    a = _like(alpha_bar, clean)
    return (a.sqrt() * clean.float() + (1 - a).sqrt() * noise.float()).to(clean.dtype)


def clean_from_velocity(noisy: Tensor, velocity: Tensor, alpha_bar: Tensor) -> Tensor:
    """x0 = sqrt(abar) x_t - sqrt(1 - abar) v: noisy, velocity [B, ...], alpha_bar [B] -> [B, ...] float32."""
    a = _like(alpha_bar, noisy)
    return a.sqrt() * noisy.float() - (1 - a).sqrt() * velocity.float()


def weighted_mean(loss: Tensor, weights: Tensor | None) -> Tensor:
    """Weighted mean of each sample [B, ...], averaged over samples; the plain mean without weights.

    Normalizing per sample makes the mean over equal micro-batches equal to that of the batch. `weights` broadcast to
    the loss.
    """
    if weights is None:
        return loss.mean()
    weights = weights.to(loss.device, loss.dtype).expand_as(loss)
    axes = tuple(range(1, loss.ndim))
    return ((weights * loss).sum(axes) / weights.sum(axes).clamp(min=1e-8)).mean()


def x0_loss(velocity: Tensor, noisy: Tensor, clean: Tensor, alpha_bar: Tensor, weights: Tensor | None = None) -> Tensor:
    """Diffusion loss (paper eq. 1) as released: squared error of the clean latents divided by 1 - abar.

    As x0 is linear in v, this equals the squared error of the velocity at every noise level, including the end of a
    zero-terminal-SNR schedule (abar = 0).

    Args:
        velocity: model output [B, T, C, H, W].
        noisy: x_t [B, T, C, H, W].
        clean: x_0 [B, T, C, H, W].
        alpha_bar: cumulative alphas at each sample's timestep [B].
        weights: broadcastable to the latents, e.g. [B, T, 1, H, W] from `mask_weights`.
    """
    error = clean_from_velocity(noisy, velocity, alpha_bar) - clean.float()
    return weighted_mean(error.square() / (1 - _like(alpha_bar, noisy)).clamp(min=1e-8), weights)


def mask_weights(token_masks: Tensor, patch: int, background: float = 0.0) -> Tensor:
    """Loss weights from token masks: 1 inside a character, `background` elsewhere.

    Args:
        token_masks: [B, N, T, h, w] in 0..1.
        patch: patch size of the transformer.
        background: weight of the background; 0 as in the released code.

    Returns:
        [B, T, 1, H, W].
    """
    union = token_masks.float().amax(dim=1).clamp(0, 1)
    cells = union.repeat_interleave(patch, dim=-2).repeat_interleave(patch, dim=-1)
    return rearrange(background + (1 - background) * cells, "b t h w -> b t 1 h w")


def with_background(masks: Tensor) -> Tensor:
    """Character masks [B, N, T, h, w] in 0..1 -> class probabilities [B, N + 1, T, h, w], background last.

    Overlapping masks that add up to more than 1 are normalized.
    """
    masks = masks.float().clamp(0, 1)
    total = masks.sum(dim=1, keepdim=True)
    return torch.cat([masks / total.clamp(min=1), (1 - total).clamp(min=0)], dim=1)


def smoothness(masks: Tensor) -> Tensor:
    """L1 of the spatio-temporal gradient (paper eq. 3): mean |difference| along t, h and w, summed.

    Args:
        masks: [..., T, h, w]; axes of length 1 contribute nothing.
    """
    axes = [masks.diff(dim=d).abs().mean() for d in (-3, -2, -1) if masks.shape[d] > 1]
    return torch.stack(axes).sum() if axes else masks.sum() * 0


def layer_variance(masks: Tensor) -> Tensor:
    """Variance over the layers of masks [R, ...] (paper eq. 4), mean over the other axes; 0 for a single layer."""
    return masks.var(dim=0).mean() if masks.shape[0] > 1 else masks.sum() * 0


def router_loss_paper(
    router_logits: Tensor, target_masks: Tensor, weights: PaperRouterWeights | None = None
) -> dict[str, Tensor]:
    """Router loss of the paper (eqs. 2-5): cross-entropy with background + smoothness + layer variance.

    Every term is a mean over positions, independent of the grid size. The paper prints sums, so the ratios of the terms
    differ: relative to the cross-entropy, with R layers and N characters, smoothness has about 1 / N of its printed
    weight, and layer variance R^2 / (N (R - 1)) times its printed one (eq. 4 does not sum over layers, and the variance
    is unbiased): 0.5 and 11 for 21 layers and two characters. The released code uses means and the weight 8 too.

    For a router without background class (a sigmoid per character) the cross-entropy is binary, per character.

    Args:
        router_logits: [R, B, N + 1, T, h, w], background last, or [R, B, N, T, h, w].
        target_masks: [B, N, T, h, w], soft in 0..1 (fraction of each token covered by the character).
        weights: weights of the terms.

    Returns:
        Scalars "cross_entropy", "smoothness", "layer_variance" (unweighted) and "total" (weighted sum).
    """
    weights, logits = weights or PaperRouterWeights(), router_logits.float()
    if logits.shape[2] == target_masks.shape[1]:
        masks = logits.sigmoid()
        target = target_masks.float().clamp(0, 1).expand_as(logits)
        entropy = F.binary_cross_entropy_with_logits(logits, target)
    else:
        log_p = logits.log_softmax(dim=2)
        masks = log_p[:, :, :-1].exp()
        entropy = -(with_background(target_masks) * log_p).sum(dim=2).mean()
    terms = {
        "cross_entropy": entropy,
        "smoothness": smoothness(masks),
        "layer_variance": layer_variance(masks),
    }
    return _with_total(terms, weights)


def router_loss_official(
    masks: Tensor, targets: Tensor, weights: OfficialRouterWeights | None = None
) -> dict[str, Tensor]:
    """The six router loss terms of the released training code.

    Its geometric terms view the flat tokens as (T, w, h) instead of (T, h, w), without a transpose; this is reproduced.
    All terms are means over layers and samples.

    Args:
        masks: router predictions after the sigmoid [R, B, N, T, h, w].
        targets: [R, B, N, T, h, w] or [B, N, T, h, w].
        weights: weights of the terms.

    Returns:
        Scalars "router", "consistency", "temporal", "spatial", "spatial_dist", "id_dist" and "total".
    """
    weights = weights or OfficialRouterWeights()
    masks = masks.float()
    h, w = masks.shape[-2:]
    p = masks.clamp(1e-6, 1 - 1e-6)
    y = targets.float().expand_as(masks)
    view = rearrange(rearrange(masks, "r b n t h w -> r b n t (h w)"), "r b n t (a c) -> r b n t a c", a=w, c=h)
    first, last = _half_coverage(view)
    terms = {
        "router": -(y * p.log() + (1 - y) * (1 - p).log()).mean(),
        "consistency": layer_variance(masks),
        "temporal": _mean_norm(view.diff(dim=-3)),
        "spatial": _mean_norm(view.diff(dim=-2)) + _mean_norm(view.diff(dim=-1)),
        "spatial_dist": (first * last).mean(),
        "id_dist": (_pairwise_overlap(first) + _pairwise_overlap(last)) / 2,
    }
    return _with_total(terms, weights)


def _mean_norm(x: Tensor) -> Tensor:
    """Mean Euclidean norm over layers and samples of [R, B, ...]."""
    return torch.linalg.vector_norm(x.flatten(2), dim=-1).mean()


def _half_coverage(view: Tensor, threshold: float = 0.01) -> tuple[Tensor, Tensor]:
    """Mean mask value in the first and the last half of axis a: [R, B, N, T, a, c] -> two [R, B, N, T].

    Values below the threshold count as zero; the middle line (two lines of an even axis) belongs to neither half.
    """
    size = max(1, (view.shape[-2] - 1) // 2)
    kept = torch.where(view >= threshold, view, 0.0)
    first, last = kept[..., :size, :], kept[..., view.shape[-2] - size :, :]
    return reduce(first, "r b n t a c -> r b n t", "mean"), reduce(last, "r b n t a c -> r b n t", "mean")


def _pairwise_overlap(coverage: Tensor) -> Tensor:
    """Mean product over all pairs of characters: [R, B, N, T] -> scalar; 0 for one character."""
    n = coverage.shape[2]
    if n < 2:
        return coverage.sum() * 0
    i, j = torch.triu_indices(n, n, offset=1, device=coverage.device)
    return (coverage[:, :, i] * coverage[:, :, j]).mean()


def _with_total(terms: dict[str, Tensor], weights: PaperRouterWeights | OfficialRouterWeights) -> dict[str, Tensor]:
    total = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
    return {**terms, "total": total}
