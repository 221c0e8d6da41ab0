"""Loads a scene file and all files it names."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from bya_core.config import Preset, SamplingConfig
from bya_core.errors import InputError
from bya_core.io.files import existing_file
from bya_core.io.media import read_frames, read_image
from bya_core.scene.checks import scene_notices, speech_frames
from bya_core.scene.mask_files import read_masks
from bya_core.scene.schema import SceneFile, read_scene_file
from bya_core.scene.speech import read_speeches
from bya_core.scene.types import Character, PromptSpan, Scene, SceneDefaults, rotate_speeches
from bya_core.scene.windows import round_lengths


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
    force: bool = False,
    reference_video: str | os.PathLike[str] | None = None,
    length: int | None = None,
) -> Scene:
    """Read a scene file and all files it names.

    Args:
        path: JSON file; paths in it are relative to its folder.
        model: The model that will generate it, for sizes and sampling options that the file leaves out.
        steps: Overrides the number of denoising steps of the file.
        seed: Overrides the seed of the file.
        preset: Overrides the preset of the file.
        force: Accept reference images of a kind that the model was not trained on, as the key of the file does.
        reference_video: Overrides the reference video of the file, and its matrix by "auto".
        length: Overrides the number of video frames of the file.

    Raises:
        InputError: A file that is missing or invalid.
    """
    defaults = model if isinstance(model, SceneDefaults) else model.defaults
    path = existing_file(path, "the scene")
    file, folder = read_scene_file(path), path.parent
    file = file if length is None else replace(file, length=length)
    fixed = None if file.length == "auto" else file.length + defaults.time_factor
    audio = read_speeches(file, folder, None if fixed is None else fixed / file.fps)
    height, width = file.height or defaults.height, file.width or defaults.width
    num_frames = file.length
    if num_frames == "auto":
        num_frames = speech_frames(audio.speeches, file.fps, defaults.time_factor)
    num_frames, windows, rounded = round_lengths(num_frames, file.windows, defaults.time_factor)
    try:
        grid = defaults.grid(num_frames, height, width)
    except InputError as error:
        raise InputError(f"{path.name}: {error.problem}", error.expected, error.hint) from error
    strengths = torch.tensor([character.speech_strength for character in file.characters])
    mask_control, mask_notices = read_masks(file, folder, grid)
    matrix = file.audio_character_matrix if reference_video is None else "auto"
    if reference_video is None and file.reference_video is not None:
        reference_video = folder / file.reference_video
    reference = None if reference_video is None else read_frames(reference_video)
    scene = Scene(
        prompt=file.prompt,
        negative_prompt=file.negative_prompt,
        characters=tuple(Character(c.name, read_image(folder / c.image)) for c in file.characters),
        speeches=audio.speeches,
        audio_character_matrix=matrix_of(matrix, len(file.characters)),
        first_frame=read_image(folder / file.first_frame) if file.first_frame else None,
        first_frame_fit=file.first_frame_fit,
        height=height,
        width=width,
        num_frames=num_frames,
        fps=float(file.fps),
        sampling=_sampling(file, defaults.sampling, steps, seed, preset),
        routing=file.router.config(),
        mask_control=mask_control,
        bind="auto" if matrix == "auto" else "given",
        reference_video=reference,
        speech_strength=None if bool((strengths == 1).all()) else strengths,
        prompts=tuple(PromptSpan(span.start, span.end, span.prompt) for span in file.prompts),
        windows=windows,
        sound=audio.sound,
        force=force or file.force,
    )
    return replace(
        scene,
        notices=(
            *audio.notices,
            *(reference.notices if reference else ()),
            *rounded,
            *mask_notices,
            *scene_notices(scene, defaults),
        ),
    )


def matrix_of(matrix: list[list[float]] | str | None, count: int) -> Tensor | None:
    """Audio-character matrix [M, N] of a scene file; None assigns each speech to its own character."""
    if isinstance(matrix, list):
        if not matrix or len({len(row) for row in matrix}) != 1:
            problem = "an audio-character matrix with rows of different length"
            raise InputError(problem, "rows of equal length", "correct it")
        return torch.tensor(matrix, dtype=torch.float32).reshape(len(matrix), -1)
    if matrix == "swapped":
        if count < 2:
            raise InputError('audio_character_matrix "swapped" with 1 character', "at least 2", "remove it")
        return rotate_speeches(torch.eye(count))
    return None


def _sampling(
    file: SceneFile, base: SamplingConfig, steps: int | None, seed: int | None, preset: Preset | None
) -> SamplingConfig:
    audio_scale = file.guidance_scale if file.audio_guidance_scale is None else file.audio_guidance_scale
    options: dict[str, Any] = {
        "steps": steps if steps is not None else file.steps,
        "seed": seed if seed is not None else file.seed,
        "guidance_scale": file.guidance_scale,
        "audio_guidance_scale": audio_scale,
        "scheduler": file.scheduler,
        "preset": preset or file.preset,
    }
    return replace(base, **{name: value for name, value in options.items() if value is not None})
