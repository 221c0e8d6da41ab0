"""Scene to video: the whole job, top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from bya_core.canvas import reference_canvas
from bya_core.checkpoints.bundle import ModelBundle
from bya_core.errors import Cancelled
from bya_core.grid import TokenGrid
from bya_core.media import fit_image, mix_speeches, place, resample_mono
from bya_core.sampling import Conditions, StepInfo, build_scheduler, denoise
from bya_core.scene import Scene, Speech


@dataclass(frozen=True)
class Progress:
    """Where the work stands.

    Args:
        doing: what is being done, in words.
        step, total: how far that has come.
        info: while denoising, the preview latents and current masks.
    """

    doing: str
    step: int
    total: int
    info: StepInfo | None = None


Watcher = Callable[[Progress], object]
"""Called as the work goes on; returning False or raising `Cancelled` stops it."""


@dataclass(frozen=True)
class Video:
    """What `generate` makes.

    Args:
        frames: uint8 [F, H, W, 3].
        masks: [N, T, h, w] in 0..1, the masks that acted in the last step.
        grid: of the masks; `grid.tokens_to_pixels(masks)` lays them over the frames.
        audio: ([channels, samples], rate in Hz) of all speeches as recorded, or None where nobody speaks.
        notices: what a person should know, one sentence each.
        seconds: time taken by each part of the work.
    """

    frames: Tensor
    masks: Tensor
    grid: TokenGrid
    audio: tuple[Tensor, int] | None
    notices: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def generate(scene: Scene, bundle: ModelBundle, watch: Watcher | None = None) -> Video:
    """Make the video of a scene.

    Raises:
        InputError: the scene does not fit the model, or holds an image without a face.
        Cancelled: `watch` asked to stop.
    """
    work = _Work(watch)
    grid = bundle.grid(scene.num_frames, scene.height, scene.width)
    conditions = _conditions(scene, bundle, grid, work)
    with work.part("denoising", scene.sampling.steps) as step:
        scheduler = build_scheduler(scene.sampling.scheduler, bundle.scheduler_config)
        made = denoise(bundle.transformer, scheduler, conditions, scene.sampling, callback=step)
    with work.part("decoding the video"):
        pixels = bundle.codec.decode(made.latents.to(bundle.device, bundle.dtype))[0].float()
        frames = rearrange((pixels + 1) * 127.5, "c f h w -> f h w c").round().clamp(0, 255).to(torch.uint8)
    assert made.masks is not None  # a scene has at least one character
    audio = mix_speeches(scene.speeches, scene.seconds)
    notices = (*scene.notices, *_doubts(scene, bundle))
    return Video(frames.cpu(), made.masks.float().cpu(), grid, audio, notices, work.seconds)


@torch.no_grad()
def prepare(scene: Scene, bundle: ModelBundle) -> Conditions:
    """What the denoiser is told about a scene, encoded once. Raises InputError as `generate` does."""
    return _conditions(scene, bundle, bundle.grid(scene.num_frames, scene.height, scene.width), _Work(None))


def _conditions(scene: Scene, bundle: ModelBundle, grid: TokenGrid, work: _Work) -> Conditions:
    with work.part("reading the prompt"):
        text, negative = bundle.text.encode([scene.prompt]), bundle.text.encode([scene.negative_prompt])
    with work.part("looking at the faces"):
        faces = [bundle.face.encode(character.image.to(bundle.device)) for character in scene.characters]
        identity = torch.stack([face.identity for face in faces])[None].to(bundle.device, bundle.dtype)
        hidden = torch.stack([face.hidden for face in faces])[None].to(bundle.device, bundle.dtype)
        canvas = reference_canvas([face.portrait for face in faces], scene.height, scene.width)
    with work.part("listening to the speech"):
        features = torch.stack([_features(speech, scene, bundle) for speech in scene.speeches])[None]
    with work.part("preparing the model"):
        return Conditions(
            text=text,
            negative_text=negative,
            latent_shape=grid.latent_shape(bundle.codec.latent_channels),
            face_tokens=bundle.transformer.encode_faces(identity, hidden),
            dropped_face_tokens=bundle.transformer.encode_faces(identity * 0, hidden * 0),
            audio_tokens=bundle.transformer.encode_speech(features),
            silent_audio_tokens=bundle.transformer.encode_speech(features * 0),
            audio_character_matrix=scene.matrix[None],
            canvas_latents=_latents(canvas, grid, bundle),
            first_frame_latents=_latents(scene.first_frame, grid, bundle),
            forced_masks=None if scene.forced_masks is None else scene.forced_masks[None],
            forced_weight=None if scene.forced_masks is None else torch.full([1] * 5, scene.routing.blend),
        )


def _features(speech: Speech | None, scene: Scene, bundle: ModelBundle) -> Tensor:
    """[F + 4, blocks, channels] of one voice; a silent listener hears encoded silence."""
    rate = bundle.speech.sample_rate
    if speech is None:
        heard = torch.zeros(round(scene.seconds * rate))
    else:
        mono = resample_mono(speech.waveform, speech.sample_rate, rate)
        heard = place(mono[None], rate, speech.offset, speech.gain)[0]
    features = bundle.speech.encode(heard.to(bundle.device), scene.num_frames)
    return features.to(bundle.device, bundle.dtype)


def _latents(image: Tensor | None, grid: TokenGrid, bundle: ModelBundle) -> Tensor | None:
    """An image [3, H, W] in 0..1 as latents [1, T, C, H, W]: in the first latent frame, zeros after it."""
    if image is None:
        return None
    still = fit_image(image, *grid.pixels).to(bundle.device, bundle.dtype) * 2 - 1
    latents = bundle.codec.encode(rearrange(still, "c h w -> 1 c 1 h w"))
    return F.pad(latents, (0, 0, 0, 0, 0, 0, 0, grid.frames - latents.shape[1]))


def _doubts(scene: Scene, bundle: ModelBundle) -> Iterator[str]:
    """Where the scene goes beyond what the weights were trained for."""
    native, count = bundle.native, len(scene.characters)
    if bundle.max_characters is not None and count > bundle.max_characters:
        yield f"{count} characters, but {bundle.name} was trained with at most {bundle.max_characters}."
    if (scene.height, scene.width) != (native.height, native.width):
        trained = f"{native.width}x{native.height}"
        yield f"{scene.width}x{scene.height} pixels, but {bundle.name} was trained at {trained}: expect less."


class _Work:
    """Takes the time of each part and tells the watcher."""

    def __init__(self, watch: Watcher | None) -> None:
        self.watch, self.seconds = watch, dict[str, float]()

    def tell(self, progress: Progress) -> None:
        if self.watch is not None and self.watch(progress) is False:
            raise Cancelled(f"stopped while {progress.doing}")

    @contextmanager
    def part(self, doing: str, total: int = 1) -> Iterator[Callable[[StepInfo], None]]:
        self.tell(Progress(doing, 0, total))
        start = time.perf_counter()
        yield lambda info: self.tell(Progress(doing, info.step, info.total, info))
        self.seconds[doing] = round(time.perf_counter() - start, 3)
        if total == 1:
            self.tell(Progress(doing, 1, 1))
