"""A scene with everything encoded, ready for routing and denoising."""

from __future__ import annotations

from dataclasses import dataclass

from bya_core.grid import TokenGrid
from bya_core.sampling.conditions import Conditions
from bya_core.scene.types import Scene


@dataclass(frozen=True)
class Prepared:
    """An encoded scene; router and sampler share one instance, so they see the same inputs.

    Args:
        scene: the scene, with its final audio-character matrix.
        grid: token grid of the video.
        conditions: encoded inputs of the denoiser, without masks.
    """

    scene: Scene
    grid: TokenGrid
    conditions: Conditions
