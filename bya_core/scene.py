"""What flows through the house: characters, speeches, the scene they are in; and reading it from a file.

`python -m bya_core.scene` writes the JSON schema of scene files to docs/scene.schema.json.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from bya_core.config import RoutingConfig, SamplingConfig, WindowConfig
from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.media import existing_file, read_audio, read_image
from bya_core.scene_format import CharacterEntry, SceneFile, read_scene_file, schema_text

SILENCE = 1e-3  # peak below which a recording counts as silent (-60 dB)
SCHEMA_FILE = Path(__file__).resolve().parents[1] / "docs" / "scene.schema.json"


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


@dataclass(frozen=True)
class Scene:
    """Everything that is asked for.

    Args:
        prompt: describes who is where and does what.
        characters: N of them, in the order of all masks.
        speeches: M of them; None = a silent listener (hears encoded silence, not nothing).
        audio_character_matrix: [M, N], 1 where speech m moves character n; None = speech i moves character i.
        first_frame: [3, H, W] in 0..1 that fixes the start, or None.
        height, width: of the video, in pixels.
        num_frames: F.
        fps: frames a second.
        forced_masks: [N, T, h, w] in 0..1, masks given by a person; with routing.mode "manual" the only ones.
        forced_blend: [N], 0 = leave a character to the router ... 1 = only its given mask; None = 1.
        forced_span: [N, 2], share of the run (from, to; 0..1) in which given masks act; None = all of it.
        bind: "given" = the matrix says who hears whom; "auto" = voices are matched to faces.
        speech_strength: [N] in 0..2, how strongly speech moves each character; None = 1, as trained.
        prompts: further prompts for parts of the video, see `PromptSpan`.
        windows: how it is made where it is longer than a window.
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
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    forced_masks: Tensor | None = None
    forced_blend: Tensor | None = None
    forced_span: Tensor | None = None
    bind: Literal["given", "auto"] = "given"
    speech_strength: Tensor | None = None
    prompts: tuple[PromptSpan, ...] = ()
    windows: WindowConfig = field(default_factory=WindowConfig)
    notices: tuple[str, ...] = ()

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
            raise InputError(
                "an audio-character matrix with values outside 0..1", "0..1 each", "correct them"
            )
        if self.routing.mode == "manual" and self.forced_masks is None:
            came = 'router mode "manual" without masks'
            raise InputError(came, "a mask for each character", "give masks, or choose another mode")
        for what, given in (
            ("masks", self.forced_masks),
            ("mask blends", self.forced_blend),
            ("mask spans", self.forced_span),
            ("speech strengths", self.speech_strength),
        ):
            if given is not None and given.shape[0] != len(names):
                came = f"{given.shape[0]} {what} for {len(names)} characters"
                raise InputError(came, "one for each character", f"correct the {what}")

    @property
    def matrix(self) -> Tensor:
        """[M, N], the identity where none is given."""
        if self.audio_character_matrix is not None:
            return self.audio_character_matrix
        return torch.eye(len(self.speeches), len(self.characters))

    @property
    def seconds(self) -> float:
        """Length of the video."""
        return self.num_frames / self.fps


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


if __name__ == "__main__":
    SCHEMA_FILE.parent.mkdir(exist_ok=True)
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
