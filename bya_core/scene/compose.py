"""A scene put together from pictures and recordings in memory: the cast, the sizes, the notices."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bya_core.config import SamplingConfig, WindowConfig
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.scene.checks import length_notices, stream_notices
from bya_core.scene.loader import prompt_notices
from bya_core.scene.types import Character, FrameFit, PromptSpan, Scene, SceneDefaults, Speech

LARGEST = 16  # times the area a model was trained for; more is not asked of a machine


@dataclass(frozen=True)
class Member:
    """One character with its voice.

    Args:
        name: unlike that of every other character.
        image: [3, H, W] in 0..1.
        speech: None = a silent listener.
        speech_strength: 0..2, how strongly the voice moves the character; 1 = as trained.
    """

    name: str
    image: Tensor
    speech: Speech | None = None
    speech_strength: float = 1.0


@dataclass(frozen=True)
class Wishes:
    """What is asked of a video beside its cast; 0 leaves a choice to the model or to the voices.

    Args:
        prompt, negative_prompt: what is seen and what is not.
        first_frame: [3, H, W] in 0..1, or None.
        width, height: in pixels.
        frames: video frames; 0 = as long as the longest voice.
        sampling: steps, scales, scheduler, seed.
        timed_prompts: see `parse_prompts`.
        window_frames, overlap_frames: see `WindowConfig`.
        first_frame_fit: see `bya_core.encoders.canvas.first_frame`.
    """

    prompt: str
    negative_prompt: str = ""
    first_frame: Tensor | None = None
    width: int = 0
    height: int = 0
    frames: int = 0
    sampling: SamplingConfig = SamplingConfig()
    timed_prompts: str = ""
    window_frames: int = 0
    overlap_frames: int = 0
    first_frame_fit: FrameFit = "crop"


def joined(*casts: Sequence[Member]) -> tuple[Member, ...]:
    """All members of several casts, in order. Raises InputError where a name comes twice."""
    members = tuple(member for cast in casts for member in cast)
    names = [member.name for member in members]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f'two characters named "{twice}"', "a name of its own for each", "rename one")
    return members


def compose(members: Sequence[Member], wishes: Wishes, defaults: SceneDefaults) -> Scene:
    """The scene of a cast.

    Raises:
        InputError: nobody in it, sizes that the model cannot make, or no way to tell how long it shall be.
    """
    names, speeches = [member.name for member in members], [member.speech for member in members]
    frames = _frames(speeches, wishes.frames, defaults)
    height, width = wishes.height or defaults.height, wishes.width or defaults.width
    TokenGrid.from_pixels(
        frames, height, width, patch=1, space_factor=defaults.size_unit, time_factor=defaults.time_factor
    )
    _possible(height, width, defaults)
    strengths = torch.tensor([member.speech_strength for member in members])
    scene = Scene(
        prompt=wishes.prompt,
        negative_prompt=wishes.negative_prompt,
        characters=tuple(Character(member.name, member.image) for member in members),
        speeches=tuple(speeches),
        first_frame=wishes.first_frame,
        first_frame_fit=wishes.first_frame_fit,
        height=height,
        width=width,
        num_frames=frames,
        sampling=wishes.sampling,
        prompts=parse_prompts(wishes.timed_prompts),
        windows=WindowConfig(wishes.window_frames or None, wishes.overlap_frames or None),
        speech_strength=None if bool((strengths == 1).all()) else strengths,
    )
    notices = (
        *stream_notices(names, speeches, [None] * len(names)),
        *length_notices(names, speeches, scene.seconds, "as asked for"),
        *prompt_notices(scene, defaults),
    )
    window, trained = min(scene.windows.frames or defaults.max_frames, frames), defaults.max_frames
    if window > trained:
        notices = (*notices, f"{window} frames in one go, the model was trained for {trained}: expect drift.")
    return replace(scene, notices=notices)


def _possible(height: int, width: int, defaults: SceneDefaults) -> None:
    """Refuses what would only exhaust the machine: attention grows with the square of the picture's area."""
    if height * width > LARGEST * defaults.height * defaults.width:
        raise InputError(
            f"{width}x{height} pixels",
            f"at most {LARGEST} times the area that the model was trained for ({defaults.width}x{defaults.height})",
            "give a smaller width and height; 0 takes the model's",
        )


