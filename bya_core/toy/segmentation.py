"""Who is where, from the pixels of a finished video alone.

Every character has a reference portrait; its colours are the character's palette. The background's palette
is learned from the border of the picture. Pixels are given to the palette that explains them best; colours
that two people share (hair, eyes, the inside of a mouth) go to whoever is near. No model is asked.
"""

from __future__ import annotations

import numpy as np

from bya_core.errors import InputError
from bya_core.io.color import bins_histogram, histogram, lab, lab_bins, unit_pixels

_FLOOR = 2e-6  # probability of a colour that no palette has seen
_SPREAD = (1.2, 0.8)  # portraits are lit differently from the scene: lightness is blurred more


def foreground(portrait: np.ndarray, tolerance: float = 0.04) -> np.ndarray:
    """[P, Q] bool: what is not the white around the person of a portrait [P, Q, 3].

    White that does not touch the border (eyes, teeth) belongs to the person.
    """
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
        frames: [F, H, W, 3], uint8 or float in 0..1.
        portraits: [N, P, Q, 3] on white.
        rounds: how often neighbourhood and palettes are refined.
        first_masks: [N, H, W] bool, where everybody is in the first frame, if that is known: its pixels then
            teach the palettes too.
        shared_rgb: a colour that everybody has (the inside of a mouth): it tells people from the background
            but not from each other.

    Raises:
        InputError: shapes that do not fit.
    """
    if frames.ndim != 4 or portraits.ndim != 4:
        raise InputError(
            f"frames of shape {frames.shape} and portraits of shape {portraits.shape}",
            "[F, H, W, 3] and [N, P, Q, 3]",
            "add the missing axis",
        )
    colours = lab(frames)
    bins = lab_bins(colours)
    palettes = _first_palettes(colours, portraits, first_masks)
    anybody = np.zeros(bins.shape, dtype=bool)
    if shared_rgb is not None:
        near = np.linalg.norm(unit_pixels(frames) - np.asarray(shared_rgb, dtype=np.float32), axis=-1)
        anybody = near < 0.2
    share = _share(_log_likeness(palettes, bins, anybody))
    for _ in range(rounds):
        learned = [bins_histogram(bins, weight, _SPREAD) for weight in share]
        mixed = [_adapt(old, new) for old, new in zip(palettes, learned, strict=True)]
        share = _share(_log_likeness(mixed, bins, anybody) + _neighbourhood(share))
    return _clean(share)


def _first_palettes(colours: np.ndarray, portraits: np.ndarray, first_masks: np.ndarray | None) -> list[np.ndarray]:
    """Histograms of the N characters and, last, of the background."""
    palettes = []
    for n, portrait in enumerate(portraits):
        palette = histogram(lab(portrait)[foreground(portrait)], spread=_SPREAD)
        if first_masks is not None and first_masks[n].any():
            palette = 0.5 * palette + 0.5 * histogram(colours[0][first_masks[n]], spread=_SPREAD)
        palettes.append(palette)
    height, width = colours.shape[1:3]
    border = np.zeros((height, width), dtype=bool)
    border[: max(1, height // 10)] = True
    border[: height * 6 // 10, : max(1, width // 40)] = True
    border[: height * 6 // 10, -max(1, width // 40) :] = True
    rim = colours[:, border].reshape(-1, 3)
    # hats reach the rim: colours that belong to a character count less there
    bins = lab_bins(rim)
    own = histogram(rim, spread=_SPREAD)
    rival = np.max([palette[bins] for palette in palettes], axis=0)
    weight = own[bins] / (own[bins] + rival + _FLOOR)
    background = histogram(rim, weight, _SPREAD)
    if first_masks is not None:
        background = 0.5 * background + 0.5 * histogram(colours[0][~first_masks.any(axis=0)], spread=_SPREAD)
    return [*palettes, background]


def _adapt(palette: np.ndarray, learned: np.ndarray) -> np.ndarray:
    return 0.5 * palette + 0.5 * learned


def _log_likeness(palettes: list[np.ndarray], bins: np.ndarray, anybody: np.ndarray) -> np.ndarray:
    """[N + 1, F, H, W], smoothed a little over the neighbours; even among people where `anybody`."""
    from scipy.ndimage import gaussian_filter

    raw = np.stack([np.log(palette[bins] + _FLOOR) for palette in palettes]).astype(np.float32)
    raw[:-1, anybody] = raw[:-1, anybody].max(axis=0)
    return gaussian_filter(raw, (0.0, 0.0, 0.7, 0.7))


def _share(score: np.ndarray) -> np.ndarray:
    score = score - score.max(axis=0)
    weight = np.exp(score)
    return weight / weight.sum(axis=0)


def _neighbourhood(share: np.ndarray) -> np.ndarray:
    """Log of who owns the surroundings of each pixel: close by, and at the scale of a head."""
    from scipy.ndimage import gaussian_filter

    size = share.shape[-2]
    near = gaussian_filter(share, (0.0, 0.5, size / 40.0, size / 40.0), truncate=2.5)
    wide = gaussian_filter(share, (0.0, 0.7, size / 9.0, size / 9.0), truncate=2.0)
    return 2.0 * np.log(near + 0.01) + 1.5 * np.log(wide + 0.03)


def _clean(share: np.ndarray) -> np.ndarray:
    """Whole people: specks go to whoever is nearest, holes are filled.

    A piece counts with all that hangs together in space and time, so that somebody whom another one cuts in
    two for a few frames stays whole.
    """
    from scipy.ndimage import binary_fill_holes, distance_transform_edt, label

    winner = share.argmax(axis=0)
    count = share.shape[0] - 1
    masks = np.stack([winner == n for n in range(count)])
    homeless = np.zeros(winner.shape, dtype=bool)
    for n in range(count):
        pieces, total = label(masks[n])
        if total > 1:
            sizes = np.bincount(pieces.ravel())
            sizes[0] = 0
            kept = (sizes >= 0.2 * sizes.max())[pieces] & masks[n]
            homeless |= masks[n] & ~kept
            masks[n] = kept
    for f in np.flatnonzero(homeless.any(axis=(1, 2))).tolist():
        far = [distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf) for mask in masks[:, f]]
        nearest = np.argmin(far, axis=0)
        close = homeless[f] & (np.min(far, axis=0) < share.shape[-2] / 8.0)
        for n in range(count):
            masks[n, f] |= close & (nearest == n)
    for f in range(masks.shape[1]):
        for n in range(count):
            others = np.delete(masks[:, f], n, axis=0).any(axis=0)
            masks[n, f] = binary_fill_holes(masks[n, f]) & ~others
    return masks
