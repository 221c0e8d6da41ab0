"""The data types of a scene. `bya_core.scene.loader.load_scene` reads one from files."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from bya_core.config import MAX_NAME, MAX_SECONDS, MAX_TEXT, RouterConfig, SamplingConfig, WindowConfig
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.io.media import Video, is_silent
from bya_core.masks import MaskControl

FrameFit = Literal["crop", "pad", "stretch"]
MAX_AREA = 16  # times the area that a model was trained with, and its part; attention is quadratic in the area


@dataclass(frozen=True)
class Character:
    """One person.

    Args:
        name: Unique name.
        image: Reference image [3, H, W] in 0..1.
    """

    name: str
    image: Tensor


@dataclass(frozen=True)
class Speech:
    """One audio stream.

    Args:
        waveform: [channels, samples] float32.
        sample_rate: Sample rate in Hz.
        offset: Start in the video, in seconds; negative values trim the start of the recording.
        gain: Gain in dB, for the model and for the audio of the video.
        unread: Seconds of the recording after the waveform, which the video does not need.
    """

    waveform: Tensor
    sample_rate: int
    offset: float = 0.0
    gain: float = 0.0
    unread: float = 0.0

    @property
    def end(self) -> float:
        """End of the whole recording in the video, in seconds."""
        return self.offset + self.waveform.shape[-1] / self.sample_rate + self.unread

    @property
    def silent(self) -> bool:
        """Whether the signal that a model receives in the video has a peak below -60 dB."""
        first = max(0, round(-self.offset * self.sample_rate))
        return is_silent(self.waveform[:, first:] * 10 ** (self.gain / 20), self.sample_rate)


def rotate_speeches(matrix: Tensor) -> Tensor:
    """Assign each speech of an audio-character matrix [M, N] to the next character, the last one to the first."""
    return matrix.roll(1, dims=1)


@dataclass(frozen=True)
class PromptSpan:
    """A prompt for a part of the video.

    Args:
        start, end: Range in seconds.
        prompt: Replaces the prompt of the scene.
    """

    start: float
    end: float
    prompt: str

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= MAX_SECONDS:
            problem = f"a prompt from {self.start:g} to {self.end:g} s"
            expected = f"a start of at least 0 and a later end of at most {MAX_SECONDS} s"
            raise InputError(problem, expected, "correct its times")


@dataclass(frozen=True)
class Footage:
    """An existing video of which a part is generated again.

    Args:
        frames: uint8 [F, H, W, 3], in the size, length and frame rate of the scene.
        region: bool [F, H, W], the pixels that are generated; all others stay as they are.
        strength: In 0..1, the fraction of the denoising steps that are run; 1 starts from noise.

    Raises:
        InputError: Frames and region of different sizes, or a strength out of range.
    """

    frames: Tensor
    region: Tensor
    strength: float = 1.0

    def __post_init__(self) -> None:
        if tuple(self.region.shape) != tuple(self.frames.shape[:3]):
            problem = f"a region of shape {list(self.region.shape)} for footage of {list(self.frames.shape)}"
            raise InputError(problem, f"{list(self.frames.shape[:3])}", "draw it for the same frames")
        if not 0 < self.strength <= 1:
            raise InputError(f"a strength of {self.strength:g}", "more than 0, at most 1", "correct it")

    def part(self, start: int, stop: int) -> Footage:
        """The frames from `start` to `stop`."""
        return replace(self, frames=self.frames[start:stop], region=self.region[start:stop])


@dataclass(frozen=True)
class Scene:
    """The input of `generate`.

    Args:
        prompt: Description of the video.
        characters: N characters, in the order of all masks.
        speeches: M audio streams; None is a silent listener.
        height: Height in pixels.
        width: Width in pixels.
        num_frames: Number of video frames F.
        audio_character_matrix: [M, N] in 0..1, which speech drives which character; None assigns speech i to
            character i.
        first_frame: First frame [3, H, W] in 0..1, or None.
        negative_prompt: What the video should not contain.
        fps: Frames per second.
        sampling: Sampling options.
        routing: Router options.
        mask_control: Given masks on the token grid; the only masks with router mode "manual".
        bind: "given" uses the matrix, "auto" matches voices to faces.
        speech_strength: [N] in 0..2, strength of the speech conditioning per character; None is 1.
        prompts: Prompts for parts of the video.
        windows: Options of videos longer than one window.
        sound: Audio of the video if it is one recording of all speakers; None mixes the speeches.
        notices: Warnings, one sentence each.
        first_frame_fit: How the first frame is fitted to the size, see `bya_core.encoders.canvas.first_frame`.
        reference_video: Video of the characters saying the speeches, from which bind "auto" takes who speaks; None
            matches voices to the reference images.
        force: Accept reference images of a kind that the model was not trained on.
        footage: Video of which only a part is generated; None generates all. The characters' masks are given then
            (router mode "manual").

    Raises:
        InputError: No characters, duplicate names, or fields that do not match.
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
    reference_video: Video | None = None
    force: bool = False
    footage: Footage | None = None

    def __post_init__(self) -> None:
        names = self.names
        if not names:
            raise InputError("a scene with 0 characters", "at least 1", "add a character")
        check_names(names)
        for text in (self.prompt, self.negative_prompt, *(span.prompt for span in self.prompts)):
            check_text(text)
        shape, expected = self.matrix.shape, (len(self.speeches), len(names))
        if tuple(shape) != expected:
            rule = f"{expected[0]} rows (speeches) x {expected[1]} columns (characters)"
            problem = f"an audio-character matrix with {' x '.join(map(str, shape))} entries"
            raise InputError(problem, rule, "correct its shape, or remove it")
        if not _within(self.matrix, 1):
            raise InputError("an audio-character matrix with values outside 0..1", "values in 0..1", "correct them")
        if self.reference_video is not None and self.bind != "auto":
            problem = "a reference video without automatic audio assignment"
            raise InputError(problem, 'audio assignment "auto"', "set it, or remove the reference video")
        if self.routing.mode == "manual" and self.mask_control is None:
            hint = "add masks, or choose another mode"
            raise InputError('router mode "manual" without masks', "a mask for each character", hint)
        masks = None if self.mask_control is None else self.mask_control.masks
        for name, values in (("masks", masks), ("speech strengths", self.speech_strength)):
            if values is not None and values.shape[0] != len(names):
                problem = f"{values.shape[0]} {name} for {len(names)} characters"
                raise InputError(problem, "one for each character", f"correct the {name}")
        if self.speech_strength is not None and not _within(self.speech_strength, 2):
            problem = f"speech strengths {self.speech_strength.tolist()}"
            raise InputError(problem, "values in 0..2", "correct the speech strengths")
        if self.footage is not None:
            size, expected_size = tuple(self.footage.region.shape), (self.num_frames, self.height, self.width)
            if size != expected_size:
                raise InputError(f"footage of {list(size)}", f"{list(expected_size)}", "scale it to the scene")
            if self.routing.mode != "manual":
                problem = f'footage with router mode "{self.routing.mode}"'
                raise InputError(problem, 'router mode "manual"', "give the masks of the characters in the footage")
        for one, other in pairwise(sorted(self.prompts, key=lambda span: span.start)):
            if other.start < one.end:
                problem = f"prompts from {one.start:g} to {one.end:g} s and from {other.start:g} to {other.end:g} s"
                raise InputError(problem, "one prompt at a time", "start the second where the first ends")

    @property
    def names(self) -> list[str]:
        """Names of the characters."""
        return [character.name for character in self.characters]

    @property
    def matrix(self) -> Tensor:
        """Audio-character matrix [M, N], by default the identity."""
        if self.audio_character_matrix is not None:
            return self.audio_character_matrix
        return torch.eye(len(self.speeches), len(self.characters))

    @property
    def sounds(self) -> Sequence[Speech | None]:
        """Audio streams that are mixed into the audio of the video."""
        return self.speeches if self.sound is None else (self.sound,)

    @property
    def seconds(self) -> float:
        """Length of the video in seconds."""
        return self.num_frames / self.fps


