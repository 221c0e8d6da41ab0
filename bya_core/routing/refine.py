"""Cleaning masks before they act (paper sec. 3.3.3): doubtful and contradicted tokens get their label from the others.

"Discarding low-confidence predictions and applying semi-supervised clustering for temporal-spatial consistency" is all
the paper says, and the released code has neither. Here:

1. A token loses its label where the router is unsure, where neither of the two nearest frames says the same,
   where its surroundings disagree, or where it lies in a region of its character that is not kept.
2. Label propagation with clamped seeds (Zhu and Ghahramani 2002; own claims keep a weight as in label spreading, Zhou
   et al. 2004) on the T x h x w grid: the sure tokens keep their label, all others take the weighted mean of their
   neighbours in space and time. The background is a class like every character.
3. Smoothing over time, one owner per token, one region per character and frame, holes, growing.
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

ROUNDS = 6  # of propagation; each reaches one token further
OWN_CLAIM = 0.2  # weight of what the router said, in tokens that lost their label
AGREEING = 3  # of the 9 tokens around and at a token, those that must carry its label (itself counts)
TIE = 1e-6  # two claims nearer than this: nobody's token, so that the order of characters cannot decide
PLANE = np.ones((3, 3), dtype=bool)  # regions hang together over corners too
NEAR = np.array([0.25, 0.5, 0.25], dtype=np.float32)  # weights of the neighbours along each axis


def refine(routing: Routing, config: RefineConfig) -> Routing:
    """The same routing with cleaned masks, forced over the whole run. State, calls and matrix stay.

    Its confidence says how sure the router was of the tokens that each character has now.
    """
    masks = refine_masks(routing.masks, config)
    own = (masks > 0.5).float()
    count = own.sum((-3, -2, -1))
    sure = (routing.masks.float() * own).sum((-3, -2, -1)) / count.clamp(min=1)
    lost = tuple(
        f"The refined mask of character {n + 1} is empty: neither its face nor its voice will act."
        for n in range(masks.shape[0])
        if count[n] == 0
    )
    return replace(routing.with_masks(masks), confidence=sure, notices=(*routing.notices, *lost))


def refine_masks(masks: Tensor, config: RefineConfig) -> Tensor:
    """Cleaned masks; each step of `config` can be left out, and without any the masks come back as they are.

    The result does not depend on the order of the characters. With `config.exclusive` it consists of zeros and ones;
    without, every character is cleaned for itself and masks may overlap.

    Args:
        masks: [N, T, h, w] in 0..1; what is missing to a sum of 1 is the claim of the background.
        config: which steps.

    Returns:
        [N, T, h, w] in 0..1, of the same type, on the same device.

    Raises:
        InputError: masks of another number of axes.
    """
    if masks.ndim != 4 or 0 in masks.shape:
        came = f"masks of shape {tuple(masks.shape)}"
        raise InputError(came, "[characters, latent frames, rows, columns]", "give one mask for each character")
    given = np.clip(np.nan_to_num(masks.detach().float().cpu().numpy()), 0.0, 1.0)
    if config.exclusive:
        made = _refined(given, config)
    else:
        made = np.concatenate([_refined(one[None], config) for one in given])
    return torch.from_numpy(np.ascontiguousarray(made)).to(masks)


def _refined(masks: np.ndarray, config: RefineConfig) -> np.ndarray:
    """[N, T, h, w] float32 -> same; characters compete with each other and with the background."""
    if config.propagate or config.threshold > 0:
        masks = _relabelled(masks, config)
    if config.smoothing > 0:
        masks = ndimage.gaussian_filter1d(masks, config.smoothing, axis=1, mode="nearest")
    if config.exclusive:
        masks = _owners(_claims(masks))[:-1].astype(np.float32)
    if config.max_regions > 0:
        kept = _kept_regions(masks > 0.5, config.max_regions)
        masks = np.where((masks > 0.5) & ~kept, np.float32(0.0), masks)
    if config.fill_holes:
        masks = np.where(_holes(masks > 0.5), np.float32(1.0), masks)
    if config.grow:
        masks = _grown(masks, config.grow, config.exclusive)
    return masks


def _claims(masks: np.ndarray) -> np.ndarray:
    """[N, T, h, w] -> [N + 1, T, h, w] of sum 1, the background last."""
    total = np.sort(masks, axis=0).sum(axis=0)  # sorted: rounding does not depend on the order of characters
    background = np.maximum(1.0 - total, 0.0)
    return np.concatenate([masks, background[None]]) / np.maximum(total, 1.0)


def _owners(claims: np.ndarray) -> np.ndarray:
    """[N + 1, T, h, w] -> bool of the same shape, exactly one owner each; the background has what is tied."""
    second, best = np.partition(claims, -2, axis=0)[-2:]
    owners = (claims == best) & (best - second > TIE)
    owners[-1] = ~owners[:-1].any(axis=0)
    return owners


def _relabelled(masks: np.ndarray, config: RefineConfig) -> np.ndarray:
    """Drop labels that are doubtful, then let the others spread (or leave the dropped ones to nobody)."""
    claims = _claims(masks)
    owners = _owners(claims)
    seeds = claims.max(axis=0) >= config.threshold
    if not config.propagate:
        return masks * seeds
    seeds &= _steady(owners) & _surrounded(owners)
    if config.max_regions > 0:
        seeds &= ~(owners[:-1] & ~_kept_regions(owners[:-1], config.max_regions)).any(axis=0)
    return _spread(claims, owners, seeds)[:-1]


def _steady(owners: np.ndarray) -> np.ndarray:
    """[T, h, w]: tokens whose label stands in one of the two nearest frames as well (alone in time: all)."""
    if owners.shape[1] == 1:
        return np.ones(owners.shape[1:], dtype=bool)
    same = (owners[:, 1:] & owners[:, :-1]).any(axis=0)
    steady = np.zeros(owners.shape[1:], dtype=bool)
    steady[1:] |= same
    steady[:-1] |= same
    if owners.shape[1] > 2:  # the first and the last frame have a neighbour on one side only
        for end, inner in ((0, 2), (-1, -3)):
            steady[end] |= (owners[:, end] & owners[:, inner]).any(axis=0)
    return steady


def _surrounded(owners: np.ndarray) -> np.ndarray:
    """[T, h, w]: tokens whose label has enough of the tokens around them."""
    ones = np.ones(3, dtype=np.uint8)
    around = owners.view(np.uint8)
    for axis in (-2, -1):
        around = ndimage.correlate1d(around, ones, axis=axis, mode="nearest")
    return np.any(owners & (around >= AGREEING), axis=0)


def _spread(claims: np.ndarray, owners: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Soft labels [N + 1, T, h, w]: seeds as they are, the others by their neighbours and a little by themselves."""
    labels = np.where(seeds, owners, claims).astype(np.float32)
    if seeds.all():
        return labels
    fixed, own = np.where(seeds, labels, OWN_CLAIM * claims), np.where(seeds, 0.0, 1.0 - OWN_CLAIM).astype(np.float32)
    for _ in range(ROUNDS):
        mean = ndimage.correlate1d(labels, NEAR, axis=-3, mode="mirror")  # at the ends the one neighbour counts twice
        for axis in (-2, -1):
            mean = ndimage.correlate1d(mean, NEAR, axis=axis, mode="nearest")
        labels = fixed + own * mean
    return labels


