"""Fit the drawing of a puppet to a frame: position, tilt, and a radius within the range of the scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import fftconvolve

from training.puppets.draw import Canvas, Pose, draw_puppet
from training.puppets.looks import Look

Array = np.ndarray

MAX_ERROR = 0.25
"""Color errors (mean over channels, 0..1) are clipped to this value."""


@dataclass(frozen=True)
class Fit:
    """A drawing fitted to a frame.

    Args:
        x, y, radius: of the head, in pixels.
        tilt: in radians.
        drawing: the drawing on black [H, W, 3] in 0..1.
        silhouette: its pixels, bool [H, W].
    """

    x: float
    y: float
    radius: float
    tilt: float
    drawing: Array
    silhouette: Array

    def head_coordinates(self) -> tuple[Array, Array]:
        """Coordinates (u, v) [H, W] of all pixels relative to the head, in head radii."""
        y, x = np.mgrid[: self.silhouette.shape[0], : self.silhouette.shape[1]].astype(np.float32) + 0.5
        dx, dy = (x - self.x) / self.radius, (y - self.y) / self.radius
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        return cos * dx + sin * dy, cos * dy - sin * dx

    def frame_coordinates(self, u: float, v: float) -> tuple[float, float]:
        """Pixel coordinates of a point given in head radii."""
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        return self.x + self.radius * (cos * u - sin * v), self.y + self.radius * (sin * u + cos * v)


def fit_frame(frame: Array, looks: Sequence[Look]) -> list[Fit]:
    """Fit all characters to a frame uint8 [H, W, 3]."""
    pixels = frame.astype(np.float32) / 255.0
    radii = radius_range(frame.shape[0], frame.shape[1], len(looks))
    return [fit_character(pixels, look, radii, seed) for seed, look in enumerate(looks)]


def radius_range(height: int, width: int, characters: int) -> tuple[float, float]:
    """Smallest and largest head radius in scenes with this number of characters, in pixels."""
    usual = min(0.27 * height, 0.40 * width / characters)
    return 0.90 * usual, 1.05 * usual


def fit_character(frame: Array, look: Look, radii: tuple[float, float], seed: int = 0) -> Fit:
    """Fit one character to a frame [H, W, 3] in 0..1.

    A search over the whole frame at half resolution is followed by a random search around the best candidates.
    """
    rng = np.random.default_rng(seed)
    height, width = frame.shape[:2]
    grid = [(radius, tilt) for radius in np.linspace(*radii, 3) for tilt in (-0.15, 0.0, 0.15)]
    poses = np.array([(x, y, radius, tilt) for x, y in _coarse_positions(frame, look, radii) for radius, tilt in grid])
    poses = poses[np.argsort(_costs(frame, look, poses))]
    # the columns that the best candidate can cover are enough for the rest
    left = int(np.clip(poses[0, 0] - 2.2 * radii[1], 0, width))
    right = int(np.clip(poses[0, 0] + 2.2 * radii[1] + 1, left + 1, width))
    part, offset = frame[:, left:right], np.array([left, 0.0, 0.0, 0.0])
    poses = poses[np.abs(poses[:, 0] - poses[0, 0]) < radii[1]][:8] - offset
    spread = np.array([1.5, 2.0, 0.3 * (radii[1] - radii[0]), 0.08])
    costs = _costs(part, look, poses)
    for iteration in range(8):
        candidates = poses[rng.integers(len(poses), size=20)] + rng.normal(size=(20, 4)) * spread / 1.4**iteration
        candidates[:, 2] = np.clip(candidates[:, 2], *radii)
        candidates[:, 3] = np.clip(candidates[:, 3], -0.3, 0.3)
        costs = np.concatenate([costs, _costs(part, look, candidates)])
        best = np.argsort(costs)[:6]
        poses, costs = np.concatenate([poses, candidates])[best], costs[best]
    pose = poses[:1] + offset
    canvas = draw_poses(look, pose, height, width)
    x, y, radius, tilt = (float(value) for value in pose[0])
    return Fit(x, y, radius, tilt, canvas.pixels[0], canvas.coverage[0, 0] > 0.5)


def draw_poses(look: Look, poses: Array, height: int, width: int, **face: Array) -> Canvas:
    """Draw one frame on black for each row (x, y, radius, tilt) of `poses`; `face` overrides other fields of `Pose`."""
    columns = [np.ascontiguousarray(poses[:, k], np.float32) for k in range(4)]
    zeros = np.zeros(len(poses), np.float32)
    fields = {"blink": zeros, "gaze": zeros, "opening": zeros, "shape": zeros + 0.3, **face}
    canvas = Canvas(np.zeros((len(poses), height, width, 3), np.float32), 1)
    draw_puppet(canvas, 0, look, Pose(*columns, **fields))
    return canvas


def _weights(look: Look, poses: Array, height: int, width: int) -> Array:
    """[K, H, W]: 0 at the mouth, whose opening is unknown, 2 around the eyes, 1 elsewhere."""
    y, x = np.mgrid[:height, :width].astype(np.float32) + 0.5
    radius, tilt = poses[:, 2, None, None], poses[:, 3, None, None]
    dx, dy = (x - poses[:, 0, None, None]) / radius, (y - poses[:, 1, None, None]) / radius
    u, v = np.cos(tilt) * dx + np.sin(tilt) * dy, np.cos(tilt) * dy - np.sin(tilt) * dx
    mouth = (u / 0.65) ** 2 + ((v - 0.55) / 0.45) ** 2 < 1.0
    eyes = (np.abs(u) < 0.4 * look.face_width + look.eye_size) & (np.abs(v + 0.18) < look.eye_size + 0.1)
    return np.where(mouth, 0.0, np.where(eyes, 2.0, 1.0)).astype(np.float32)


def _coarse_positions(frame: Array, look: Look, radii: tuple[float, float], count: int = 4) -> Array:
    """Distinct head positions [count, 2] with the smallest mean squared error at half resolution."""
    height, width = frame.shape[0] // 2, frame.shape[1] // 2
    small = frame[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3).mean((1, 3))
    shapes = [(radius, tilt) for radius in np.linspace(*radii, 2) for tilt in (-0.12, 0.0, 0.12)]
    templates = np.array([[width / 2, height / 2, radius / 2, tilt] for radius, tilt in shapes])
    canvas = draw_poses(look, templates, 2 * height, width)
    weights = (canvas.coverage[0] > 0.5) * _weights(look, templates, 2 * height, width)
    candidates = []
    ones = np.ones((height, width), np.float32)
    square = (small**2).sum(-1)
    for template, weight, drawing in zip(templates, weights, canvas.pixels, strict=True):
        kernel = weight[::-1, ::-1]
        error = fftconvolve(square, kernel)
        error += fftconvolve(ones, (weight * (drawing**2).sum(-1))[::-1, ::-1])
        for channel in range(3):
            error -= 2 * fftconvolve(small[..., channel], (weight * drawing[..., channel])[::-1, ::-1])
        covered = fftconvolve(ones, kernel)
        # entry [i, j]: the template shifted by (i - rows + 1, j - columns + 1)
        mean = error / np.maximum(covered, 1.0) / 3 + 0.02 * (1 - covered / max(covered.max(), 1.0))
        rows, columns = weight.shape
        y = np.arange(mean.shape[0]) - rows + 1 + template[1]
        x = np.arange(mean.shape[1]) - columns + 1 + template[0]
        mean[(y < 0.2 * height) | (y > 0.8 * height)] = np.inf
        mean[:, (x < -0.05 * width) | (x > 1.05 * width)] = np.inf
        for _ in range(3):
            i, j = np.unravel_index(np.argmin(mean), mean.shape)
            candidates.append((mean[i, j], 2 * x[j], 2 * y[i], 2 * template[2], template[3]))
            mean[max(0, i - 3) : i + 4, max(0, j - 3) : j + 4] = np.inf
    return np.array([candidate[1:3] for candidate in sorted(candidates)[:count]])


def _costs(frame: Array, look: Look, poses: Array) -> Array:
    """[K]: color error inside the silhouette, plus similarity of the ring around it to the character."""
    height, width = frame.shape[:2]
    canvas = draw_poses(look, poses, height, width)
    larger = draw_poses(look, poses * [1.0, 1.0, 1.12, 1.0], height, width)
    inside = canvas.coverage[0]
    weight = inside * _weights(look, poses, height, width)
    error = np.abs(frame[None] - canvas.pixels).mean(-1).clip(max=MAX_ERROR)
    ring = (larger.coverage[0] > 0.5) & (inside < 0.5)
    similarity = np.clip(0.12 - np.abs(frame[None] - larger.pixels).mean(-1), 0.0, None)
    total = (weight * error).sum((1, 2)) + (ring * similarity).sum((1, 2))
    return total / np.maximum(weight.sum((1, 2)), 1.0)