def _frames(speeches: Sequence[Speech | None], asked: int, defaults: SceneDefaults) -> int:
    """F: as asked for, or as many as the longest speech needs."""
    if asked:
        return asked
    longest = max((speech.end for speech in speeches if speech is not None), default=0.0)
    if longest <= 0:
        raise InputError("length 0 (as long as the speech) but nobody speaks", "a speech", "give the length in frames")
    needed = max(1, math.ceil(longest * Scene.fps - 1e-3))  # a thousandth of a frame is rounding, not speech
    return math.ceil((needed - 1) / defaults.time_factor) * defaults.time_factor + 1


def matrix_rows(text: str) -> list[list[float]]:
    """Rows of numbers as they are written, such as "1 0; 0 1"; none where nothing is.

    Raises:
        InputError: something that is no number, or numbers outside 0..1.
    """
    rows = [row.replace(",", " ").split() for row in text.replace("\n", ";").split(";") if row.strip()]
    try:
        numbers = [[float(number) for number in row] for row in rows]
    except ValueError as error:
        came = f'the audio-character matrix "{text}"'
        raise InputError(came, "rows of numbers in 0..1, such as 1 0; 0 1", "write numbers only") from error
    if not all(0 <= number <= 1 for row in numbers for number in row):
        raise InputError(f'the audio-character matrix "{text}"', "numbers in 0..1", "correct them")
    return numbers


def parse_matrix(text: str, speeches: int, characters: int) -> Tensor | None:
    """An audio-character matrix in words, see `matrix_rows`; None where nothing is written.

    Raises:
        InputError: no numbers, or another number of rows or columns.
    """
    numbers = matrix_rows(text)
    if not numbers:
        return None
    if len(numbers) != speeches or {len(row) for row in numbers} != {characters}:
        rule = f"{speeches} rows of {characters} numbers in 0..1, such as 1 0; 0 1"
        raise InputError(f'the audio-character matrix "{text}"', rule, "give one row a voice, one column a character")
    return torch.tensor(numbers)


def parse_prompts(text: str) -> tuple[PromptSpan, ...]:
    """Further prompts, one a line, in seconds of the video, such as "2.5 - 4: Ada laughs".

    Raises:
        InputError: a line that is something else.
    """
    spans = []
    for line in filter(None, map(str.strip, text.splitlines())):
        found = re.fullmatch(r"([\d.]+)\s*(?:-|to)\s*([\d.]+)\s*s?\s*:\s*(.+)", line)
        try:
            start, end, prompt = found.groups() if found else ("", "", "")
            spans.append(PromptSpan(float(start), float(end), prompt))
        except InputError:
            raise
        except ValueError as error:
            rule = "seconds and a prompt, such as 2.5 - 4: Ada laughs"
            raise InputError(f'the timed prompt "{line}"', rule, "write one such line for each part") from error
    return tuple(spans)


def chosen_sampling(
    base: SamplingConfig, *, steps: int, guidance_scale: float, audio_guidance_scale: float, scheduler: str, seed: int
) -> SamplingConfig:
    """The settings that suit a model, with what was chosen in place of them; 0 (or "as the model") chooses nothing.

    A guidance of speech that is not chosen follows that of the prompt only where the latter was chosen.
    """
    chosen: dict[str, Any] = {"seed": seed}
    if steps:
        chosen["steps"] = steps
    if guidance_scale:
        chosen["guidance_scale"] = guidance_scale
    if audio_guidance_scale or guidance_scale:
        chosen["audio_guidance_scale"] = audio_guidance_scale or guidance_scale
    if scheduler in ("dpm", "ddim"):
        chosen["scheduler"] = scheduler
    return replace(base, **chosen)


def summary(scene: Scene) -> str:
    """Size, length, cast and notices, one line each."""
    people = ", ".join(
        f"{character.name} ({'listens' if speech is None else 'speaks'})"
        for character, speech in zip(scene.characters, scene.speeches, strict=True)
    )
    sampling = scene.sampling
    return "\n".join(
        [
            f"{scene.width}x{scene.height} pixels, {scene.num_frames} frames = {scene.seconds:.2f} s",
            f"{len(scene.characters)} in the scene: {people}",
            f"{sampling.steps} steps ({sampling.scheduler}), guidance {sampling.guidance_scale:g} (text) and "
            f"{sampling.audio_guidance_scale:g} (speech), seed {sampling.seed}",
            *(f"note: {notice}" for notice in scene.notices),
        ]
    )