def _kept_regions(own: np.ndarray, count: int) -> np.ndarray:
    """bool [N, T, h, w]: the `count` largest regions per character and frame; what stays over time counts more."""
    lasting = ndimage.gaussian_filter1d(own.astype(np.float32), 1.0, axis=1, mode="nearest")
    kept = own.copy()
    for n, t in np.argwhere(own.any(axis=(-2, -1))):
        pieces, total = ndimage.label(own[n, t], PLANE)
        if total > count:
            size = np.bincount(pieces.ravel(), lasting[n, t].ravel())[1:]
            largest = 1 + np.argsort(-size, kind="stable")[:count]
            kept[n, t] = np.isin(pieces, largest)
    return kept


def _holes(own: np.ndarray) -> np.ndarray:
    """bool [N, T, h, w]: tokens of nobody that one character encloses in a frame."""
    inside = np.zeros_like(own)
    nobody: np.ndarray = ~np.asarray(own.any(axis=0))
    for n, t in np.argwhere(own.any(axis=(-2, -1))):
        inside[n, t] = ndimage.binary_fill_holes(own[n, t]) & nobody[t]
    return inside & (inside.sum(axis=0) == 1)


def _grown(masks: np.ndarray, tokens: int, exclusive: bool) -> np.ndarray:
    """Grown (or shrunk) by so many tokens; exclusive masks grow over the background only, and never into each other."""
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
