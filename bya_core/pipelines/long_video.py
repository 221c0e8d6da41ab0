"""Videos of any length, window by window, each going on from the one before.

    plan -> for each window: prepare -> carry over -> route -> denoise -> hold colours -> decode -> save -> join

What a window takes over from the one before, all in the frames that both have:
- the latents, kept as they are while the others are denoised, so that motion and people go on;
- its first frame, through the model's first-frame channel;
- the masks, forced during the first part of the run, so that character 1 stays character 1. Then the router goes on.
Speech is encoded once for the whole video and cut at absolute frames: a window hears its real neighbours.
What two windows made of the same frames is faded from one to the other.

Only what the next window needs stays in memory. Every finished window is saved: a run that was stopped goes on where it
stopped and gives the same video, and one window can be made again without the others.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.io.media import mix_speeches
from bya_core.masks import MaskControl
from bya_core.pipelines.generate import decoded, denoised, doubts, prepare, route
from bya_core.pipelines.prepare import speech_features
from bya_core.pipelines.window_files import StoredWindow, WindowFolder, fingerprint
from bya_core.progress import ProgressCallback, ProgressTracker
from bya_core.routing.audio_assignment import bound
from bya_core.sampling.prepared import Prepared
from bya_core.sampling.windows import Joiner, Window, plan_windows
from bya_core.scene.types import Scene, Speech, prompt_at
from bya_core.weights.bundle import ModelBundle

CARRY = 0.3
"""Share of a window's run during which the masks of the window before are forced in the frames they share."""


@dataclass(frozen=True)
class WindowVideo:
    """What one window adds to the video. All of them, one after the other, are the video.

    Args:
        window: where it lies.
        frames: uint8 [F', H, W, 3], the frames that are final now: all but those shared with the next window.
        masks: [N, T', h, w] of their latent frames.
        seed: its own.
        take: how often it had been made before.
        fresh: whether it was made now or read from disk.
        notices: what a person should know about it, one sentence each.
    """

    window: Window
    frames: Tensor
    masks: Tensor
    seed: int
    take: int
    fresh: bool
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class LongVideo:
    """What `generate_long` makes; reads like `pipeline.Video`, but its frames stay on disk until they are asked for.

    Args:
        frames: uint8 [H, W, 3], one after the other, as often as wanted.
        masks: [N, T, h, w] in 0..1, those that acted in the last step of each window.
        grid: of the masks.
        audio, matrix, notices, seconds: as in `pipeline.Video`.
        windows: a row of facts about each window.
        files: where they are; `files.remove(len(windows))` deletes them.
    """

    frames: StoredFrames
    masks: Tensor
    grid: TokenGrid
    audio: tuple[Tensor, int] | None
    matrix: Tensor
    notices: tuple[str, ...]
    seconds: dict[str, float]
    windows: tuple[dict[str, Any], ...]
    files: WindowFolder


@dataclass(frozen=True)
class StoredFrames:
    """The frames of a finished long video, read window by window, joined."""

    files: WindowFolder
    plan: tuple[Window, ...]

    def __len__(self) -> int:
        return self.plan[-1].stop

    def __iter__(self) -> Iterator[Tensor]:
        """uint8 [H, W, 3] each."""
        joiner = Joiner()
        for window in self.plan:
            yield from joiner.add(self.files.read_one(window.index, "frames"), window.lead, window.tail)


def plan(scene: Scene, bundle: ModelBundle) -> tuple[Window, ...]:
    """Windows of a scene; one where it is no longer than a window. Raises InputError as `plan_windows` does."""
    frames = scene.windows.frames or bundle.native.num_frames
    if scene.num_frames <= frames:
        return (Window(0, 0, scene.num_frames, time_factor=bundle.codec.time_factor),)
    return tuple(plan_windows(scene.num_frames, frames, scene.windows.overlap, bundle.codec.time_factor))


def generate_long(
    scene: Scene,
    bundle: ModelBundle,
    folder: Path,
    callback: ProgressCallback | None = None,
    *,
    again: int | None = None,
    again_seed: int | None = None,
) -> LongVideo:
    """Make all windows of a scene in `folder`. Arguments and errors as in `generate_windows`."""
    job = _Job(scene, bundle, folder, ProgressTracker(callback))
    rows, masks, notices = [], [], [*job.scene.notices, *doubts(scene, bundle)]
    for part in job.run(again, again_seed):
        span = [part.window.start, part.window.stop]
        rows.append({"frames": span, "seed": part.seed, "take": part.take, "made_now": part.fresh})
        masks.append(part.masks)
        notices += [f"Window {part.window.index + 1}: {notice}" for notice in part.notices]
    return LongVideo(
        frames=StoredFrames(job.files, job.plan),
        masks=torch.cat(masks, dim=1),
        grid=bundle.grid(scene.num_frames, scene.height, scene.width),
        audio=mix_speeches(scene.sounds, scene.seconds),
        matrix=job.scene.matrix,
        notices=tuple(dict.fromkeys(notices)),
        seconds=job.tracker.seconds,
        windows=tuple(rows),
        files=job.files,
    )


