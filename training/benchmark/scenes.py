"""Held-out scenes of the puppet suite. The list is fixed: scene k of a version never changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from bya_core.errors import InputError
from bya_core.io.loudness import loudness_track
from training.puppets.looks import draw_look
from training.puppets.world import SAMPLE_RATE, Motion, PuppetClip, Talk, draw_portrait, make_clip

HELD_OUT = 1_000_000
"""Seeds from here on are never used for training."""
MAX_MIXED = 4
"""Maximum number of characters in a mixed list."""
MOTIONS: tuple[Motion, ...] = ("still", "moving", "crossing")
"""Motions of the router suite."""


def check_held_out(seed: int) -> None:
    """Raise InputError if a seed may have been used for training."""
    if seed < HELD_OUT:
        raise InputError(f"seed base {seed}", f"{HELD_OUT} or more", "lower seeds are used for training")


@dataclass(frozen=True)
class SceneSettings:
    """Selection of scenes.

    Args:
        scenes: number of scenes.
        seed_base: seed of the first scene; the others follow.
        characters: number of characters N, or "mixed": 1 to 4 in turn, with and without first frame, one or all of them
            speaking. Binding is not measured for N = 1.
        height, width: pixels.
        num_frames: number of frames F.
        references: number of portraits among which an identity is retrieved, including its own.
        describe_motion: prompts describe the motion, for models that were trained with such prompts.
    """

    scenes: int = 64
    seed_base: int = HELD_OUT
    characters: int | Literal["mixed"] = 2
    height: int = 64
    width: int = 96
    num_frames: int = 17
    references: int = 8
    describe_motion: bool = False

    def __post_init__(self) -> None:
        largest = MAX_MIXED if self.characters == "mixed" else self.characters
        check_held_out(self.seed_base)
        for name, value, minimum in (
            ("scenes", self.scenes, 1),
            ("characters", largest, 1),
            ("references", self.references, largest),
        ):
            if value < minimum:
                raise InputError(f"{value} {name}", f"at least {minimum}", "use a larger value")

    @property
    def version(self) -> str:
        """Name of the list of scenes; changed whenever the scenes change."""
        return "puppets-mixed-1" if self.characters == "mixed" else "puppets-1"

    def num_characters(self, index: int) -> int:
        """N of a scene. Any 32 consecutive scenes of a mixed list contain every combination of N, first frame and
        `talk_of` once."""
        if self.characters != "mixed":
            return self.characters
        pair = index // 2
        return 1 + (pair + pair // MAX_MIXED) % MAX_MIXED


@dataclass(frozen=True)
class SuiteScene:
    """One scene.

    Args:
        clip: ground truth.
        first_frame: whether the model receives the first frame.
        references: portraits uint8 [N, K, P, P, 3]; for character n its own, those of the other characters, strangers.
        motion: requested motion ("mixed" = chosen by the seed).
    """

    clip: PuppetClip
    first_frame: bool
    references: np.ndarray
    motion: Motion = "mixed"

    @property
    def loudness(self) -> np.ndarray:
        """Loudness of every speech per video frame, [M, F]."""
        clip = self.clip
        frames = clip.opening.shape[1]
        return np.stack([loudness_track(s, SAMPLE_RATE, frames, clip.fps) for s in clip.speeches])

    @property
    def swapped(self) -> np.ndarray:
        """Audio-character matrix [M, N] that assigns each speech to the next character."""
        return np.roll(self.clip.matrix, 1, axis=0)


def suite_scene(settings: SceneSettings, index: int) -> SuiteScene:
    """Draw a scene: even ones have a first frame; in every fourth pair only one character speaks."""
    count = settings.num_characters(index)
    clip = draw(settings, settings.seed_base + index, talk_of(index), num_characters=count)
    return with_references(settings, clip, index % 2 == 0)


def router_scene(settings: SceneSettings, index: int) -> SuiteScene:
    """Draw a scene: static, moving and crossing characters in turn, all speaking, with a first frame."""
    motion = MOTIONS[index % len(MOTIONS)]
    clip = draw(settings, settings.seed_base + index, "overlap", motion=motion)
    scene = replace(with_references(settings, clip, first_frame=True), motion=motion)
    if index // len(MOTIONS) % 2:
        return replace(scene, clip=replace(clip, matrix=np.ascontiguousarray(scene.swapped)))
    return scene


def all_scenes(settings: SceneSettings) -> list[SuiteScene]:
    """Draw all scenes in order."""
    return [suite_scene(settings, index) for index in range(settings.scenes)]


def talk_of(index: int) -> Talk:
    """Speech pattern of a scene."""
    return "one" if index // 2 % 4 == 3 else "overlap"


def with_references(settings: SceneSettings, clip: PuppetClip, first_frame: bool) -> SuiteScene:
    """Add the portraits for identity retrieval to a clip."""
    rng = np.random.default_rng([clip.seed, 0x1D])
    size, count = clip.portraits.shape[1], len(clip.portraits)
    strangers = [draw_portrait(draw_look(rng), rng, size) for _ in range(settings.references - count)]
    references = np.stack([np.stack([*np.roll(clip.portraits, -n, axis=0), *strangers]) for n in range(count)])
    return SuiteScene(clip, first_frame, references)


def draw(
    settings: SceneSettings,
    seed: int,
    talk: Talk,
    tracks: tuple[np.ndarray, np.ndarray] | None = None,
    motion: Motion = "mixed",
    num_characters: int | None = None,
) -> PuppetClip:
    """Draw a clip of the size of the suite; `num_characters` defaults to that of the settings."""
    return make_clip(
        seed,
        num_characters or settings.num_characters(seed - settings.seed_base),
        settings.height,
        settings.width,
        settings.num_frames,
        motion=motion,
        talk=talk,
        tracks=tracks,
        describe_motion=settings.describe_motion,
    )


def redrawn(scene: SuiteScene, settings: SceneSettings, matrix: np.ndarray) -> PuppetClip:
    """Draw the ground truth for another audio-character matrix [M, N]: the same scene with other mouth motion."""
    clip = scene.clip
    if np.array_equal(matrix, clip.matrix):
        return clip
    opening = np.einsum("mn,mf->nf", matrix, clip.opening)
    drawn = draw(settings, clip.seed, "overlap", (opening, clip.speeches), scene.motion, len(clip.portraits))
    return replace(drawn, matrix=matrix)
