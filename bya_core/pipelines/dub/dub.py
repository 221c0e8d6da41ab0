"""Dub a film.

    film + scene -> find people -> regions -> denoise the regions in windows -> compose with the film -> new sound

The latents of the film are known everywhere but in the regions of the characters with a new voice: in every denoising
step, all other cells are those of the film at the noise level of the step. The speech is routed by the masks of the
characters in the film. In the finished picture, all pixels outside of the soft regions are those of the film.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from bya_core.config import DubConfig, WindowConfig
from bya_core.errors import InputError
from bya_core.io.workspace import temporary_folder
from bya_core.masks import MaskControl
from bya_core.pipelines.dub.film import FPS, Film
from bya_core.pipelines.dub.people import People, dubbed_characters, find_people
from bya_core.pipelines.dub.picture import Box, Regions, choose_box, compose, scaled
from bya_core.pipelines.dub.sound import dubbed_sound
from bya_core.pipelines.long_video import generate_long
from bya_core.pipelines.sample import Video
from bya_core.pipelines.window_files import LongVideo, fingerprint
from bya_core.progress import ProgressCallback, ProgressTracker
from bya_core.scene.original_voices import OriginalVoices
from bya_core.scene.types import Footage, Scene
from bya_core.weights.bundle import ModelBundle

SHOWN = np.array([255.0, 170.0, 0.0], np.float32)  # color of the regions in an overlay


@dataclass(frozen=True)
class Dub:
    """A film that is ready to be dubbed.

    Args:
        film: The film.
        scene: What the model generates: the scene with the footage and the masks of the characters.
        box: The part of the film that the model sees.
        regions: What is generated.
        audio: The new sound; None without.
        notices: One sentence each.
    """

    film: Film
    scene: Scene
    box: Box
    regions: Regions
    audio: tuple[Tensor, int] | None
    notices: tuple[str, ...]


@dataclass(frozen=True)
class DubbedFilm:
    """A dubbed film. The frames are made while iterating, and can be iterated repeatedly.

    Args:
        dub: The film and the regions.
        video: What the model generated.
    """

    dub: Dub
    video: Video | LongVideo

    @property
    def frames(self) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3] each, as many as the film has."""
        return (frame for frame, _ in self._composed())

    @property
    def weights(self) -> Iterator[np.ndarray]:
        """Weight of the generated picture in each frame, float32 [H, W]; 0 where the film is unchanged."""
        return (weight for _, weight in self._composed())

    @property
    def overlay(self) -> Iterator[np.ndarray]:
        """The frames with the regions in color, uint8 [H, W, 3] each."""
        return (_colored(frame, weight) for frame, weight in self._composed())

    @property
    def audio(self) -> tuple[Tensor, int] | None:
        """([channels, samples], sample rate in Hz)."""
        return self.dub.audio

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know, one sentence each."""
        return tuple(dict.fromkeys((*self.dub.notices, *self.video.notices)))

    def load(self) -> LoadedDub:
        """All frames in memory."""
        height, width = self.dub.film.size
        count = self.dub.film.num_frames
        frames = torch.empty(count, height, width, 3, dtype=torch.uint8)
        overlay, weights = torch.empty_like(frames), torch.empty(count, height, width)
        for k, (frame, weight) in enumerate(self._composed()):
            frames[k], weights[k] = torch.from_numpy(frame), torch.from_numpy(weight)
            overlay[k] = torch.from_numpy(_colored(frame, weight))
        return LoadedDub(frames, weights, overlay)

    def summary(self) -> str:
        """Who was dubbed and what was generated, then the notices, one line each."""
        dub, config = self.dub, self.dub.regions.config
        names, box = dub.scene.names, dub.box
        kept = [name for n, name in enumerate(names) if n not in dub.regions.dubbed]
        lines = [
            f"New voice: {', '.join(names[n] for n in dub.regions.dubbed)}",
            *([f"Voice and mouth kept: {', '.join(kept)}"] if kept else []),
            f"Film: {dub.film.size[1]}x{dub.film.size[0]}, {dub.film.num_frames} frames, {dub.film.fps:g} per second",
            f"Region {config.region}, feather {config.feather}, strength {config.strength:g}; the model sees "
            f"{box.width}x{box.height} pixels at ({box.left}, {box.top})",
        ]
        return "\n".join([*lines, *(f"note: {notice}" for notice in self.notices)])

    def _composed(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        dub = self.dub
        return compose(dub.film.frames(), dub.film.fps, self.video.frames, FPS, dub.box, dub.regions)


@dataclass(frozen=True)
class LoadedDub:
    """A dubbed film in memory.

    Args:
        frames: uint8 [F, H, W, 3].
        weights: of the generated picture, float32 [F, H, W].
        overlay: uint8 [F, H, W, 3], the frames with the regions in color.
    """

    frames: Tensor
    weights: Tensor
    overlay: Tensor


def _colored(frame: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """A frame with a region in color, uint8 [H, W, 3]."""
    share = 0.5 * weight[..., None]
    return np.asarray((frame + share * (SHOWN - frame)).round().astype(np.uint8))


def prepare_dub(
    film: Film,
    scene: Scene,
    model: ModelBundle,
    config: DubConfig | None = None,
    *,
    masks: np.ndarray | None = None,
    voices: OriginalVoices | None = None,
    tracker: ProgressTracker | None = None,
) -> Dub:
    """Find the characters in a film and draw what is generated.

    Args:
        film: The film.
        scene: Characters, and the new speech of some of them; the others keep voice and mouth. Its length and masks
            are not used.
        model: The model.
        config: What is generated; None = the defaults.
        masks: Masks of the characters in the film, bool [N, F, h, w] of any size at 25 frames per second.
        voices: What is known of the voices in the film.
        tracker: Reports the stages.

    Raises:
        InputError: No character with speech, a character that is not found, or region "given" without masks.
    """
    config, tracker = config or DubConfig(), tracker or ProgressTracker()
    dubbed = tuple(dubbed_characters(scene))
    if config.region == "given" and masks is None:
        raise InputError('region "given" without masks', "masks of the characters in the film", "give them")
    count = padded_length(film, model)
    padded = torch.arange(count).clamp(max=len(film.copy) - 1)
    frames = film.copy[padded]
    given = None if masks is None else masks[:, padded.numpy()]
    with tracker.stage("Finding people"):
        people = _enlarged(find_people(frames, scene, model, given), film.scale)
        box = choose_box(people, film.size, (scene.height, scene.width))
        regions = Regions(people, dubbed, config, film.size)
        footage = _footage(frames, film.scale, box, regions, (scene.height, scene.width))
        audio, sound_notices = dubbed_sound(film.sound, scene, people, dubbed, film.seconds, voices)
    grid = model.grid(count, scene.height, scene.width)
    control = MaskControl(grid.pixels_to_tokens(_seen_by_model(people.masks, film.size, box)))
    scene = replace(
        scene,
        num_frames=count,
        footage=footage,
        first_frame=rearrange(footage.frames[0], "h w c -> c h w").float() / 255,
        mask_control=control,
        routing=replace(scene.routing, mode="manual", refine=None),
        windows=WindowConfig(scene.windows.frames, scene.windows.overlap, match_colors=False),
        notices=(),
    )
    return Dub(film, scene, box, regions, audio, (*film.notices, *people.notices, *sound_notices))


def padded_length(film: Film, model: ModelBundle) -> int:
    """Frames that the model generates for a film: those of its copy, and the last one up to a length of the model."""
    factor = model.codec.time_factor
    return -(-(len(film.copy) - 1) // factor) * factor + 1


def generate_dub(
    dub: Dub,
    model: ModelBundle,
    folder: Path,
    callback: ProgressCallback | None = None,
    *,
    regenerate: int | None = None,
    regenerate_seed: int | None = None,
) -> DubbedFilm:
    """Generate the regions, window by window; finished windows in `folder` are read.

    Args:
        dub: The prepared film.
        model: The model.
        folder: For the windows, see `bya_core.pipelines.long_video.generate_long`.
        callback: As in `generate`.
        regenerate, regenerate_seed: As in `generate_long`.

    Raises:
        InputError: As `generate_long` does.
        Cancelled: `callback` returned False; finished windows are kept.
    """
    video = generate_long(dub.scene, model, folder, callback, regenerate=regenerate, regenerate_seed=regenerate_seed)
    return DubbedFilm(dub, video)


def dub_film(
    film: Film,
    scene: Scene,
    model: ModelBundle,
    config: DubConfig | None = None,
    *,
    masks: np.ndarray | None = None,
    voices: OriginalVoices | None = None,
    callback: ProgressCallback | None = None,
    folder: Path | None = None,
) -> DubbedFilm:
    """Dub a film; the generated windows stay in memory. Arguments and errors as of `prepare_dub` and `generate_dub`.

    Args:
        folder: For the finished windows until all are complete, in a subfolder per film, so that a cancelled run can be
            resumed; None = a temporary one.
    """
    tracker = ProgressTracker(callback)
    dub = prepare_dub(film, scene, model, config, masks=masks, voices=voices, tracker=tracker)
    with temporary_folder() as temporary:
        own = temporary if folder is None else folder / f"dub_{fingerprint(dub.scene, model)[:16]}"
        made = generate_dub(dub, model, own, callback).video
        assert isinstance(made, LongVideo)
        done = DubbedFilm(dub, made.load())
        made.files.remove(len(made.windows))
        return done


def _enlarged(people: People, scale: float) -> People:
    """People in pixels of the film, from those in its copy."""
    return replace(people, boxes=people.boxes * scale)


def _footage(frames: Tensor, scale: float, box: Box, regions: Regions, size: tuple[int, int]) -> Footage:
    """The part of the film that the model sees, in its size, with the region that it generates."""
    small = Box(*(round(side / scale) for side in (box.left, box.top, box.width, box.height)))
    pictures, masks = [], []
    for f, frame in enumerate(frames.numpy()):
        pictures.append(torch.from_numpy(scaled(small.cut(frame), size)).round().to(torch.uint8))
        weight = box.cut(regions.alpha(f))[None, None]
        masks.append(torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(weight), size)[0, 0] > 0)
    return Footage(torch.stack(pictures), torch.stack(masks), regions.config.strength)


def _seen_by_model(masks: np.ndarray, size: tuple[int, int], box: Box) -> Tensor:
    """Masks bool [N, F, h, w] of the whole film in the box: float [N, F, h', w']."""
    height, width = masks.shape[2:]
    across, down = width / size[1], height / size[0]
    part = Box(
        round(box.left * across), round(box.top * down),
        max(1, round(box.width * across)), max(1, round(box.height * down)),
    )  # fmt: skip
    bottom, right = part.top + part.height, part.left + part.width
    above, before = max(0, -part.top), max(0, -part.left)
    padding = (0, 0), (0, 0), (above, max(0, bottom - height)), (before, max(0, right - width))
    whole = np.pad(masks, padding) if np.any(padding) else masks
    return torch.from_numpy(whole[:, :, part.top + above : bottom + above, part.left + before : right + before]).float()