def generate_windows(
    scene: Scene,
    bundle: ModelBundle,
    folder: Path,
    callback: ProgressCallback | None = None,
    *,
    again: int | None = None,
    again_seed: int | None = None,
) -> Iterator[WindowVideo]:
    """Make the windows of a scene one after the other; those that are in `folder` already are read.

    Args:
        folder: where they are kept. One folder holds one scene.
        callback: as in `pipeline.generate`.
        again: number of a window (from 1) to make once more, otherwise: it fits the windows before and after it, which
            stay as they are.
        again_seed: for that one; None = a new one each time.

    Raises:
        InputError: the scene does not fit the model, the folder holds another scene, the disk is too small, or
            there is no such window to make again.
        Cancelled: `callback` returned False; windows finished so far are kept.
    """
    return _Job(scene, bundle, folder, ProgressTracker(callback)).run(again, again_seed)


class _Job:
    """A scene on its way through its windows."""

    def __init__(self, scene: Scene, bundle: ModelBundle, folder: Path, tracker: ProgressTracker) -> None:
        self.plan, self.tracker = plan(scene, bundle), tracker
        self.files = WindowFolder(folder, fingerprint(scene, bundle))
        self.bundle = replace(bundle, text=_Once(bundle.text), face=_Once(bundle.face))
        self.scene = bound(scene, bundle, tracker)  # once, from all of the speech
        self.colours: tuple[Tensor, Tensor] | None = None
        missing = sum(window.frames for window in self.plan if not self.files.has(window.index))
        _check_disk(folder, missing * scene.height * scene.width * 3)

    def run(self, again: int | None, again_seed: int | None) -> Iterator[WindowVideo]:
        self._check_again(again)
        frames, masks, before = Joiner(), Joiner(), None
        for window in self.plan:
            chosen = again is not None and window.index == again - 1
            fresh = chosen or not self.files.has(window.index)
            if fresh:
                made = self._make(window, before, chosen, again_seed)
                self.files.write(window.index, made)
            else:
                made = self.files.read(window.index)
            if self.colours is None:
                self.colours = _statistics(made.latents)
            tokens = masks.add(made.masks.movedim(1, 0), window.latent_lead, window.latent_tail).movedim(0, 1)
            done = frames.add(made.frames, window.lead, window.tail)
            before = _end(made, window)
            yield WindowVideo(window, done, tokens, made.seed, made.take, fresh, made.notices)

    @torch.no_grad()
    def _make(self, window: Window, before: StoredWindow | None, anew: bool, seed: int | None) -> StoredWindow:
        old = self.files.read(window.index) if anew else None
        take = 0 if old is None else old.take + 1
        seed = window_seed(self.scene.sampling.seed, window.index, take) if seed is None or not anew else seed
        tracker = self._told(window)
        part = self._part(window, seed, before)
        features = self._features(window)
        prepared = prepare(part, self.bundle, tracker, features)
        after = old if old is not None and window.tail and self.files.has(window.index + 1) else None
        prepared = carried(prepared, window, before, after)
        routing = route(prepared, self.bundle, tracker)
        latents, masks = denoised(prepared, routing, self.bundle, tracker)
        if self.scene.windows.match_colors and self.colours is not None:
            latents = _with_statistics(latents, self.colours)
        frames = decoded(latents, self.bundle, tracker)
        return StoredWindow(frames, latents.float().cpu(), masks, routing.matrix, seed, take, routing.notices)

    def _part(self, window: Window, seed: int, before: StoredWindow | None) -> Scene:
        """The scene of one window alone: its prompt, its part of the speech and of given masks, where it starts."""
        scene, fps = self.scene, self.scene.fps
        first = scene.first_frame if before is None else before.frames[0].movedim(-1, 0).float() / 255
        return replace(
            scene,
            prompt=prompt_at(scene, window.start / fps, window.stop / fps),
            prompts=(),
            speeches=tuple(_from(speech, window.start / fps) for speech in scene.speeches),
            sound=None,
            first_frame=first,
            num_frames=window.frames,
            mask_control=scene.mask_control and scene.mask_control.latent_frames(window.latent),
            sampling=replace(scene.sampling, seed=seed),
            notices=(),
        )

    def _features(self, window: Window) -> Tensor:
        """Speech features of a window with its real neighbours, from those of the whole video."""
        if not self.files.speech_path.exists():
            with self.tracker.stage("Encoding audio"):
                every = [speech_features(speech, self.scene, self.bundle) for speech in self.scene.speeches]
                self.files.write_speech(torch.stack(every))
        return self.files.read_speech(window.start, window.stop)

    def _told(self, window: Window) -> ProgressTracker:
        """A tracker that names the window in its reports and adds to the durations of the whole video."""
        prefix = f"Window {window.index + 1} of {len(self.plan)}: "
        return ProgressTracker(self.tracker.callback, prefix, self.tracker.seconds)

    def _check_again(self, again: int | None) -> None:
        if again is None:
            return
        if not 1 <= again <= len(self.plan):
            came = f"window {again} was to be made again"
            raise InputError(came, f"a number from 1 to {len(self.plan)}", "choose one of them")
        if not self.files.has(again - 1):
            came = f"window {again} was to be made again, but {self.files.folder} does not hold it"
            raise InputError(came, "a window that has been made", "make the video first")


