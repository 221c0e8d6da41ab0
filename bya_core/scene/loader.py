"""Loads a scene file and all files it names."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from bya_core.config import Preset, SamplingConfig
from bya_core.errors import InputError
from bya_core.io.media import existing_file, read_image
from bya_core.scene.checks import scene_notices, speech_frames
from bya_core.scene.mask_files import read_masks
from bya_core.scene.schema import SceneFile, read_scene_file
from bya_core.scene.speech import read_speeches
from bya_core.scene.types import Character, PromptSpan, Scene, SceneDefaults, rotate_speeches


class HasDefaults(Protocol):
    """A model, such as a `ModelBundle`."""

    @property
    def defaults(self) -> SceneDefaults: ...


def load_scene(
    path: str | os.PathLike[str],
    model: HasDefaults | SceneDefaults,
    *,
    steps: int | None = None,
    seed: int | None = None,
    preset: Preset | None = None,
) -> Scene:
    """Read a scene file and all files it names.

    Args:
        path: JSON file; paths in it are relative to its folder.
        model: The model that will generate it, for sizes and sampling options that the file leaves out.
        steps: Overrides the number of denoising steps of the file.
        seed: Overrides the seed of the file.
        preset: Overrides the preset of the file.

    Raises:
        InputError: A file that is missing or invalid.
    """
    defaults = model if isinstance(model, SceneDefaults) else model.defaults
    path = existing_file(path, "the scene")
    given, folder = read_scene_file(path), path.parent
    voices = read_speeches(given, folder)
    height, width = given.height or defaults.height, given.width or defaults.width
    num_frames = given.length
    if num_frames == "auto":
        num_frames = speech_frames(voices.speeches, given.fps, defaults.time_factor)
    try:
        grid = defaults.grid(num_frames, height, width)
    except InputError as error:
        raise InputError(f"{path.name}: {error.problem}", error.expected, error.hint) from error
    strengths = torch.tensor([character.speech_strength for character in given.characters])
    matrix = given.audio_character_matrix
    scene = Scene(
        prompt=given.prompt,
        negative_prompt=given.negative_prompt,
        characters=tuple(Character(c.name, read_image(folder / c.image)) for c in given.characters),
        speeches=voices.speeches,
        audio_character_matrix=matrix_of(matrix, len(given.characters)),
        first_frame=read_image(folder / given.first_frame) if given.first_frame else None,
        first_frame_fit=given.first_frame_fit,
        height=height,
        width=width,
        num_frames=num_frames,
        fps=float(given.fps),
        sampling=_sampling(given, defaults.sampling, steps, seed, preset),
        routing=given.router.config(),
        mask_control=read_masks(given, folder, grid),
        bind="auto" if matrix == "auto" else "given",
        speech_strength=None if bool((strengths == 1).all()) else strengths,
        prompts=tuple(PromptSpan(span.start, span.end, span.prompt) for span in given.prompts),
        windows=given.windows,
        sound=voices.sound,
    )
    return replace(scene, notices=(*voices.notices, *scene_notices(scene, defaults)))


def matrix_of(given: list[list[float]] | str | None, count: int) -> Tensor | None:
    """Audio-character matrix [M, N] of a scene file; None assigns each speech to its own character."""
    if isinstance(given, list):
        if not given or len({len(row) for row in given}) != 1:
            problem = "an audio-character matrix with rows of different length"
            raise InputError(problem, "rows of equal length", "correct it")
        return torch.tensor(given, dtype=torch.float32).reshape(len(given), -1)
    if given == "swapped":
        if count < 2:
            raise InputError('audio_character_matrix "swapped" with 1 character', "at least 2", "remove it")
        return rotate_speeches(torch.eye(count))
    return None


def _sampling(
    given: SceneFile, base: SamplingConfig, steps: int | None, seed: int | None, preset: Preset | None
) -> SamplingConfig:
    audio = given.guidance_scale if given.audio_guidance_scale is None else given.audio_guidance_scale
    options: dict[str, Any] = {
        "steps": steps if steps is not None else given.steps,
        "seed": seed if seed is not None else given.seed,
        "guidance_scale": given.guidance_scale,
        "audio_guidance_scale": audio,
        "scheduler": given.scheduler,
        "preset": preset or given.preset,
    }
    return replace(base, **{name: value for name, value in options.items() if value is not None})