def check_names(names: Sequence[str]) -> None:
    """Check the names of characters.

    Raises:
        InputError: A name that is empty, too long, with line breaks or other control characters, or that differs from
            another one only in invisible ways: normal form, surrounding spaces or marks of writing direction.
    """
    seen: set[str] = set()
    for name in names:
        key = name_key(name)
        if not key:
            raise InputError("a character with an empty name", "a name", "fill it in")
        if len(name) > MAX_NAME:
            problem = f'a character with the name "{name[:40]}..." of {len(name)} characters'
            raise InputError(problem, f"at most {MAX_NAME} characters", "shorten it")
        if any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in name):
            problem = f'a character with the name "{name}"'
            raise InputError(problem, "a name without line breaks and control characters", "rename it")
        if key in seen:
            raise InputError(f'two characters named "{name}"', "unique names", "rename one")
        seen.add(key)


def check_text(text: str) -> None:
    """Raise InputError for a prompt that is too long or is not Unicode text."""
    if len(text) > MAX_TEXT:
        problem = f'the prompt "{text[:40]}..." of {len(text)} characters'
        raise InputError(problem, f"at most {MAX_TEXT} characters", "shorten it")
    if any(unicodedata.category(each) == "Cs" for each in text):
        raise InputError(f'the prompt "{text}" with half of a surrogate pair', "Unicode text", "correct it")


def name_key(name: str) -> str:
    """A name in the form in which two names are compared: NFC, without surrounding spaces and invisible marks."""
    visible = "".join(each for each in name if unicodedata.category(each) != "Cf" or each in "\u200c\u200d")
    return unicodedata.normalize("NFC", visible).strip()


def _within(values: Tensor, maximum: float) -> bool:
    """Whether all values are finite and in 0..maximum."""
    return bool(((values >= 0) & (values <= maximum)).all())


def prompt_at(scene: Scene, start: float, end: float) -> str:
    """The prompt that covers most of the time from `start` to `end` seconds.

    The scene's prompt covers the time without a timed prompt. Ties go to timed prompts, and among them to the first.
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
    """Defaults and limits of a model.

    Args:
        height, width: Default size in pixels.
        max_frames: Number of video frames that the model was trained with.
        size_unit: Height and width are multiples of it.
        time_factor: The number of frames is a multiple of it, plus 1.
        sampling: Default sampling options.
    """

    height: int
    width: int
    max_frames: int
    size_unit: int
    time_factor: int
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def grid(self, num_frames: int, height: int, width: int) -> TokenGrid:
        """Token grid of a video.

        Raises:
            InputError: A size or length that the model does not support.
        """
        grid = TokenGrid.from_pixels(
            num_frames, height, width, patch=1, space_factor=self.size_unit, time_factor=self.time_factor
        )
        if height * width > MAX_AREA * self.height * self.width:
            expected = f"at most {MAX_AREA} times the area of the model's {self.width}x{self.height}"
            raise InputError(f"{width}x{height} pixels", expected, "use a smaller width and height")
        if height * width * MAX_AREA < self.height * self.width or min(height, width) < 2 * self.size_unit:
            least = 2 * self.size_unit
            expected = f"at least {least} pixels per side and 1/{MAX_AREA} of the model's {self.width}x{self.height}"
            raise InputError(f"{width}x{height} pixels", expected, "use a larger width and height")
        return grid
