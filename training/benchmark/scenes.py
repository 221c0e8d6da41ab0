"""The held-out scenes of the puppet suite."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bya_core.errors import InputError
from bya_core.metrics.loudness import loudness_track
from training.puppets.looks import draw_look
from training.puppets.world import SAMPLE_RATE, Motion, PuppetClip, Talk, draw_portrait, make_clip

HELD_OUT = 1_000_000
"""Seeds from here up are never trained on."""


@dataclass(frozen=True)
class SceneSettings:
    """Which scenes.

    Args:
        scenes: how many.
        seed_base: seed of the first; the others follow.
        characters: N in every scene; with 1 there is nobody to mix up, and binding is not judged.
        height, width: pixels.
        num_frames: F.
        references: portraits among which an identity must be told, the own one included.
    """

    scenes: int = 64
    seed_base: int = HELD_OUT
    characters: int = 2
    height: int = 64
    width: int = 96
    num_frames: int = 17
    references: int = 8

    def __post_init__(self) -> None:
        if self.scenes < 1:
            raise InputError(f"{self.scenes} scenes", "at least 1", "ask for more")
        if self.seed_base < HELD_OUT:
            raise InputError(
                f"seed base {self.seed_base}", f"{HELD_OUT} or more", "lower seeds are trained on"
            )
        if self.characters < 1:
            raise InputError(f"{self.characters} characters", "at least 1", "ask for more")
        if self.references < self.characters:
            raise InputError(f"{self.references} references", f"at least {self.characters}", "ask for more")


@dataclass(frozen=True)
class SuiteScene:
    """One scene and what it is asked with.

    Args:
        clip: the drawn truth.
        first_frame: whether the model gets the first frame (every other scene).
        references: portraits [N, K, P, P, 3] uint8; for character n the first is its own, then those of the
            others in the scene, then strangers.
        motion: as it was asked for ("mixed" lets the seed decide).
    """

    clip: PuppetClip
    first_frame: bool
    references: np.ndarray
    motion: Motion = "mixed"

    @property
    def loudness(self) -> np.ndarray:
        """Of every speech per video frame, [M, F]."""
        clip = self.clip
        frames = clip.opening.shape[1]
        return np.stack([loudness_track(s, SAMPLE_RATE, frames, clip.fps) for s in clip.speeches])

    @property
    def swapped(self) -> np.ndarray:
        """Audio-character matrix [M, N] in which everybody has the voice of the next one."""
        return np.roll(self.clip.matrix, 1, axis=0)


def suite_scene(settings: SceneSettings, index: int) -> SuiteScene:
    """Scene number `index`: even ones have a first frame; in one of four only one talks, else all do."""
    seed = settings.seed_base + index
    talk: Talk = "one" if index // 2 % 4 == 3 else "overlap"
    return with_references(settings, draw(settings, seed, talk), index % 2 == 0)


def with_references(settings: SceneSettings, clip: PuppetClip, first_frame: bool) -> SuiteScene:
    """A clip and the portraits among which its people must be told."""
    rng = np.random.default_rng([clip.seed, 0x1D])
    size = clip.portraits.shape[1]
    count = settings.characters
    strangers = [draw_portrait(draw_look(rng), rng, size) for _ in range(settings.references - count)]
    references = np.stack(
        [np.stack([*np.roll(clip.portraits, -n, axis=0), *strangers]) for n in range(count)],
    )
    return SuiteScene(clip, first_frame, references)


def draw(
    settings: SceneSettings,
    seed: int,
    talk: Talk,
    tracks: tuple[np.ndarray, np.ndarray] | None = None,
    motion: Motion = "mixed",
) -> PuppetClip:
    """A clip of the suite's size and number of characters."""
    return make_clip(
        seed,
        settings.characters,
        settings.height,
        settings.width,
        settings.num_frames,
        motion=motion,
        talk=talk,
        tracks=tracks,
    )


def redrawn(scene: SuiteScene, settings: SceneSettings, matrix: np.ndarray) -> PuppetClip:
    """The scene's truth when `matrix` [M, N] says who hears whom: the same people move other mouths."""
    clip = scene.clip
    if np.array_equal(matrix, clip.matrix):
        return clip
    opening = np.einsum("mn,mf->nf", matrix, clip.opening)
    drawn = draw(settings, clip.seed, "overlap", (opening, clip.speeches), scene.motion)
    return replace(drawn, matrix=matrix)