def carried(
    prepared: Prepared, window: Window, before: StoredWindow | None, after: StoredWindow | None = None
) -> Prepared:
    """A window's conditions with what its neighbours fix: latents that are kept, masks forced at first.

    Args:
        before: the end of the window before, the frames both have; its first frame is the scene's first frame.
        after: an older take of this window, whose end the next window went on from.
    """
    conditions, frames = prepared.conditions, prepared.grid.frames
    known = torch.zeros(frames, dtype=torch.bool)
    latents = torch.zeros(1, *conditions.latent_shape)
    masks = torch.zeros(1, conditions.characters, *prepared.grid.shape)
    if before is not None and conditions.first_frame_latents is not None:
        lead = window.latent_lead
        latents[:, :lead], masks[0, :, :lead] = before.latents, before.masks
        latents[:, :1] = conditions.first_frame_latents[:, :1].to(latents)  # one frame, where `before` had four
        known[:lead] = True
    if after is not None:
        tail = window.latent_tail
        latents[:, -tail:], masks[0, :, -tail:] = after.latents[:, -tail:], after.masks[:, -tail:]
        known[-tail:] = True
    if not bool(known.any()):
        return prepared
    strength = known.float().expand(conditions.characters, -1)
    conditions = replace(
        conditions,
        known_latents=latents,
        known_mask=known,
        mask_control=MaskControl(masks[0], strength, end_percent=torch.tensor(CARRY)),
    )
    return replace(prepared, conditions=conditions)


def window_seed(seed: int, index: int, take: int) -> int:
    """Seed of a window: that of the scene for the first take of the first one, others follow from it."""
    if index == 0 and take == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {index} {take}".encode()).digest()[:7], "big")


def _end(made: StoredWindow, window: Window) -> StoredWindow:
    """Only what the next window needs of this one, in memory of its own."""
    if not window.tail:
        return made
    shared = window.latent_tail
    return replace(
        made,
        frames=made.frames[-window.tail :].clone(),
        latents=made.latents[:, -shared:].clone(),
        masks=made.masks[:, -shared:].clone(),
    )


def _from(speech: Speech | None, start: float) -> Speech | None:
    """A speech as it lies in a video that begins `start` seconds later."""
    return None if speech is None else replace(speech, offset=speech.offset - start)


def _statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of latents [1, T, C, H, W], each [1, 1, C, 1, 1]."""
    deviation, mean = torch.std_mean(latents.float(), dim=(1, 3, 4), keepdim=True)
    return mean, deviation


def _with_statistics(latents: Tensor, wanted: tuple[Tensor, Tensor]) -> Tensor:
    mean, deviation = _statistics(latents)
    return (latents - mean) / deviation.clamp(min=1e-6) * wanted[1].to(latents) + wanted[0].to(latents)


def _check_disk(folder: Path, needed: int) -> None:
    """An early word where the disk cannot hold so many bytes of frames (latents and masks are small beside them)."""
    place = folder.absolute()
    free = shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
    if needed > free:
        came = f"{free / 1e9:.1f} GB free in {folder}"
        raise InputError(came, f"{needed / 1e9:.1f} GB for the windows of the video", "name a folder with more room")


@dataclass
class _Once:
    """An encoder of prompts or faces that encodes equal ones once: they are the same in most windows."""

    encoder: Any
    known: dict[Any, Any] = field(default_factory=dict)

    def encode(self, given: list[str] | Tensor) -> Any:
        key = tuple(given) if isinstance(given, list) else (given.shape, given.cpu().numpy().tobytes())
        if key not in self.known:
            self.known[key] = self.encoder.encode(given)
        return self.known[key]
