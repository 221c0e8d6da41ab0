"""Mask refinement (paper sec. 3.3.3): removes unreliable predictions and makes masks consistent in space and time.

The paper describes this step as "discarding low-confidence predictions and applying semi-supervised clustering for
temporal-spatial consistency"; the released code does not contain it. Here:

1. Tokens lose their label if the confidence is low, if neither of the two nearest frames agrees, if too few neighbors
   agree, or if they lie in a small region of their character.
2. Label propagation with clamped seeds (Zhu and Ghahramani 2002; with a weight on the initial labels as in label
   spreading, Zhou et al. 2004) on the T x h x w grid: reliable tokens keep their label, all others take the weighted
   mean of their neighbors in space and time. The background is one of the classes.
3. Temporal smoothing, one character per token, largest regions per frame, hole filling, dilation or erosion.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from bya_core.config import RefineConfig
from bya_core.errors import InputError
from bya_core.routing.result import Routing

ITERATIONS = 6  # of label propagation; each extends the range by one token
INITIAL_WEIGHT = 0.2  # weight of the router's prediction for tokens without a label
MIN_AGREEING = 3  # tokens of the 3 x 3 neighborhood (including the center) that must have the same label
TIE = 1e-6  # smaller differences between two classes are ties and become background, independent of their order
CONNECTIVITY = np.ones((3, 3), dtype=bool)  # 8-connected regions
KERNEL = np.array([0.25, 0.5, 0.25], dtype=np.float32)  # weights of neighbors along each axis


def refine(routing: Routing, config: RefineConfig) -> Routing:
    """Routing with refined masks, which act over the whole run. State, calls and matrix are unchanged.

    `confidence` is the mean router prediction over the tokens of each refined mask.
    """
    masks = refine_masks(routing.masks, config)
    own = (masks > 0.5).float()
    count = own.sum((-3, -2, -1))
    confidence = (routing.masks.float() * own).sum((-3, -2, -1)) / count.clamp(min=1)
    empty = tuple(
        f"The refined mask of character {n + 1} is empty: its face and speech will have no effect."
        for n in range(masks.shape[0])
        if count[n] == 0
    )
    return replace(routing.with_masks(masks), confidence=confidence, notices=(*routing.notices, *empty))


def refine_masks(masks: Tensor, config: RefineConfig) -> Tensor:
    """Refine masks; each step is optional, and without any the masks are returned unchanged.

    The result does not depend on the order of the characters. With `config.exclusive` it is binary; otherwise each
    character is refined separately and masks may overlap.

    Args:
        masks: [N, T, h, w] in 0..1; the background has the remaining probability.
        config: selects the steps.

    Returns:
        [N, T, h, w] in 0..1, same dtype and device.

    Raises:
        InputError: another number of axes.
    """
    if masks.ndim != 4 or 0 in masks.shape:
        problem = f"masks of shape {list(masks.shape)}"
        raise InputError(problem, "[characters, latent frames, rows, columns]", "provide one mask per character")
    array = np.clip(np.nan_to_num(masks.detach().float().cpu().numpy()), 0.0, 1.0)
    if config.exclusive:
        refined = _refine(array, config)
    else:
        refined = np.concatenate([_refine(mask[None], config) for mask in array])
    return torch.from_numpy(np.ascontiguousarray(refined)).to(masks)


def _refine(masks: np.ndarray, config: RefineConfig) -> np.ndarray:
    """[N, T, h, w] float32 -> same; characters and background compete."""
    if config.propagate or config.threshold > 0:
        masks = _relabel(masks, config)
    if config.smoothing > 0:
        masks = ndimage.gaussian_filter1d(masks, config.smoothing, axis=1, mode="nearest")
    if config.exclusive:
        masks = _labels(_probabilities(masks))[:-1].astype(np.float32)
    if config.max_regions > 0:
        kept = _largest_regions(masks > 0.5, config.max_regions)
        masks = np.where((masks > 0.5) & ~kept, np.float32(0.0), masks)
    if config.fill_holes:
        masks = np.where(_holes(masks > 0.5), np.float32(1.0), masks)
    if config.grow:
        masks = _dilate(masks, config.grow, config.exclusive)
    return masks


def _probabilities(masks: np.ndarray) -> np.ndarray:
    """[N, T, h, w] -> [N + 1, T, h, w] that sum to 1, background last."""
    total = np.sort(masks, axis=0).sum(axis=0)  # sorted, so that rounding is independent of the order
    background = np.maximum(1.0 - total, 0.0)
    return np.concatenate([masks, background[None]]) / np.maximum(total, 1.0)


def _labels(probabilities: np.ndarray) -> np.ndarray:
    """[N + 1, T, h, w] -> one-hot bool of the same shape; ties become background."""
    second, best = np.partition(probabilities, -2, axis=0)[-2:]
    one_hot = (probabilities == best) & (best - second > TIE)
    one_hot[-1] = ~one_hot[:-1].any(axis=0)
    return one_hot


def _relabel(masks: np.ndarray, config: RefineConfig) -> np.ndarray:
    """Remove unreliable labels, then propagate the others (or set the removed ones to background)."""
    probabilities = _probabilities(masks)
    one_hot = _labels(probabilities)
    seeds = probabilities.max(axis=0) >= config.threshold
    if not config.propagate:
        return masks * seeds
    seeds &= _temporally_consistent(one_hot) & _spatially_consistent(one_hot)
    if config.max_regions > 0:
        seeds &= ~(one_hot[:-1] & ~_largest_regions(one_hot[:-1], config.max_regions)).any(axis=0)
    return _propagate(probabilities, one_hot, seeds)[:-1]


def _temporally_consistent(one_hot: np.ndarray) -> np.ndarray:
    """[T, h, w]: tokens with the same label in one of the two nearest frames; all if T = 1."""
    if one_hot.shape[1] == 1:
        return np.ones(one_hot.shape[1:], dtype=bool)
    same = (one_hot[:, 1:] & one_hot[:, :-1]).any(axis=0)
    consistent = np.zeros(one_hot.shape[1:], dtype=bool)
    consistent[1:] |= same
    consistent[:-1] |= same
    if one_hot.shape[1] > 2:  # the first and last frame have two neighbors on one side
        for end, inner in ((0, 2), (-1, -3)):
            consistent[end] |= (one_hot[:, end] & one_hot[:, inner]).any(axis=0)
    return consistent


def _spatially_consistent(one_hot: np.ndarray) -> np.ndarray:
    """[T, h, w]: tokens that share their label with enough tokens of their neighborhood."""
    ones = np.ones(3, dtype=np.uint8)
    around = one_hot.view(np.uint8)
    for axis in (-2, -1):
        around = ndimage.correlate1d(around, ones, axis=axis, mode="nearest")
    return np.any(one_hot & (around >= MIN_AGREEING), axis=0)


def _propagate(probabilities: np.ndarray, one_hot: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Soft labels [N + 1, T, h, w]: seeds are clamped, others are averaged from their neighbors and initial value."""
    labels = np.where(seeds, one_hot, probabilities).astype(np.float32)
    if seeds.all():
        return labels
    fixed = np.where(seeds, labels, INITIAL_WEIGHT * probabilities)
    weight = np.where(seeds, 0.0, 1.0 - INITIAL_WEIGHT).astype(np.float32)
    for _ in range(ITERATIONS):
        mean = ndimage.correlate1d(labels, KERNEL, axis=-3, mode="mirror")  # the ends count their neighbor twice
        for axis in (-2, -1):
            mean = ndimage.correlate1d(mean, KERNEL, axis=axis, mode="nearest")
        labels = fixed + weight * mean
    return labels


