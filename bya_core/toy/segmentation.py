"""Segmentation of puppets by color.

The palette of each character is the color histogram of its reference image; that of the background is learned from the
border of the frames. Pixels are assigned to the most likely palette, with a neighborhood prior for colors that
characters share (hair, eyes, the inside of the mouth). No network is involved.
"""

from __future__ import annotations

import numpy as np

from bya_core.errors import InputError
from bya_core.io.color import bins_histogram, histogram, lab, lab_bins, unit_pixels

_FLOOR = 2e-6  # probability of a color that is in no palette
_SPREAD = (1.2, 0.8)  # lighting differs between portrait and scene: lightness is blurred more


def foreground(portrait: np.ndarray, tolerance: float = 0.04) -> np.ndarray:
    """Foreground mask, bool [P, Q], of a portrait [P, Q, 3] on white; enclosed white (eyes, teeth) is foreground."""
    from scipy.ndimage import binary_fill_holes

    body = unit_pixels(portrait).min(axis=-1) < 1.0 - tolerance
    return binary_fill_holes(body)


def segment_characters(
    frames: np.ndarray,
    portraits: np.ndarray,
    rounds: int = 4,
    first_masks: np.ndarray | None = None,
    shared_rgb: tuple[float, float, float] | None = None,
) -> np.ndarray:
    """Visible mask of each character, bool [N, F, H, W], at most one character per pixel.

    Args:
        frames: [F, H, W, 3], uint8 or float in [0, 1].
        portraits: Reference images [N, P, Q, 3] on white.
        rounds: Number of refinements of neighborhood prior and palettes.
        first_masks: Known masks of the first frame, bool [N, H, W], from which the palettes are learned as well.
        shared_rgb: A color that all characters have (the inside of the mouth): it separates characters from the
            background, but not from each other.

    Raises:
        InputError: If the shapes do not fit.
    """
    if frames.ndim != 4 or portraits.ndim != 4:
        raise InputError(
            f"frames of shape {frames.shape} and portraits of shape {portraits.shape}",
            "[F, H, W, 3] and [N, P, Q, 3]",
            "add the missing axis",
        )
    colors = lab(frames)
    bins = lab_bins(colors)
    palettes = _first_palettes(colors, portraits, first_masks)
    shared = np.zeros(bins.shape, dtype=bool)
    if shared_rgb is not None:
        near = np.linalg.norm(unit_pixels(frames) - np.asarray(shared_rgb, dtype=np.float32), axis=-1)
        shared = near < 0.2
    share = _share(_log_likeness(palettes, bins, shared))
    for _ in range(rounds):
        learned = [bins_histogram(bins, weight, _SPREAD) for weight in share]
        mixed = [_adapt(old, new) for old, new in zip(palettes, learned, strict=True)]
        share = _share(_log_likeness(mixed, bins, shared) + _neighbourhood(share))
    return _clean(share)


def _first_palettes(colors: np.ndarray, portraits: np.ndarray, first_masks: np.ndarray | None) -> list[np.ndarray]:
    """Histograms of the N characters and of the background."""
    palettes = []
    for n, portrait in enumerate(portraits):
        palette = histogram(lab(portrait)[foreground(portrait)], spread=_SPREAD)
        if first_masks is not None and first_masks[n].any():
            palette = 0.5 * palette + 0.5 * histogram(colors[0][first_masks[n]], spread=_SPREAD)
        palettes.append(palette)
    height, width = colors.shape[1:3]
    border = np.zeros((height, width), dtype=bool)
    border[: max(1, height // 10)] = True
    border[: height * 6 // 10, : max(1, width // 40)] = True
    border[: height * 6 // 10, -max(1, width // 40) :] = True
    border_colors = colors[:, border].reshape(-1, 3)
    # hats reach the border: colors of characters count less there
    bins = lab_bins(border_colors)
    own = histogram(border_colors, spread=_SPREAD)
    rival = np.max([palette[bins] for palette in palettes], axis=0)
    weight = own[bins] / (own[bins] + rival + _FLOOR)
    background = histogram(border_colors, weight, _SPREAD)
    if first_masks is not None:
        background = 0.5 * background + 0.5 * histogram(colors[0][~first_masks.any(axis=0)], spread=_SPREAD)
    return [*palettes, background]


def _adapt(palette: np.ndarray, learned: np.ndarray) -> np.ndarray:
    return 0.5 * palette + 0.5 * learned


def _log_likeness(palettes: list[np.ndarray], bins: np.ndarray, shared: np.ndarray) -> np.ndarray:
    """Smoothed log likelihoods [N + 1, F, H, W]; equal for all characters where `shared` is set."""
    from scipy.ndimage import gaussian_filter

    raw = np.stack([np.log(palette[bins] + _FLOOR) for palette in palettes]).astype(np.float32)
    raw[:-1, shared] = raw[:-1, shared].max(axis=0)
    return gaussian_filter(raw, (0.0, 0.0, 0.7, 0.7))


def _share(score: np.ndarray) -> np.ndarray:
    score = score - score.max(axis=0)
    weight = np.exp(score)
    return weight / weight.sum(axis=0)


def _neighbourhood(share: np.ndarray) -> np.ndarray:
    """Log prior of each pixel from its neighborhood, at two scales: nearby and the size of a head."""
    from scipy.ndimage import gaussian_filter

    size = share.shape[-2]
    near = gaussian_filter(share, (0.0, 0.5, size / 40.0, size / 40.0), truncate=2.5)
    wide = gaussian_filter(share, (0.0, 0.7, size / 9.0, size / 9.0), truncate=2.0)
    return 2.0 * np.log(near + 0.01) + 1.5 * np.log(wide + 0.03)


def _clean(share: np.ndarray) -> np.ndarray:
    """Binary masks: small fragments go to the nearest character and holes are filled.

    Components are connected in space and time, so that a character cut in two by another for a few frames stays whole.
    """
    from scipy.ndimage import binary_fill_holes, distance_transform_edt, label

    owner = share.argmax(axis=0)
    count = share.shape[0] - 1
    masks = np.stack([owner == n for n in range(count)])
    fragments = np.zeros(owner.shape, dtype=bool)
    for n in range(count):
        components, total = label(masks[n])
        if total > 1:
            sizes = np.bincount(components.ravel())
            sizes[0] = 0
            kept = (sizes >= 0.2 * sizes.max())[components] & masks[n]
            fragments |= masks[n] & ~kept
            masks[n] = kept
    for f in np.flatnonzero(fragments.any(axis=(1, 2))).tolist():
        far = [distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf) for mask in masks[:, f]]
        nearest = np.argmin(far, axis=0)
        close = fragments[f] & (np.min(far, axis=0) < share.shape[-2] / 8.0)
        for n in range(count):
            masks[n, f] |= close & (nearest == n)
    for f in range(masks.shape[1]):
        for n in range(count):
            others = np.delete(masks[:, f], n, axis=0).any(axis=0)
            masks[n, f] = binary_fill_holes(masks[n, f]) & ~others
    return masks
