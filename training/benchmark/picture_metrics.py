"""Image quality of puppets, measured from the pixels of single frames.

The looks of all characters are known, so a drawing of each character is fitted to the frame (`puppet_fit`) and compared
with it:

- outline: IoU of the pixels that resemble the character rather than the background with the fitted silhouette. Swollen,
  melted and missing heads score low, because the radius of the fit is limited;
- eyes: normalized correlation of the frame with each eye of the drawing, over a few gazes and lids, and white areas of
  the face where no eye belongs;
- likeness: similarity of the colors to the portrait (Bhattacharyya coefficient of Lab histograms);
- sharpness: magnitude of the gradients inside the character relative to that of the drawing.

Only visible parts count: where drawings overlap, a pixel belongs to the character that explains it best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_dilation, distance_transform_edt, gaussian_filter, label

from bya_core.io.color import color_descriptor, histogram_similarity
from bya_core.toy.segmentation import foreground
from training.benchmark.puppet_fit import MAX_ERROR, Array, Fit, draw_poses
from training.puppets.looks import Look
from training.puppets.world import PuppetClip

MIN_VISIBLE = 0.75
"""Visible fraction of the head below which a face is not evaluated."""
MIN_EYE_CORRELATION, MIN_EYE_CONTRAST = 0.70, 0.40
"""An eye is intact above this correlation; its contrast is relative to the drawing."""
MARGIN = 0.6
"""Distance from the silhouette, in head radii, up to which pixels may be attributed to the character."""
MIN_EXTRA_AREA = 0.40
"""Area of a misplaced white region, relative to an eye, that counts as an additional eye."""
MIN_CONTRAST = 0.10
"""Color difference of character and background below which the outline of a pixel is not evaluated."""


@dataclass(frozen=True)
class FaceMetrics:
    """Metrics of one character in one frame; None if it is occluded.

    Args:
        visible: visible fraction of the head.
        eyes: correlation of the left and the right eye with the drawing; 0 without contrast.
        extra: number of white areas as large as an eye where none belongs.
        outline: IoU of the pixels that resemble the character with the fitted silhouette.
        likeness: similarity of the colors to the portrait, 0..1.
        sharpness: gradients relative to the drawing.
    """

    visible: float
    eyes: tuple[float, float] | None = None
    extra: int | None = None
    outline: float | None = None
    likeness: float | None = None
    sharpness: float | None = None

    @property
    def intact(self) -> bool | None:
        """Whether the face has exactly two intact eyes at the right places."""
        return None if self.eyes is None else min(self.eyes) > MIN_EYE_CORRELATION and self.extra == 0


def evaluate_frame(
    frame: Array, looks: Sequence[Look], portraits: Array, fits: Sequence[Fit], occluded: Sequence[bool] | None = None
) -> list[FaceMetrics]:
    """Evaluate all characters of a frame uint8 [H, W, 3].

    Args:
        frame: the frame.
        looks: looks of the characters.
        portraits: uint8 [N, P, P, 3] on white.
        fits: from `fit_frame`.
        occluded: characters that are occluded in the ground truth and not evaluated, see `occluded_heads`.
    """
    pixels = frame.astype(np.float32) / 255.0
    owner, background = _owners(pixels, fits), _background(pixels, fits)
    faces = []
    for n, (look, fit) in enumerate(zip(looks, fits, strict=True)):
        own = fit.silhouette & (owner == n)
        head = _head(look, fit) & own
        visible = min(1.0, float(head.sum() / max(1.0, _head_area(look, fit))))
        if visible < MIN_VISIBLE or own.sum() < 20 or (occluded is not None and occluded[n]):
            faces.append(FaceMetrics(visible))
            continue
        others = (owner >= 0) & (owner != n)
        reference = color_descriptor(portraits[n], foreground(portraits[n]))[None]
        faces.append(
            FaceMetrics(
                visible,
                eyes=(_eye(pixels, look, fit, -1.0, others), _eye(pixels, look, fit, 1.0, others)),
                extra=_extra_eyes(pixels, look, fit, head),
                outline=_outline(pixels, fit, background, others),
                likeness=float(histogram_similarity(color_descriptor(frame, own), reference)[0]),
                sharpness=_sharpness(pixels, fit, own),
            )
        )
    return faces


def occluded_heads(clip: PuppetClip, frame: int) -> list[bool]:
    """Characters whose head is mostly occluded or outside the frame in the ground truth."""
    occluded = []
    for look, pose, masks in zip(clip.looks, clip.poses, clip.masks, strict=True):
        x, y, radius, tilt = (float(values[frame]) for values in (pose.x, pose.y, pose.radius, pose.tilt))
        fit = Fit(x, y, radius, tilt, masks[frame], masks[frame])
        visible = (_head(look, fit) & masks[frame]).sum()
        occluded.append(bool(visible < MIN_VISIBLE * _head_area(look, fit)))
    return occluded


def background_flicker(before: Array, after: Array, fits: Sequence[Fit]) -> float | None:
    """Mean change (0..255) of the pixels away from all characters between two frames uint8 [H, W, 3]."""
    away = _away(fits, 0.4)
    if away.sum() < 30:
        return None
    return float(np.abs(after.astype(np.float32) - before.astype(np.float32))[away].mean())


def _away(fits: Sequence[Fit], margin: float) -> Array:
    """Pixels [H, W] farther than `margin` head radii from all characters."""
    return np.all([distance_transform_edt(~fit.silhouette) > margin * fit.radius for fit in fits], axis=0)


def _owners(frame: Array, fits: Sequence[Fit]) -> Array:
    """Index of the character of each pixel [H, W] according to the drawings; -1 = none."""
    errors = np.full((len(fits), *frame.shape[:2]), np.inf, np.float32)
    for n, fit in enumerate(fits):
        error = np.abs(frame - fit.drawing).mean(-1).clip(max=MAX_ERROR)
        errors[n] = np.where(fit.silhouette, gaussian_filter(error, 1.2), np.inf)
    return np.where(np.isfinite(errors.min(0)), errors.argmin(0), -1)


def _background(frame: Array, fits: Sequence[Fit]) -> Array:
    """The background [H, W, 3], extrapolated behind the characters."""
    away = _away(fits, MARGIN)
    if away.mean() < 0.03:  # crowded
        away = ~np.any([binary_dilation(fit.silhouette, iterations=2) for fit in fits], axis=0)
    if not away.any():
        return np.full_like(frame, 2.0)
    _, (rows, columns) = distance_transform_edt(~away, return_indices=True)
    return gaussian_filter(frame[rows, columns], (2.0, 2.0, 0.0))


def _head(look: Look, fit: Fit) -> Array:
    u, v = fit.head_coordinates()
    return (u / look.face_width) ** 2 + v**2 < 1.0


def _head_area(look: Look, fit: Fit) -> float:
    return float(np.pi * look.face_width * fit.radius**2)


def _mouth(fit: Fit) -> Array:
    u, v = fit.head_coordinates()
    return (u / 0.65) ** 2 + ((v - 0.55) / 0.45) ** 2 < 1.0


def _eye(frame: Array, look: Look, fit: Fit, side: float, others: Array) -> float:
    """Normalized correlation of the frame with one eye of the drawing: best gaze, lid and nearby position.

    An eye that is cut off by the frame or covered by another character (`others` [H, W]) is not evaluated: 1.
    """
    height, width = frame.shape[:2]
    x, y = fit.frame_coordinates(side * 0.40 * look.face_width, -0.18)
    half = max(2.0, (look.eye_size + 0.12) * fit.radius)
    reach = max(1, round(0.08 * fit.radius))
    top, bottom = int(np.floor(y - half)), int(np.ceil(y + half))
    left, right = int(np.floor(x - half)), int(np.ceil(x + half))
    if top < reach or left < reach or bottom > height - reach or right > width - reach:
        return 1.0
    if others[top:bottom, left:right].mean() > 0.1:
        return 1.0
    gaze, blink = (grid.ravel().astype(np.float32) for grid in np.meshgrid([-0.9, 0.0, 0.9], [0.0, 0.35, 0.65, 1.0]))
    poses = np.tile([[fit.x, fit.y, fit.radius, fit.tilt]], (len(gaze), 1))
    drawn = draw_poses(look, poses, height, width, gaze=gaze, blink=blink).pixels[:, top:bottom, left:right]
    drawn = drawn - drawn.mean((1, 2), keepdims=True)
    contrast = np.sqrt((drawn**2).sum((1, 2, 3)))
    best = 0.0
    for i in range(-reach, reach + 1):
        for j in range(-reach, reach + 1):
            patch = frame[top + i : bottom + i, left + j : right + j]
            patch = patch - patch.mean((0, 1))
            own = float(np.sqrt((patch**2).sum()))
            correlation = (drawn * patch).sum((1, 2, 3)) / np.maximum(contrast * own, 1e-6)
            correlation[own < MIN_EYE_CONTRAST * contrast] = 0.0
            best = max(best, float(correlation.max()))
    return best


def _extra_eyes(frame: Array, look: Look, fit: Fit, region: Array) -> int:
    """Number of white areas in `region` [H, W] about as large as an eye where none belongs."""
    u, v = fit.head_coordinates()
    region = region & ~binary_dilation(~fit.silhouette)
    reach = look.eye_size + 0.13 + 0.6 / fit.radius
    for side in (-1.0, 1.0):
        region = region & ((u - side * 0.40 * look.face_width) ** 2 + (v + 0.18) ** 2 > reach**2)
    low, high = frame.min(-1), frame.max(-1)
    pieces, count = label(region & (low > fit.drawing.min(-1) + 0.20) & (high - low < 0.30) & (low > 0.55))
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    return int((sizes > max(2.0, MIN_EXTRA_AREA * np.pi * (look.eye_size * fit.radius) ** 2)).sum())


def _outline(frame: Array, fit: Fit, background: Array, others: Array) -> float:
    """IoU of the pixels that resemble the character with its silhouette, outside of other characters."""
    distance, (rows, columns) = distance_transform_edt(~fit.silhouette, return_indices=True)
    evaluated = (distance < MARGIN * fit.radius) & ~others
    expected = fit.drawing[rows, columns]  # outside the silhouette, that of the nearest pixel inside
    error = np.abs(frame - expected).mean(-1)
    for i in range(-2, 3):  # features may be displaced a little
        for j in range(-2, 3):
            shifted = np.abs(frame - np.roll(fit.drawing, (i, j), (0, 1))).mean(-1)
            valid = np.roll(fit.silhouette, (i, j), (0, 1)) & fit.silhouette
            error = np.where(valid, np.minimum(error, shifted), error)
    distinct = np.abs(expected - background).mean(-1) > MIN_CONTRAST
    seen = np.where(distinct, error < np.abs(frame - background).mean(-1), fit.silhouette)
    seen = (seen | (_mouth(fit) & fit.silhouette)) & evaluated
    silhouette = fit.silhouette & evaluated
    return float((seen & silhouette).sum() / max(1, (seen | silhouette).sum()))


def _sharpness(frame: Array, fit: Fit, own: Array) -> float:
    inside = own & ~binary_dilation(~fit.silhouette, iterations=2) & ~_mouth(fit)
    if not inside.any():
        inside = own
    return float(_gradient(frame)[inside].mean() / max(1e-4, float(_gradient(fit.drawing)[inside].mean())))


def _gradient(image: Array) -> Array:
    rows, columns = np.gradient(image, axis=(0, 1))
    return np.sqrt(rows**2 + columns**2).mean(-1)