def _largest_regions(own: np.ndarray, count: int) -> np.ndarray:
    """bool [N, T, h, w]: the `count` largest regions per character and frame; persistent tokens have more weight."""
    persistence = ndimage.gaussian_filter1d(own.astype(np.float32), 1.0, axis=1, mode="nearest")
    kept = own.copy()
    for n, t in np.argwhere(own.any(axis=(-2, -1))):
        pieces, total = ndimage.label(own[n, t], CONNECTIVITY)
        if total > count:
            size = np.bincount(pieces.ravel(), persistence[n, t].ravel())[1:]
            largest = 1 + np.argsort(-size, kind="stable")[:count]
            kept[n, t] = np.isin(pieces, largest)
    return kept


def _holes(own: np.ndarray) -> np.ndarray:
    """bool [N, T, h, w]: background tokens enclosed by exactly one character in a frame."""
    inside = np.zeros_like(own)
    background: np.ndarray = ~np.asarray(own.any(axis=0))
    for n, t in np.argwhere(own.any(axis=(-2, -1))):
        inside[n, t] = ndimage.binary_fill_holes(own[n, t]) & background[t]
    return inside & (inside.sum(axis=0) == 1)


def _dilate(masks: np.ndarray, tokens: int, exclusive: bool) -> np.ndarray:
    """Dilate (tokens > 0) or erode masks; exclusive masks are dilated over background tokens without overlap."""
    cross = ndimage.generate_binary_structure(2, 1)[None, None]
    for _ in range(abs(tokens)):
        if tokens < 0:
            masks = ndimage.minimum_filter(masks, footprint=cross, mode="nearest")
            continue
        wider = ndimage.maximum_filter(masks, footprint=cross, mode="nearest")
        if exclusive:
            free = (wider > 0) & (masks.max(axis=0) == 0)
            wider = np.where(free & (free.sum(axis=0) == 1), wider, masks)
        masks = wider
    return masks
