"""Puppet identities: continuous appearance parameters, their text description and the matching voice."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

MOUTH_RGB = (0.20, 0.01, 0.07)
"""Color of the inside of all mouths (0..1); no other part of a scene has a similar color."""

COLOR_NAMES = (
    ("red", 0.0), ("orange", 0.075), ("yellow", 0.15), ("green", 0.34),
    ("teal", 0.49), ("blue", 0.61), ("purple", 0.76), ("pink", 0.90), ("red", 1.0),
)  # fmt: skip
HAIR_STYLES = ("bald", "short", "long", "curly")
HATS = ("none", "cap", "top hat")


def rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """HSV (each 0..1) -> RGB [3] float32 in 0..1."""
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), dtype=np.float32)


def color_name(color: np.ndarray) -> str:
    """Name of an RGB color (0..1)."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(c) for c in color))
    if saturation < 0.18:  # "grey" is the spelling in the training prompts
        return "white" if value > 0.8 else "grey" if value > 0.35 else "black"
    if 0.02 < hue < 0.13 and value < 0.62:
        return "brown"
    return min(COLOR_NAMES, key=lambda named: abs(named[1] - hue))[0]


def add_article(word: str) -> str:
    """ "a blue", "an orange"."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


@dataclass(frozen=True)
class Look:
    """An identity. Colors are RGB in 0..1, lengths in head radii, other values in 0..1."""

    skin: np.ndarray
    hair: np.ndarray
    hair_style: str
    clothes: np.ndarray
    stripe: np.ndarray | None
    iris: np.ndarray
    glasses: bool
    hat: str
    hat_color: np.ndarray
    face_width: float
    face_square: float
    eye_size: float
    nose_size: float
    brow_tilt: float

    @property
    def voice_traits(self) -> np.ndarray:
        """[3] in 0..1: wide faces have low pitch, square faces low formants, small eyes breathy voices."""
        wide = (self.face_width - 0.72) / 0.28
        small_eyes = 1.0 - (self.eye_size - 0.17) / 0.09
        return np.clip(np.array([1.0 - wide, 1.0 - self.face_square, small_eyes], dtype=np.float32), 0.0, 1.0)

    def describe(self) -> str:
        """ "a green puppet with long red hair, glasses and a blue shirt"."""
        parts = ["no hair" if self.hair_style == "bald" else f"{self.hair_style} {color_name(self.hair)} hair"]
        if self.glasses:
            parts.append("glasses")
        if self.hat != "none":
            parts.append(f"{add_article(color_name(self.hat_color))} {self.hat}")
        parts.append(f"{add_article(color_name(self.clothes))} shirt")
        listed = ", ".join(parts[:-1]) + " and " + parts[-1]
        return f"{add_article(color_name(self.skin))} puppet with {listed}"


def _skin(rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.45:  # human tones, light to dark
        depth = rng.random()
        return rgb(0.06 + 0.025 * rng.random(), 0.32 + 0.33 * depth, 0.98 - 0.45 * depth)
    return rgb(rng.uniform(0.07, 0.93), rng.uniform(0.35, 0.65), rng.uniform(0.72, 0.95))


def draw_look(rng: np.random.Generator, distinct_from: tuple[Look, ...] = ()) -> Look:
    """A random identity whose colors differ clearly from those in `distinct_from`."""
    for _ in range(24):
        look = _draw_look(rng)
        distances = [
            np.abs(look.skin - o.skin).sum() + np.abs(look.hair - o.hair).sum() + np.abs(look.clothes - o.clothes).sum()
            for o in distinct_from
        ]
        if min(distances, default=9.0) > 1.3:
            break
    return look


def _draw_look(rng: np.random.Generator) -> Look:
    hair_natural = rng.random() < 0.5
    hair = (
        rgb(rng.uniform(0.03, 0.13), rng.uniform(0.35, 0.8), rng.uniform(0.30, 0.95))
        if hair_natural
        else rgb(rng.uniform(0.06, 0.92), rng.uniform(0.5, 0.9), rng.uniform(0.45, 0.9))
    )
    return Look(
        skin=_skin(rng),
        hair=hair,
        hair_style=str(rng.choice(HAIR_STYLES, p=[0.12, 0.34, 0.30, 0.24])),
        clothes=rgb(rng.uniform(0.0, 1.0), rng.uniform(0.45, 0.9), rng.uniform(0.5, 0.95)),
        stripe=rgb(rng.uniform(0.0, 1.0), rng.uniform(0.0, 0.5), rng.uniform(0.75, 1.0))
        if rng.random() < 0.3
        else None,
        iris=rgb(rng.uniform(0.05, 0.65), rng.uniform(0.4, 0.8), rng.uniform(0.25, 0.6)),
        glasses=bool(rng.random() < 0.3),
        hat=str(rng.choice(HATS, p=[0.64, 0.2, 0.16])),
        hat_color=rgb(rng.uniform(0.05, 0.95), rng.uniform(0.4, 0.85), rng.uniform(0.35, 0.9)),
        face_width=float(rng.uniform(0.72, 1.0)),
        face_square=float(rng.uniform(0.0, 1.0)),
        eye_size=float(rng.uniform(0.17, 0.26)),
        nose_size=float(rng.uniform(0.09, 0.17)),
        brow_tilt=float(rng.uniform(-0.35, 0.35)),
    )
