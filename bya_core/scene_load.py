"""Reading a scene and everything it names from files."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bya_core.config import RoutingConfig, SamplingConfig
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.media import existing_file, read_audio, read_image
from bya_core.scene import Character, Scene, SceneDefaults, Speech
from bya_core.scene_format import CharacterEntry, SceneFile, read_scene_file

SILENCE = 1e-3  # peak below which a recording counts as silent (-60 dB)


def load_scene(
    path: str | os.PathLike[str],
    defaults: SceneDefaults,
    *,
    steps: int | None = None,
    seed: int | None = None,
) -> Scene:
    """Read a scene file and everything it names.

    Args:
        path: the JSON file; paths in it are relative to its folder.
        defaults: of the model that will make it (`ModelBundle.defaults`).
        steps, seed: in place of those in the file.

    Raises:
        InputError: anything in it that cannot be used.
    """
    path = existing_file(path, "the scene")
    given, folder = read_scene_file(path), path.parent
    speeches = [_speech(character, folder) for character in given.characters]
    notices = list(_speech_notices(given.characters, speeches))
    height, width = given.height or defaults.height, given.width or defaults.width
    num_frames = _length(given, speeches, defaults, notices)
    grid = _grid(path, num_frames, height, width, defaults)
    masks = _masks(folder / given.router.masks, len(speeches), grid) if given.router.masks else None
    matrix = given.audio_character_matrix
    return Scene(
        prompt=given.prompt,
        negative_prompt=given.negative_prompt,
        characters=tuple(Character(c.name, read_image(folder / c.image)) for c in given.characters),
        speeches=tuple(speeches),
        audio_character_matrix=None if matrix is None else _matrix(matrix),
        first_frame=read_image(folder / given.first_frame) if given.first_frame else None,
        height=height,
        width=width,
        num_frames=num_frames,
        fps=float(given.fps),
        sampling=_sampling(given, defaults.sampling, steps, seed),
        routing=RoutingConfig(mode=given.router.mode),
        forced_masks=masks,
        forced_blend=None if masks is None else torch.full((len(speeches),), given.router.blend),
        notices=tuple(notices),
    )


def _speech(character: CharacterEntry, folder: Path) -> Speech | None:
    if character.speech is None:
        return None
    waveform, rate = read_audio(folder / character.speech)
    speech = Speech(waveform, rate, character.offset, character.gain)
    if speech.end <= 0:
        came = f"the speech of {character.name} ends {-speech.end:.2f} s before the video starts"
        raise InputError(came, "an offset shorter than the recording", "correct the offset")
    return speech


def _speech_notices(characters: Sequence[CharacterEntry], speeches: Sequence[Speech | None]) -> list[str]:
    notices: list[str] = []
    for i, (character, speech) in enumerate(zip(characters, speeches, strict=True)):
        if speech is None:
            continue
        if float(speech.waveform.abs().max()) < SILENCE:
            notices.append(
                f"The speech of {character.name} ({character.speech}) is silent: the mouth will stay shut."
            )
            continue
        for other, earlier in zip(characters[:i], speeches[:i], strict=True):
            if earlier is not None and torch.equal(earlier.waveform, speech.waveform):
                notices.append(
                    f"{other.name} and {character.name} have the same recording: both will say the same."
                )
    return notices


def _length(
    given: SceneFile, speeches: Sequence[Speech | None], defaults: SceneDefaults, notices: list[str]
) -> int:
    """F; adds a notice where speech is cut or the model was not trained for that length."""
    longest = max((speech.end for speech in speeches if speech is not None), default=0.0)
    if given.length != "auto":
        frames = int(given.length)
        if frames > defaults.max_frames:
            notices.append(
                f"{frames} frames asked for, the model was trained for {defaults.max_frames}: expect drift."
            )
    else:
        if longest <= 0:
            raise InputError(
                'length "auto" but nobody speaks', "at least one speech", "give the length in frames"
            )
        # a thousandth of a frame is rounding, not speech
        needed = max(1, math.ceil(longest * given.fps - 1e-3))
        frames = min(
            math.ceil((needed - 1) / defaults.time_factor) * defaults.time_factor + 1, defaults.max_frames
        )
    seconds = frames / given.fps
    if longest > seconds + 0.5 / given.fps:
        limit = "the longest this model makes" if frames == defaults.max_frames else "as asked for"
        notices.append(
            f"The speech lasts {longest:.2f} s, the video {seconds:.2f} s ({limit}): "
            f"the last {longest - seconds:.2f} s of speech are cut."
        )
    return frames


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
        raise InputError(f"{path.name}: {error.came}", error.expected, error.do) from error


def _matrix(rows: list[list[float]]) -> Tensor:
    if not rows or len({len(row) for row in rows}) != 1:
        raise InputError(
            "an audio-character matrix with rows of different length", "equal rows", "correct it"
        )
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), -1)


def _masks(path: Path, count: int, grid: TokenGrid) -> Tensor:
    """[N, T, h, w] from an npz file, at token or at any pixel resolution."""
    path = existing_file(path, "the masks")
    try:
        with np.load(path, allow_pickle=False) as archive:
            masks = torch.from_numpy(np.asarray(archive["masks"], dtype=np.float32))
    except (OSError, ValueError, KeyError, TypeError) as error:
        came = f"the masks {path} cannot be read"
        raise InputError(came, 'an npz file with an array "masks"', "write it with numpy.savez") from error
    tokens, frames = (count, *grid.shape), (count, grid.video_frames)
    if not bool(torch.isfinite(masks).all()) or masks.numel() == 0 or masks.min() < 0 or masks.max() > 1:
        raise InputError(f"the masks {path} hold values outside 0..1", "0..1 each", "scale them")
    if tuple(masks.shape) == tokens:
        return masks
    if masks.ndim == 4 and tuple(masks.shape[:2]) == frames:
        return grid.pixels_to_tokens(masks)
    came = f"the masks {path} have the shape {tuple(masks.shape)}"
    raise InputError(
        came, f"{tokens} (tokens) or {(*frames, 'height', 'width')} (pixels)", "correct the shape"
    )


def _sampling(given: SceneFile, base: SamplingConfig, steps: int | None, seed: int | None) -> SamplingConfig:
    speech = given.guidance_speech if given.guidance_speech is not None else given.guidance_text
    wanted: dict[str, Any] = {
        "steps": steps if steps is not None else given.steps,
        "seed": seed if seed is not None else given.seed,
        "guidance_text": given.guidance_text,
        "guidance_speech": speech,
        "scheduler": given.scheduler,
    }
    return replace(base, **{name: value for name, value in wanted.items() if value is not None})
