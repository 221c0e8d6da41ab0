"""What flows through the house: characters, speeches, and the scene they are in (`scene_file.load` reads one)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from bya_core.config import RouterConfig, SamplingConfig, WindowConfig
from bya_core.errors import InputError
from bya_core.masks import MaskControl

FrameFit = Literal["crop", "pad", "stretch"]
SILENCE = 1e-3  # peak below which a recording counts as silent (-60 dB)


@dataclass(frozen=True)
class Character:
    """One person.

    Args:
        name: unlike that of every other character.
        image: [3, H, W] in 0..1, the reference picture.
    """

    name: str
    image: Tensor


@dataclass(frozen=True)
class Speech:
    """One voice.

    Args:
        waveform: [channels, samples] float32, as recorded.
        sample_rate: in Hz.
        offset: seconds of video before it starts; negative cuts its beginning.
        gain: in dB, for the model and for the sound of the video alike.
    """

    waveform: Tensor
    sample_rate: int
    offset: float = 0.0
    gain: float = 0.0

    @property
    def end(self) -> float:
        """Second of the video at which it ends."""
        return self.offset + self.waveform.shape[-1] / self.sample_rate

    @property
    def silent(self) -> bool:
        """Whether there is nothing to hear in it."""
        return self.waveform.numel() == 0 or float(self.waveform.abs().max()) < SILENCE


def moved_on(matrix: Tensor) -> Tensor:
    """An audio-character matrix [M, N] with swapped voices: each moves the next character, the last one the first."""
    return matrix.roll(1, dims=1)


@dataclass(frozen=True)
class PromptSpan:
    """A prompt for a part of the video.

    Args:
        start, end: in seconds.
        prompt: in place of the scene's.
    """

    start: float
    end: float
    prompt: str

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            came = f"a prompt from {self.start:g} to {self.end:g} s"
            raise InputError(came, "a start of at least 0 and a later end", "correct its times")


@dataclass(frozen=True)
class Scene:
    """Everything that is asked for.

    Args:
        prompt: describes who is where and does what.
        characters: N of them, in the order of all masks.
        speeches: M of them; None = a silent listener (hears encoded silence, not nothing).
        audio_character_matrix: [M, N], 1 where speech m moves character n; None = speech i moves character i.
        first_frame: [3, H, W] in 0..1 that fixes the start, or None.
        first_frame_fit: how it gets the size of the video; see `canvas.first_frame`.
        height, width: of the video, in pixels.
        num_frames: F.
        fps: frames a second.
        mask_control: character masks provided by the user; required by routing.mode "manual".
        bind: "given" = the matrix says who hears whom; "auto" = voices are matched to faces.
        speech_strength: [N] in 0..2, how strongly speech moves each character; None = 1, as trained.
        prompts: further prompts for parts of the video, see `PromptSpan`.
        windows: how it is made where it is longer than a window.
        sound: what is heard in the video where that is one recording of everybody; None = the mix of the speeches.
        notices: what a person should know about it, one sentence each (silent recording, speech cut, ...).

    Raises:
        InputError: no characters, equal names, or parts that do not fit each other.
    """

    prompt: str
    characters: Sequence[Character]
    speeches: Sequence[Speech | None]
    height: int
    width: int
    num_frames: int
    audio_character_matrix: Tensor | None = None
    first_frame: Tensor | None = None
    negative_prompt: str = ""
    fps: float = 25.0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    routing: RouterConfig = field(default_factory=RouterConfig)
    mask_control: MaskControl | None = None
    bind: Literal["given", "auto"] = "given"
    speech_strength: Tensor | None = None
    prompts: tuple[PromptSpan, ...] = ()
    windows: WindowConfig = field(default_factory=WindowConfig)
    sound: Speech | None = None
    notices: tuple[str, ...] = ()
    first_frame_fit: FrameFit = "crop"

    def __post_init__(self) -> None:
        names = [character.name for character in self.characters]
        if not names:
            raise InputError("a scene with 0 characters", "at least 1", "add a character")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f'two characters named "{twice}"', "a name of its own for each", "rename one")
        shape, expected = self.matrix.shape, (len(self.speeches), len(names))
        if tuple(shape) != expected:
            came = f"an audio-character matrix with {' x '.join(map(str, shape))} entries"
            rule = f"{expected[0]} rows (speeches) x {expected[1]} columns (characters)"
            raise InputError(came, rule, "correct its shape, or leave it out")
        if not bool(torch.isfinite(self.matrix).all()) or self.matrix.min() < 0 or self.matrix.max() > 1:
            raise InputError("an audio-character matrix with values outside 0..1", "0..1 each", "correct them")
        if self.routing.mode == "manual" and self.mask_control is None:
            came = 'router mode "manual" without masks'
            raise InputError(came, "a mask for each character", "give masks, or choose another mode")
        for what, given in (
            ("masks", None if self.mask_control is None else self.mask_control.masks),
            ("speech strengths", self.speech_strength),
        ):
            if given is not None and given.shape[0] != len(names):
                came = f"{given.shape[0]} {what} for {len(names)} characters"
                raise InputError(came, "one for each character", f"correct the {what}")
        for what, values, most in (("speech strengths", self.speech_strength, 2),):
            if values is not None and not bool(((values >= 0) & (values <= most)).all()):
                raise InputError(f"{what} {values.tolist()}", f"0..{most} each", f"correct the {what}")
        spans = sorted(self.prompts, key=lambda span: span.start)
        for before, after in pairwise(spans):
            if after.start < before.end:
                came = f"prompts from {before.start:g} to {before.end:g} s and from {after.start:g} to {after.end:g} s"
                raise InputError(came, "one prompt at a time", "let the second start where the first ends")

    @property
    def names(self) -> list[str]:
        """Names of the characters."""
        return [character.name for character in self.characters]

    @property
    def matrix(self) -> Tensor:
        """[M, N], the identity where none is given."""
        if self.audio_character_matrix is not None:
            return self.audio_character_matrix
        return torch.eye(len(self.speeches), len(self.characters))

    @property
    def sounds(self) -> Sequence[Speech | None]:
        """What is mixed into the sound of the video."""
        return self.speeches if self.sound is None else (self.sound,)

    @property
    def seconds(self) -> float:
        """Length of the video."""
        return self.num_frames / self.fps


def prompt_at(scene: Scene, start: float, end: float) -> str:
    """The prompt that covers most of the time from `start` to `end` seconds.

    Where no further prompt stands, the scene's own holds. Of two that cover the same, the further and earlier one.
    """
    covered: dict[str, float] = {}
    for span in scene.prompts:
        shared = max(0.0, min(span.end, end) - max(span.start, start))
        covered[span.prompt] = covered.get(span.prompt, 0.0) + shared
    rest = (end - start) - sum(covered.values())
    covered[scene.prompt] = covered.get(scene.prompt, 0.0) + rest
    return max(covered, key=lambda prompt: round(covered[prompt], 6))


@dataclass(frozen=True)
class SceneDefaults:
    """What a scene file may leave out, and what sizes the model can make.

    Args:
        height, width: used where the scene names none, in pixels.
        max_frames: longest video the model was trained for.
        size_unit: height and width are multiples of it.
        time_factor: frames are 1 + a multiple of it.
        sampling: used where the scene names no settings.
    """

    height: int
    width: int
    max_frames: int
    size_unit: int
    time_factor: int
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
