"""Anti-aliased, shaded puppets from signed distance fields; all frames of a clip at once, at any size.

Every shape is a signed distance in pixels (negative inside) with coverage `clip(0.5 - distance, 0, 1)`; shapes are
composited in painter's order. Only the bounding box of each shape is processed, in place where possible, as memory
allocation would dominate the run time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from training.puppets.looks import MOUTH_RGB, Look

Array = np.ndarray
Composite = Callable[..., None]


@dataclass(frozen=True)
class Pose:
    """Position and facial expression per frame, each [F] float32.

    `x`, `y` (head center) and `radius` are in pixels, `tilt` in radians, `blink` 0 (open) .. 1 (closed), `opening` and
    `shape` of the mouth 0..1 (shape: 0 wide, 1 round), horizontal `gaze` -1..1.
    """

    x: Array
    y: Array
    radius: Array
    tilt: Array
    blink: Array
    gaze: Array
    opening: Array
    shape: Array


class Canvas:
    """Pixels [F, H, W, 3] in 0..1 and the visible coverage [N, F, H, W] of each character.

    Color channels are separate planes in memory, as numpy is slow with an innermost axis of length 3.
    """

    def __init__(self, background: Array, characters: int) -> None:
        self.pixels = np.moveaxis(np.moveaxis(background, -1, 0).copy(), 0, -1)
        self.coverage = np.zeros((characters, *background.shape[:3]), np.float32)

    def composite(self, owner: int, box: tuple[slice, slice], alpha: Array, color: Array) -> None:
        """Composite `color` ([3] or [F, bh, bw, 3]) with coverage `alpha` [F, bh, bw] over the pixels in `box`."""
        for channel in range(3):
            blend(self.pixels[:, box[0], box[1], channel], alpha, color[..., channel])
        covered = self.coverage[:, :, box[0], box[1]]
        for other in range(len(covered)):
            if other == owner:
                np.maximum(covered[other], alpha, out=covered[other])
            elif covered[other].any():
                covered[other] *= 1.0 - alpha


class HeadFrame:
    """Head-centered coordinates in head radii, over the bounding box of a puppet."""

    def __init__(self, pose: Pose, height: int, width: int) -> None:
        reach = 1.75 * pose.radius.max()
        self.rows = _span(pose.y.min() - reach, pose.y.max() + reach, height)
        self.cols = _span(pose.x.min() - reach, pose.x.max() + reach, width)
        x = np.arange(self.cols.start, self.cols.stop, dtype=np.float32) + 0.5
        y = np.arange(self.rows.start, self.rows.stop, dtype=np.float32) + 0.5
        dx = (x[None, None, :] - pose.x[:, None, None]) / pose.radius[:, None, None]
        dy = (y[None, :, None] - pose.y[:, None, None]) / pose.radius[:, None, None]
        cos, sin = np.cos(pose.tilt)[:, None, None], np.sin(pose.tilt)[:, None, None]
        self.u = cos * dx + sin * dy
        self.v = cos * dy - sin * dx
        self.cos, self.sin, self.pose = cos[:, 0, 0], sin[:, 0, 0], pose
        self.scale = pose.radius[:, None, None]

    def part(self, u: float | Array, v: float | Array, reach: float) -> tuple[tuple[slice, slice], Array, Array]:
        """Bounding box in the image and local coordinates (du, dv) around the point (u, v) of the head."""
        px = self.pose.x + self.pose.radius * (self.cos * u - self.sin * v)
        py = self.pose.y + self.pose.radius * (self.sin * u + self.cos * v)
        grow = reach * self.pose.radius.max() + 1.0
        rows = _span(py.min() - grow, py.max() + grow, self.rows.stop, self.rows.start)
        cols = _span(px.min() - grow, px.max() + grow, self.cols.stop, self.cols.start)
        local = (
            slice(None),
            slice(rows.start - self.rows.start, rows.stop - self.rows.start),
            slice(cols.start - self.cols.start, cols.stop - self.cols.start),
        )
        return (rows, cols), self.u[local] - _wide(u), self.v[local] - _wide(v)


def _wide(value: float | Array) -> float | Array:
    return value[:, None, None] if isinstance(value, np.ndarray) else value


def _span(low: float, high: float, stop: int, start: int = 0) -> slice:
    first = min(max(math.floor(low), start), stop)
    return slice(first, min(max(math.ceil(high), first), stop))


def blend(plane: Array, alpha: Array, color: float | Array) -> None:
    """Composite `color` with coverage `alpha` over a plane, in place."""
    change = color - plane
    change *= alpha
    plane += change


def _length(a: Array, b: Array) -> Array:
    """Length of the vectors (a, b), which are overwritten."""
    a *= a
    b *= b
    total = a + b
    return np.sqrt(total, out=total)


def ellipse(du: Array, dv: Array, ru: float | Array, rv: float | Array) -> Array:
    """First-order signed distance to an ellipse, in the unit of du and dv."""
    ru, rv = _wide(ru), _wide(rv)
    a, b = du / ru, dv / rv
    slope = _length(a / ru, b / rv)
    slope += 1e-6
    radius = _length(a, b)
    radius += 1e-6
    distance = radius - 1.0
    distance *= radius
    distance /= slope
    return distance


def rounded_box(du: Array, dv: Array, hu: float, hv: float, corner: float) -> Array:
    """Signed distance to a box with half sides hu, hv and rounded corners."""
    a, b = np.abs(du) - (hu - corner), np.abs(dv) - (hv - corner)
    inside = np.maximum(a, b)
    distance = _length(np.maximum(a, 0.0, out=a), np.maximum(b, 0.0, out=b))
    distance += np.minimum(inside, 0.0, out=inside)
    distance -= corner
    return distance


def cover(distance: Array, scale: Array) -> Array:
    """Coverage 0..1 of a distance in head radii."""
    covered = distance * scale
    return np.clip(np.subtract(0.5, covered, out=covered), 0.0, 1.0, out=covered)


def shaded(color: Array, shade: Array) -> Array:
    """`color` [3] times `shade` [F, h, w] -> [F, h, w, 3], with separate planes as on the canvas."""
    planes = color[:, None, None, None] * shade
    return np.moveaxis(np.clip(planes, 0.0, 1.0, out=planes), 0, -1)


def draw_puppet(canvas: Canvas, owner: int, look: Look, pose: Pose, light: float = 0.0) -> None:
    """Draw a puppet on top of the canvas.

    Args:
        canvas: target; its coverage of `owner` becomes the visible mask.
        owner: index of the character.
        look: identity.
        pose: position and expression per frame.
        light: direction of the light, -1 (left) .. 1 (right).
    """
    height, width = canvas.pixels.shape[1:3]
    _body(canvas, owner, look, pose, height, width)
    frame = HeadFrame(pose, height, width)
    if frame.rows.start == frame.rows.stop or frame.cols.start == frame.cols.stop:
        return
    scale, box = frame.scale, (frame.rows, frame.cols)
    u, v = frame.u, frame.v
    shade = 1.0 + 0.16 * (light * u - 0.8 * v)

    def composite(alpha: Array, color: Array, where: tuple[slice, slice] = box) -> None:
        canvas.composite(owner, where, alpha, color)

    head = _head_distance(look, u, v)
    if look.hair_style == "long":
        composite(cover(rounded_box(u, v - 0.22, look.face_width + 0.20, 1.12, 0.62), scale), look.hair * 0.82)
    elif look.hair_style == "curly":
        composite(cover(ellipse(u, v + 0.28, look.face_width + 0.30, 0.98), scale), look.hair * 0.88)
    composite(cover(head, scale), shaded(look.skin, shade))
    _hair(look, u, v, head, scale, shade, composite)
    _eyes(look, pose, frame, composite)
    where, du, dv = frame.part(0.0, 0.16, 0.3)
    composite(cover(ellipse(du, dv, look.nose_size, look.nose_size * 0.8), scale), look.skin * 0.80, where)
    _mouth(look, pose, frame, composite)
    _hat(look, u, v, scale, composite)


def _head_distance(look: Look, u: Array, v: Array) -> Array:
    """Interpolates between an egg and a rounded box by `face_square`."""
    jaw = look.face_width * (1.0 - 0.10 * (1.0 - look.face_square) * np.maximum(v, 0.0))
    egg = ellipse(u / jaw * look.face_width, v, look.face_width, 1.0)
    box = rounded_box(u, v, look.face_width * 0.96, 0.97, 0.55)
    return (1.0 - look.face_square) * egg + look.face_square * box


def _body(canvas: Canvas, owner: int, look: Look, pose: Pose, height: int, width: int) -> None:
    grow = 1.5 * pose.radius.max()
    rows = _span((pose.y + 0.7 * pose.radius).min(), height, height)
    cols = _span(pose.x.min() - grow, pose.x.max() + grow, width)
    if rows.start == rows.stop or cols.start == cols.stop:
        return
    x = np.arange(cols.start, cols.stop, dtype=np.float32) + 0.5
    y = np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5
    u = (x[None, None, :] - pose.x[:, None, None]) / pose.radius[:, None, None]
    v = (y[None, :, None] - pose.y[:, None, None]) / pose.radius[:, None, None]
    scale = pose.radius[:, None, None]
    canvas.composite(owner, (rows, cols), cover(rounded_box(u, v - 1.0, 0.34, 0.4, 0.2), scale), look.skin * 0.78)
    shoulders = rounded_box(u, v - 3.18, 1.22, 2.0, 0.75)
    planes = np.repeat(look.clothes[:, None, None, None] * (1.06 - 0.10 * np.abs(u)), v.shape[1], axis=2)
    if look.stripe is not None:
        band = np.clip(0.5 + 2.2 * np.sin(v * 7.0), 0.0, 1.0)
        for plane, color in zip(planes, look.stripe, strict=True):
            blend(plane, band, color)
    colors = np.moveaxis(np.clip(planes, 0.0, 1.0, out=planes), 0, -1)
    canvas.composite(owner, (rows, cols), cover(shoulders, scale), colors)


def _hair(look: Look, u: Array, v: Array, head: Array, scale: Array, shade: Array, composite: Composite) -> None:
    if look.hair_style == "bald":
        return
    line = {"short": -0.50, "long": -0.42, "curly": -0.46}[look.hair_style]
    wave = 0.07 * np.cos(9.0 * u) if look.hair_style == "curly" else 0.10 * u * u
    lift = 0.07 if look.hair_style == "short" else 0.12
    cap = np.maximum(head - lift, v - (line + wave - 0.55 * np.maximum(np.abs(u) - 0.62, 0.0) * -1.0))
    composite(cover(cap, scale), shaded(look.hair, shade))


def _eyes(look: Look, pose: Pose, frame: HeadFrame, composite: Composite) -> None:
    size, apart = look.eye_size, 0.40 * look.face_width
    lid = size * np.maximum(1.0 - pose.blink, 0.12)
    for side in (-1.0, 1.0):
        where, du, dv = frame.part(side * apart, -0.18, size + 0.22)
        composite(cover(ellipse(du, dv, size, lid), frame.scale), np.array([0.98, 0.98, 0.96], np.float32), where)
        iris = np.maximum(
            ellipse(du - _wide(0.07 * pose.gaze), dv, size * 0.55, size * 0.55), ellipse(du, dv, size, lid)
        )
        composite(cover(iris, frame.scale), look.iris, where)
        brow = rounded_box(du, dv + size + 0.09 - side * look.brow_tilt * du, size * 0.95, 0.055, 0.05)
        composite(cover(brow, frame.scale), look.hair * 0.55 + 0.05, where)
        if look.glasses:
            ring = np.abs(ellipse(du, dv, size + 0.08, size + 0.08)) - 0.04
            composite(cover(ring, frame.scale), np.array([0.12, 0.12, 0.14], np.float32), where)
    if look.glasses:
        where, du, dv = frame.part(0.0, -0.18, apart)
        bridge = rounded_box(du, dv, max(apart - size - 0.06, 0.03), 0.035, 0.03)
        composite(cover(bridge, frame.scale), np.array([0.12, 0.12, 0.14], np.float32), where)


def _mouth(look: Look, pose: Pose, frame: HeadFrame, composite: Composite) -> None:
    half_width = (0.52 - 0.22 * pose.shape) * look.face_width + 0.02
    half_height = 0.035 + 0.34 * pose.opening * (0.85 + 0.15 * pose.shape)
    where, du, dv = frame.part(0.0, 0.50 + 0.10 * pose.opening, 0.72)
    lips = np.array([0.82, 0.36, 0.38], np.float32) * 0.6 + look.skin * 0.4
    outer = ellipse(du, dv, half_width + 0.07, half_height + 0.06)
    composite(cover(outer, frame.scale), lips, where)
    inner = cover(ellipse(du, dv, half_width, np.maximum(half_height - 0.035, 0.02)), frame.scale)
    composite(inner * np.minimum(pose.opening * 6.0, 1.0)[:, None, None], np.array(MOUTH_RGB, np.float32), where)


def _hat(look: Look, u: Array, v: Array, scale: Array, composite: Composite) -> None:
    if look.hat == "none":
        return
    wide = look.face_width
    if look.hat == "cap":
        crown = np.maximum(ellipse(u, v + 0.58, wide + 0.10, 0.62), v + 0.56)
        brim = rounded_box(u - 0.35, v + 0.58, wide * 0.95, 0.085, 0.08)
    else:
        crown = rounded_box(u, v + 1.12, wide * 0.72, 0.46, 0.08)
        brim = rounded_box(u, v + 0.70, wide + 0.22, 0.085, 0.08)
    composite(cover(crown, scale), look.hat_color)
    composite(cover(brim, scale), look.hat_color * 0.72)
