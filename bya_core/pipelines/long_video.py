"""Videos of any length, generated window by window.

    plan -> for each window: prepare -> carry over -> route -> denoise -> match colors -> decode -> save -> join

A window takes over from the previous one, for the frames they share:

- the latents, which are kept while the other frames are denoised, so that motion and appearance continue;
- the first frame, through the first-frame channel of the model;
- the masks, as a mask override during the first steps, so that the characters keep their order.

Speech is encoded once for the whole video, so that each window has its real context. Shared frames are cross-faded.

Only what the next window needs stays in memory. Finished windows are saved: an interrupted run resumes with the next
window and produces the same video, and a single window can be regenerated without the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.atomic import check_disk_space
from bya_core.io.media import mix_speeches
from bya_core.masks import MaskControl, mask_notices
from bya_core.pipelines.prepare import input_notices, prepare, speech_features
from bya_core.pipelines.sample import decode_latents, denoise_latents, model_notices
from bya_core.pipelines.window_files import (
    LongVideo,
    StoredFrames,
    StoredWindow,
    WindowFolder,
    fingerprint,
    locked_windows,
)
from bya_core.progress import ProgressCallback, ProgressTracker
from bya_core.routing.audio_assignment import with_audio_assignment
from bya_core.routing.route import route
from bya_core.sampling.conditions import Prepared
from bya_core.scene.types import Scene, prompt_at
from bya_core.scene.windows import Window, WindowJoiner, plan_windows
from bya_core.weights.bundle import ModelBundle

OVERRIDE_END = 0.3
"""Fraction of the steps during which the masks of the previous window override the router in the shared frames."""


def plan(scene: Scene, model: ModelBundle) -> tuple[Window, ...]:
    """Windows of a scene; a single one if the scene is short enough. Raises InputError as `plan_windows` does."""
    frames = scene.windows.frames or model.native.num_frames
    if scene.num_frames <= frames:
        return (Window(0, 0, scene.num_frames, time_factor=model.codec.time_factor),)
    return tuple(plan_windows(scene.num_frames, frames, scene.windows.overlap, model.codec.time_factor))


def generate_long(
    scene: Scene,
    model: ModelBundle,
    folder: Path,
    callback: ProgressCallback | None = None,
    *,
    regenerate: int | None = None,
    regenerate_seed: int | None = None,
) -> LongVideo:
    """Generate all windows of a scene. Windows that are in `folder` already are read.

    Args:
        scene: the scene.
        model: the model.
        folder: for the windows, one folder per scene.
        callback: as in `generate`.
        regenerate: number of a window (from 1) to generate again with another seed. It continues from the previous
            window and ends as before, so that the other windows stay valid.
        regenerate_seed: seed of that window; None = a new one each time.

    Raises:
        InputError: the scene does not fit the model, the folder holds another scene or is in use by another process,
            the disk is too small, or the window to regenerate does not exist.
        Cancelled: `callback` returned False; finished windows are kept.
    """
    job = _Job(scene, model, folder, ProgressTracker(callback))
    with locked_windows(folder):
        return _collect(job, scene, model, regenerate, regenerate_seed)


def _collect(
    job: _Job, scene: Scene, model: ModelBundle, regenerate: int | None, regenerate_seed: int | None
) -> LongVideo:
    rows, masks, joiner = [], [], WindowJoiner()
    notices, places = [*job.scene.notices, *model_notices(scene, model)], dict[str, list[int]]()
    for window, stored, fresh in job.run(regenerate, regenerate_seed):
        span = [window.start, window.stop]
        rows.append({"frames": span, "seed": stored.seed, "take": stored.take, "generated": fresh})
        joined = joiner.add(stored.masks.movedim(1, 0), window.latent_lead, window.latent_tail)
        masks.append(joined.movedim(0, 1))
        for notice in dict.fromkeys(stored.notices):
            places.setdefault(notice, []).append(window.index + 1)
    notices += [_placed(notice, numbers, len(job.plan)) for notice, numbers in places.items()]
    return LongVideo(
        frames=StoredFrames(job.files, job.plan),
        masks=torch.cat(masks, dim=1),
        grid=model.grid(scene.num_frames, scene.height, scene.width),
        audio=mix_speeches(scene.sounds, scene.seconds),
        matrix=job.scene.matrix,
        notices=tuple(dict.fromkeys(notices)),
        seconds=job.tracker.seconds,
        windows=tuple(rows),
        files=job.files,
        fps=scene.fps,
    )


def _placed(notice: str, numbers: list[int], windows: int) -> str:
    """A notice with the numbers of the windows that it is about."""
    if len(numbers) == windows:
        return notice
    return f"Window{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}: {notice}"


class _Job:
    """State of one `generate_long` call."""

    def __init__(self, scene: Scene, model: ModelBundle, folder: Path, tracker: ProgressTracker) -> None:
        self.plan, self.tracker = plan(scene, model), tracker
        self.files = WindowFolder(folder, fingerprint(scene, model))
        self.model = replace(model, text=_CachedEncoder(model.text), face=_CachedEncoder(model.face))
        scene = with_audio_assignment(scene, model, tracker)  # once, from the whole speech
        self.scene = replace(scene, notices=(*scene.notices, *input_notices(scene, model)))
        self.colors: tuple[Tensor, Tensor] | None = None
        missing = sum(window.frames for window in self.plan if not self.files.has(window.index))
        # latents and masks are small in comparison with the frames
        needed = missing * scene.height * scene.width * 3
        check_disk_space(folder, needed, "the windows of the video", "choose a folder on a larger disk")

    def run(self, regenerate: int | None, regenerate_seed: int | None) -> Iterator[tuple[Window, StoredWindow, bool]]:
        """Each window, its content, and whether it was generated now."""
        self._check_regenerate(regenerate)
        previous = None
        for window in self.plan:
            again = regenerate is not None and window.index == regenerate - 1
            fresh = again or not self.files.has(window.index)
            if fresh:
                stored = self._generate(window, previous, again, regenerate_seed)
                self.files.write(window.index, stored)
            else:
                stored = self.files.read(window.index)
            if self.colors is None:
                self.colors = _statistics(stored.latents)
            previous = _shared_end(stored, window)
            yield window, stored, fresh

    @torch.no_grad()
    def _generate(self, window: Window, previous: StoredWindow | None, again: bool, seed: int | None) -> StoredWindow:
        old = self.files.read(window.index) if again else None
        take = 0 if old is None else old.take + 1
        if seed is None or not again:
            seed = window_seed(self.scene.sampling.seed, window.index, take)
        prefix = f"Window {window.index + 1} of {len(self.plan)}: "
        tracker = ProgressTracker(self.tracker.callback, prefix, self.tracker.seconds)
        prepared = prepare(self._part(window, seed, previous), self.model, tracker, self._features(window))
        following = old if old is not None and window.tail and self.files.has(window.index + 1) else None
        prepared = carry_over(prepared, window, previous, following)
        routing = route(prepared, self.model, tracker)
        latents, masks = denoise_latents(prepared, routing, self.model, tracker)
        if self.scene.windows.match_colors and self.colors is not None:
            latents = _match_statistics(latents, self.colors)
        frames = decode_latents(latents, self.model, tracker)
        notices = (*prepared.scene.notices, *routing.notices, *mask_notices(self.scene.names, masks))
        return StoredWindow(frames, latents.float().cpu(), masks, routing.matrix, seed, take, notices)

    def _part(self, window: Window, seed: int, previous: StoredWindow | None) -> Scene:
        """The scene of one window."""
        scene, fps = self.scene, self.scene.fps
        first = scene.first_frame if previous is None else previous.frames[0].movedim(-1, 0).float() / 255
        return replace(
            scene,
            prompt=prompt_at(scene, window.start / fps, window.stop / fps),
            prompts=(),
            speeches=tuple(s and replace(s, offset=s.offset - window.start / fps) for s in scene.speeches),
            sound=None,
            first_frame=first,
            num_frames=window.frames,
            mask_control=scene.mask_control and scene.mask_control.latent_frames(window.latent),
            sampling=replace(scene.sampling, seed=seed),
            notices=(),
        )

    def _features(self, window: Window) -> Tensor:
        """Speech features of a window, from those of the whole video."""
        if not self.files.speech_path.exists():
            with self.tracker.stage("Encoding audio"):
                features = [speech_features(speech, self.scene, self.model) for speech in self.scene.speeches]
                self.files.write_speech(torch.stack(features))
        return self.files.read_speech(window.start, window.stop)

    def _check_regenerate(self, number: int | None) -> None:
        if number is None:
            return
        if not 1 <= number <= len(self.plan):
            expected = f"a number from 1 to {len(self.plan)}"
            raise InputError(f"window {number} to regenerate", expected, "choose one of them")
        if not self.files.has(number - 1):
            problem = f"window {number} to regenerate is not in {self.files.folder}"
            raise InputError(problem, "an existing window", "generate the video first")


def carry_over(
    prepared: Prepared, window: Window, previous: StoredWindow | None, following: StoredWindow | None = None
) -> Prepared:
    """Conditions of a window with the latents and masks it shares with its neighbors.

    Args:
        prepared: the encoded window, starting from the first shared frame of `previous`.
        window: its position.
        previous: the shared frames at the end of the previous window.
        following: an earlier version of this window, whose end the next window continues from.
    """
    conditions, frames = prepared.conditions, prepared.grid.frames
    known = torch.zeros(frames, dtype=torch.bool)
    latents = torch.zeros(1, *conditions.latent_shape)
    masks = torch.zeros(conditions.characters, *prepared.grid.shape)
    if previous is not None and conditions.first_frame_latents is not None:
        lead = window.latent_lead
        latents[:, :lead], masks[:, :lead] = previous.latents, previous.masks
        # the first latent frame covers one video frame here, but four in the previous window
        latents[:, :1] = conditions.first_frame_latents[:, :1].to(latents)
        known[:lead] = True
    if following is not None:
        tail = window.latent_tail
        latents[:, -tail:], masks[:, -tail:] = following.latents[:, -tail:], following.masks[:, -tail:]
        known[-tail:] = True
    if not bool(known.any()):
        return prepared
    strength = known.float().expand(conditions.characters, -1)
    control = MaskControl(masks, strength, end_percent=torch.tensor(OVERRIDE_END))
    conditions = replace(conditions, known_latents=latents, known_mask=known, mask_control=control)
    return replace(prepared, conditions=conditions)


def window_seed(seed: int, index: int, take: int) -> int:
    """Seed of a window, derived from the seed of the scene; the first window uses the seed itself."""
    if index == 0 and take == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {index} {take}".encode()).digest()[:7], "big")


def _shared_end(stored: StoredWindow, window: Window) -> StoredWindow:
    """The frames that the next window shares, copied so that the rest can be freed."""
    if not window.tail:
        return stored
    shared = window.latent_tail
    return replace(
        stored,
        frames=stored.frames[-window.tail :].clone(),
        latents=stored.latents[:, -shared:].clone(),
        masks=stored.masks[:, -shared:].clone(),
    )


def _statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [1, 1, C, 1, 1] of the channels of latents [1, T, C, H, W]."""
    deviation, mean = torch.std_mean(latents.float(), dim=(1, 3, 4), keepdim=True)
    return mean, deviation


def _match_statistics(latents: Tensor, target: tuple[Tensor, Tensor]) -> Tensor:
    mean, deviation = _statistics(latents)
    return (latents - mean) / deviation.clamp(min=1e-6) * target[1].to(latents) + target[0].to(latents)


@dataclass
class _CachedEncoder:
    """A text or face encoder that encodes equal inputs once."""

    encoder: Any
    cache: dict[Any, Any] = field(default_factory=dict)

    def encode(self, inputs: list[str] | Tensor) -> Any:
        key = tuple(inputs) if isinstance(inputs, list) else (inputs.shape, inputs.cpu().numpy().tobytes())
        if key not in self.cache:
            self.cache[key] = self.encoder.encode(inputs)
        return self.cache[key]

    def truncation(self, prompt: str) -> str | None:
        found: str | None = self.encoder.truncation(prompt) if hasattr(self.encoder, "truncation") else None
        return found
