"""The held-out scenes of the puppet suite. Its list is fixed: scene number k of a version never changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from bya_core.errors import InputError
from bya_core.io.loudness import loudness_track
from training.puppets.looks import draw_look
from training.puppets.world import SAMPLE_RATE, Motion, PuppetClip, Talk, draw_portrait, make_clip

HELD_OUT = 1_000_000
"""Seeds from here up are never trained on."""
MOST = 4
"""Characters of the largest scenes of a mixed list."""


@dataclass(frozen=True)
class SceneSettings:
    """Which scenes.

    Args:
        scenes: how many.
        seed_base: seed of the first; the others follow.
        characters: N in every scene, or "mixed": 1 to 4 by turns, each as often, with and without first frame, and
            with one or all talking. With 1 there is nobody to mix up, and binding is not judged.
        height, width: pixels.
        num_frames: F.
        references: portraits among which an identity must be told, the own one included.
    """

    scenes: int = 64
    seed_base: int = HELD_OUT
    characters: int | Literal["mixed"] = 2
    height: int = 64
    width: int = 96
    num_frames: int = 17
    references: int = 8

    def __post_init__(self) -> None:
        if self.scenes < 1:
            raise InputError(f"{self.scenes} scenes", "at least 1", "ask for more")
        if self.seed_base < HELD_OUT:
            raise InputError(f"seed base {self.seed_base}", f"{HELD_OUT} or more", "lower seeds are trained on")
        most = MOST if self.characters == "mixed" else self.characters
        if most < 1:
            raise InputError(f"{self.characters} characters", "at least 1", "ask for more")
        if self.references < most:
            raise InputError(f"{self.references} references", f"at least {most}", "ask for more")

    @property
    def version(self) -> str:
        """Name of the list of scenes: a change of what is drawn or asked needs another one."""
        return "puppets-mixed-1" if self.characters == "mixed" else "puppets-1"

    def people(self, index: int) -> int:
        """N of scene number `index`. Of a mixed list any 32 scenes in a row hold every combination of a number of
        people, a first frame or none, and `talk_of` once."""
        if self.characters != "mixed":
            return self.characters
        pair = index // 2
        return 1 + (pair + pair // MOST) % MOST


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
    clip = draw(settings, settings.seed_base + index, talk_of(index), people=settings.people(index))
    return with_references(settings, clip, index % 2 == 0)


def talk_of(index: int) -> Talk:
    """Who talks in scene number `index`."""
    return "one" if index // 2 % 4 == 3 else "overlap"


def with_references(settings: SceneSettings, clip: PuppetClip, first_frame: bool) -> SuiteScene:
    """A clip and the portraits among which its people must be told."""
    rng = np.random.default_rng([clip.seed, 0x1D])
    size = clip.portraits.shape[1]
    count = len(clip.portraits)
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
    people: int | None = None,
) -> PuppetClip:
    """A clip of the suite's size; `people` in it, by default as many as the settings say."""
    return make_clip(
        seed,
        people or settings.people(seed - settings.seed_base),
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
    drawn = draw(settings, clip.seed, "overlap", (opening, clip.speeches), scene.motion, len(clip.portraits))
    return replace(drawn, matrix=matrix)
