"""Reading a scene and everything it names from files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from bya_core.config import Preset, SamplingConfig
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.io.media import existing_file, read_image
from bya_core.sampling.windows import plan_windows
from bya_core.scene.checks import length_notices
from bya_core.scene.mask_files import read_masks
from bya_core.scene.schema import SceneFile, read_scene_file
from bya_core.scene.speech import read_speeches
from bya_core.scene.types import Character, PromptSpan, Scene, SceneDefaults, Speech, moved_on, prompt_at


class HasDefaults(Protocol):
    """A model: it states what a scene may leave out (`ModelBundle` does)."""

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
        steps, seed, preset: Override the options of the file.

    Raises:
        InputError: A file that is missing or invalid.
    """
    defaults = model if isinstance(model, SceneDefaults) else model.defaults
    path = existing_file(path, "the scene")
    given, folder = read_scene_file(path), path.parent
    voices = read_speeches(given, folder)
    names = [character.name for character in given.characters]
    notices = list(voices.notices)
    height, width = given.height or defaults.height, given.width or defaults.width
    num_frames = _length(given, voices.speeches, names, defaults, notices)
    grid = _grid(path, num_frames, height, width, defaults)
    masks = read_masks(given, folder, grid)
    strengths = torch.tensor([character.speech_strength for character in given.characters])
    matrix = given.audio_character_matrix
    scene = Scene(
        prompt=given.prompt,
        negative_prompt=given.negative_prompt,
        characters=tuple(Character(c.name, read_image(folder / c.image)) for c in given.characters),
        speeches=voices.speeches,
        audio_character_matrix=matrix_of(matrix, len(names)),
        first_frame=read_image(folder / given.first_frame) if given.first_frame else None,
        first_frame_fit=given.first_frame_fit,
        height=height,
        width=width,
        num_frames=num_frames,
        fps=float(given.fps),
        sampling=_sampling(given, defaults.sampling, steps, seed, preset),
        routing=given.router.config(),
        mask_control=masks,
        bind="auto" if matrix == "auto" else "given",
        speech_strength=None if bool((strengths == 1).all()) else strengths,
        prompts=tuple(PromptSpan(span.start, span.end, span.prompt) for span in given.prompts),
        windows=given.windows,
        sound=voices.sound,
        notices=tuple(notices),
    )
    return replace(scene, notices=(*scene.notices, *prompt_notices(scene, defaults)))


def prompt_notices(scene: Scene, defaults: SceneDefaults) -> Iterator[str]:
    """Prompts that no window takes. Raises InputError where the windows cannot be planned."""
    most, fps = scene.windows.frames or defaults.max_frames, scene.fps
    windows = plan_windows(scene.num_frames, most, scene.windows.overlap, defaults.time_factor)
    taken = {prompt_at(scene, window.start / fps, window.stop / fps) for window in windows}
    for span in scene.prompts:
        told = f"The prompt from {span.start:g} to {span.end:g} s"
        if span.start >= scene.seconds:
            yield f"{told} begins after the end of the video ({scene.seconds:.2f} s)."
        elif span.prompt not in taken:
            whole = "it covers the smaller part of the video, which is made in one go"
            part = f"it covers the smaller part of each of the {len(windows)} windows"
            yield f"{told} is not used: {whole if len(windows) == 1 else part}."


def _length(
    given: SceneFile,
    speeches: Sequence[Speech | None],
    names: Sequence[str],
    defaults: SceneDefaults,
    notices: list[str],
) -> int:
    """F; adds a notice where speech is cut or windows are longer than what the model was trained for."""
    longest = max((speech.end for speech in speeches if speech is not None), default=0.0)
    if given.length != "auto":
        frames = int(given.length)
    else:
        if longest <= 0:
            raise InputError('length "auto" but nobody speaks', "at least one speech", "give the length in frames")
        # a thousandth of a frame is rounding, not speech
        needed = max(1, math.ceil(longest * given.fps - 1e-3))
        frames = math.ceil((needed - 1) / defaults.time_factor) * defaults.time_factor + 1
    window = min(given.windows.frames or defaults.max_frames, frames)
    if window > defaults.max_frames:
        notices.append(f"{window} frames in one go, the model was trained for {defaults.max_frames}: expect drift.")
    notices += length_notices(names, speeches, frames / given.fps, "as asked for")
    return frames


def matrix_of(given: list[list[float]] | str | None, count: int) -> Tensor | None:
    """Audio-character matrix of a scene file [M, N]; None = each speech moves its own character."""
    if isinstance(given, list):
        if not given or len({len(row) for row in given}) != 1:
            raise InputError("an audio-character matrix with rows of different length", "equal rows", "correct it")
        return torch.tensor(given, dtype=torch.float32).reshape(len(given), -1)
    if given == "swapped":
        if count < 2:
            came = 'audio_character_matrix "swapped" with 1 character'
            raise InputError(came, "at least 2", "leave it out")
        return moved_on(torch.eye(count))
    return None


def _grid(path: Path, num_frames: int, height: int, width: int, defaults: SceneDefaults) -> TokenGrid:
    try:
        return TokenGrid.from_pixels(
            num_frames,
            height,
            width,
            patch=1,
            space_factor=defaults.size_unit,
            time_factor=defaults.time_factor,
        )
    except InputError as error:
        raise InputError(f"{path.name}: {error.problem}", error.expected, error.hint) from error


def _sampling(
    given: SceneFile, base: SamplingConfig, steps: int | None, seed: int | None, preset: Preset | None
) -> SamplingConfig:
    audio = given.guidance_scale if given.audio_guidance_scale is None else given.audio_guidance_scale
    wanted: dict[str, Any] = {
        "steps": steps if steps is not None else given.steps,
        "seed": seed if seed is not None else given.seed,
        "guidance_scale": given.guidance_scale,
        "audio_guidance_scale": audio,
        "scheduler": given.scheduler,
        "preset": preset or given.preset,
    }
    return replace(base, **{name: value for name, value in wanted.items() if value is not None})
