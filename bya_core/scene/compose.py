"""Builds a scene from images and audio in memory: characters, sizes, notices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from bya_core.config import SamplingConfig, WindowConfig
from bya_core.errors import InputError
from bya_core.scene.checks import scene_notices, speech_frames, stream_notices
from bya_core.scene.dialogue import edit_speeches, parse_dialogue
from bya_core.scene.types import Character, FrameFit, PromptSpan, Scene, SceneDefaults, Speech, check_names
from bya_core.scene.windows import round_lengths


@dataclass(frozen=True)
class CastMember:
    """A character with its speech.

    Args:
        name: Unique name.
        image: Reference image [3, H, W] in 0..1.
        speech: Speech of the character; None for a silent listener.
        speech_strength: Strength of the speech conditioning, 0..2; 1 is the trained strength.
    """

    name: str
    image: Tensor
    speech: Speech | None = None
    speech_strength: float = 1.0


Length = Literal["as long as the speech", "seconds", "frames"]
LENGTHS: tuple[Length, ...] = get_args(Length)
"""How the length of a video is given."""


@dataclass(frozen=True)
class SceneOptions:
    """Options of a scene besides its characters; None selects the default of the model.

    Args:
        prompt, negative_prompt: What the video should and should not contain.
        first_frame: First frame [3, H, W] in 0..1, or None.
        width, height: Size in pixels.
        frames: Number of video frames; None fits the longest speech.
        sampling: Sampling options.
        timed_prompts: Prompts for parts of the video, see `parse_prompts`.
        window_frames, overlap_frames: See `WindowConfig`.
        first_frame_fit: See `bya_core.encoders.canvas.first_frame`.
        force: Accept reference images of a kind that the model was not trained on.
        dialogue: Edits of the voices, see `bya_core.scene.dialogue.parse_dialogue`.
    """

    prompt: str
    negative_prompt: str = ""
    first_frame: Tensor | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    sampling: SamplingConfig = SamplingConfig()
    timed_prompts: str = ""
    window_frames: int | None = None
    overlap_frames: int | None = None
    first_frame_fit: FrameFit = "crop"
    force: bool = False
    dialogue: str = ""


def combine_casts(*casts: Sequence[CastMember]) -> tuple[CastMember, ...]:
    """The members of several casts in order. Raises InputError for duplicate names."""
    members = tuple(member for cast in casts for member in cast)
    check_names([member.name for member in members])
    return members


def compose(members: Sequence[CastMember], options: SceneOptions, defaults: SceneDefaults) -> Scene:
    """Build the scene of a cast.

    Raises:
        InputError: No characters, a size that the model does not support, or neither length nor speech.
    """
    names = [member.name for member in members]
    edited = edit_speeches([member.speech for member in members], names, parse_dialogue(options.dialogue))
    speeches = edited.speeches
    frames = options.frames
    if frames is None:
        frames = speech_frames(speeches, Scene.fps, defaults.time_factor)
    windows = WindowConfig(options.window_frames, options.overlap_frames)
    frames, windows, rounded = round_lengths(frames, windows, defaults.time_factor)
    height = defaults.height if options.height is None else options.height
    width = defaults.width if options.width is None else options.width
    defaults.grid(frames, height, width)
    strengths = torch.tensor([member.speech_strength for member in members])
    scene = Scene(
        prompt=options.prompt,
        negative_prompt=options.negative_prompt,
        characters=tuple(Character(member.name, member.image) for member in members),
        speeches=speeches,
        first_frame=options.first_frame,
        first_frame_fit=options.first_frame_fit,
        height=height,
        width=width,
        num_frames=frames,
        sampling=options.sampling,
        prompts=parse_prompts(options.timed_prompts),
        windows=windows,
        speech_strength=None if bool((strengths == 1).all()) else strengths,
        force=options.force,
    )
    streams = stream_notices(names, speeches, [None] * len(names))
    return replace(scene, notices=(*edited.notices, *streams, *rounded, *scene_notices(scene, defaults)))


def matrix_rows(text: str) -> list[list[float]]:
    """Parse rows of numbers, such as "1 0; 0 1".

    Raises:
        InputError: Something that is not a number, or a number outside 0..1.
    """
    rows = [row.replace(",", " ").split() for row in text.replace("\n", ";").split(";") if row.strip()]
    try:
        numbers = [[float(number) for number in row] for row in rows]
    except ValueError as error:
        problem = f'the audio-character matrix "{text}"'
        raise InputError(problem, "rows of numbers in 0..1, such as 1 0; 0 1", "use numbers only") from error
    if not all(0 <= number <= 1 for row in numbers for number in row):
        raise InputError(f'the audio-character matrix "{text}"', "numbers in 0..1", "correct them")
    return numbers


def parse_matrix(text: str, speeches: int, characters: int) -> Tensor | None:
    """Parse an audio-character matrix, see `matrix_rows`; None for an empty text.

    Raises:
        InputError: Invalid numbers, or a wrong number of rows or columns.
    """
    numbers = matrix_rows(text)
    if not numbers:
        return None
    if len(numbers) != speeches or {len(row) for row in numbers} != {characters}:
        expected = f"{speeches} rows of {characters} numbers in 0..1, such as 1 0; 0 1"
        hint = "use one row per speech and one column per character"
        raise InputError(f'the audio-character matrix "{text}"', expected, hint)
    return torch.tensor(numbers)


def parse_prompts(text: str) -> tuple[PromptSpan, ...]:
    """Parse timed prompts, one per line in seconds of the video, such as "2.5 - 4: Ada laughs".

    Raises:
        InputError: A line of another form.
    """
    spans = []
    for line in filter(None, map(str.strip, text.splitlines())):
        found = re.fullmatch(r"([\d.]+)\s*(?:-|to)\s*([\d.]+)\s*s?\s*:\s*(.+)", line)
        try:
            start, end, prompt = found.groups() if found else ("", "", "")
            times = float(start), float(end)
        except ValueError as error:
            expected = "seconds and a prompt, such as 2.5 - 4: Ada laughs"
            raise InputError(f'the timed prompt "{line}"', expected, "use one line per part") from error
        spans.append(PromptSpan(*times, prompt))
    return tuple(spans)


def video_frames(length: Length, seconds: float, frames: int) -> int | None:
    """Number of video frames of a length, not yet rounded; None fits the longest speech.

    Raises:
        InputError: An unknown kind of length.
    """
    if length not in LENGTHS:
        raise InputError(f'the length "{length}"', " or ".join(f'"{each}"' for each in LENGTHS), "choose one of them")
    if length == "seconds":
        return max(1, round(seconds * Scene.fps))
    return frames if length == "frames" else None


def override_sampling(base: SamplingConfig, **options: Any) -> SamplingConfig:
    """Override the sampling options of a model; None keeps the model's.

    Without an own value, the audio guidance scale follows an overridden guidance scale.
    """
    if options.get("audio_guidance_scale") is None:
        options["audio_guidance_scale"] = options.get("guidance_scale")
    return replace(base, **{name: value for name, value in options.items() if value is not None})


def summary(scene: Scene) -> str:
    """Size, length, characters, sampling options and notices, one line each."""
    roles = ["listener" if speech is None else "speaker" for speech in scene.speeches]
    characters = ", ".join(f"{name} ({role})" for name, role in zip(scene.names, roles, strict=True))
    sampling = scene.sampling
    return "\n".join(
        [
            f"{scene.width}x{scene.height} pixels, {scene.num_frames} frames, {scene.seconds:.2f} s",
            f"{len(scene.characters)} characters: {characters}",
            f"{sampling.steps} steps ({sampling.scheduler}), guidance scale {sampling.guidance_scale:g} (text) and "
            f"{sampling.audio_guidance_scale:g} (audio), seed {sampling.seed}",
            *(f"note: {notice}" for notice in scene.notices),
        ]
    )
