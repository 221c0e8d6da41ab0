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

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.atomic import check_disk_space
from bya_core.masks import mask_notices
from bya_core.pipelines.assignment import with_audio_assignment
from bya_core.pipelines.kept_latents import Denoised, KeptLatents
from bya_core.pipelines.prepare import input_notices, prepare, speech_features
from bya_core.pipelines.sample import decode_latents, denoise_latents, model_notices
from bya_core.pipelines.window_files import (
    LongVideo,
    StoredFrames,
    StoredWindow,
    WindowFolder,
    fingerprint,
    locked_windows,
    window_inputs,
)  # fmt: skip
from bya_core.pipelines.window_links import (
    CachedEncoder,
    carry_over,
    channel_statistics,
    match_statistics,
    shared_end,
    window_seed,
)  # fmt: skip
from bya_core.progress import ProgressCallback, ProgressTracker, WindowTracker
from bya_core.routing import Routing
from bya_core.routing.route import route
from bya_core.sampling.conditions import Prepared
from bya_core.scene.spatial import video_audio
from bya_core.scene.types import Scene, prompt_at
from bya_core.scene.windows import Window, WindowJoiner, plan_windows
from bya_core.weights.bundle import ModelBundle


def plan(scene: Scene, model: ModelBundle) -> tuple[Window, ...]:
    """Windows of a scene; a single one if the scene is short enough. Raises InputError as `plan_windows` does."""
    frames = scene.windows.frames or model.native.num_frames
    if scene.num_frames <= frames:
        return (Window(0, 0, scene.num_frames, time_factor=model.codec.time_factor),)
    return tuple(plan_windows(scene.num_frames, frames, scene.windows.overlap, model.codec.time_factor))


@dataclass(frozen=True)
class WindowRouting:
    """The masks of one window, from which the video is continued.

    Args:
        index: of the window, from 0.
        load: the routing of the encoded window, refined and edited as it should act; the second argument is the
            `version` of the previous window.
        key: identifies the routing; windows that were made from it are reused.
        before: the scene that earlier windows are made from; None = the same.
    """

    index: int
    load: Callable[[Prepared, str], Routing]
    key: str
    before: Scene | None = None


@dataclass(frozen=True)
class PreparedWindow:
    """An encoded window of a video.

    Args:
        window: its position.
        count: number of windows.
        prepared: the encoded window, with what it takes over from the previous one.
        continues: identifies the version of the previous window; empty for the first.
    """

    window: Window
    count: int
    prepared: Prepared
    continues: str = ""


def check_window(number: int, windows: int) -> None:
    """Raise InputError unless a scene of so many windows has window `number`, from 1."""
    if not 1 <= number <= windows:
        expected = f"a number from 1 to {windows}" if windows > 1 else "1: the video is one window"
        raise InputError(f"window {number}", expected, "choose one of them")


def prepare_window(
    scene: Scene, model: ModelBundle, number: int, folder: Path | None = None, callback: ProgressCallback | None = None
) -> PreparedWindow:
    """Encode one window of a scene of any length; the windows before it are generated first.

    Args:
        scene: the scene.
        model: the model.
        number: of the window, from 1.
        folder: for the windows, as in `generate_long`; None = a temporary one.
        callback: as in `generate`.

    Raises:
        InputError: as `generate_long`, or there is no such window.
        Cancelled: `callback` returned False; finished windows are kept.
    """
    windows = plan(scene, model)
    check_window(number, len(windows))
    if len(windows) == 1:
        return PreparedWindow(windows[0], 1, prepare(scene, model, ProgressTracker(callback)))
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="bya_") as temporary:
            return prepare_window(scene, model, number, Path(temporary), callback)
    job, previous = _Job(scene, model, folder, ProgressTracker(callback), stop=number - 1), None
    with locked_windows(folder):
        for window, stored, _ in job.run(None, None):
            previous = shared_end(stored, window)
        seed = window_seed(scene.sampling.seed, number - 1, 0)
        prepared = job.prepare(windows[number - 1], previous, seed, job.tracker)
    prepared = replace(prepared, scene=replace(prepared.scene, notices=(*job.scene.notices, *prepared.scene.notices)))
    return PreparedWindow(windows[number - 1], len(windows), prepared, version(previous))


def version(previous: StoredWindow | None) -> str:
    """Identifies the version of a window that the next one continues; empty without one."""
    return "" if previous is None else f"seed {previous.seed}, version {previous.take + 1}"


def generate_long(
    scene: Scene,
    model: ModelBundle,
    folder: Path,
    callback: ProgressCallback | None = None,
    *,
    regenerate: int | None = None,
    regenerate_seed: int | None = None,
    resume: WindowRouting | None = None,
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
        resume: masks of one window, such as those of `bya probe`; earlier windows are kept, later ones continue.

    Raises:
        InputError: the scene does not fit the model, the folder holds another scene or is in use by another process,
            the disk is too small, or the window to regenerate does not exist.
        Cancelled: `callback` returned False; finished windows are kept.
    """
    job = _Job(scene, model, folder, ProgressTracker(callback), resume)
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
    grid, whole = model.grid(scene.num_frames, scene.height, scene.width), torch.cat(masks, dim=1)
    return LongVideo(
        frames=StoredFrames(job.files, job.plan),
        masks=whole,
        grid=grid,
        audio=video_audio(scene, whole, grid, job.scene.matrix),
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

    def __init__(
        self,
        scene: Scene,
        model: ModelBundle,
        folder: Path,
        tracker: ProgressTracker,
        resume: WindowRouting | None = None,
        stop: int | None = None,
    ) -> None:
        self.plan, self.tracker, self.resume = plan(scene, model), tracker, resume
        if resume is not None:
            check_window(resume.index + 1, len(self.plan))
        self.needed = self.plan[:stop]
        inputs = [window_inputs(self._scene_of(window, scene), window, self._key(window)) for window in self.plan]
        self.files = WindowFolder(folder, fingerprint(scene, model), inputs)
        self.model = replace(model, text=CachedEncoder(model.text), face=CachedEncoder(model.face))
        scene = with_audio_assignment(scene, model, tracker)  # once, from the whole speech
        self.scene = replace(scene, notices=(*scene.notices, *input_notices(scene, model)))
        self.colors: tuple[Tensor, Tensor] | None = None
        missing = [window for window in self.needed if not self.files.has(window.index)]
        self.clock = WindowTracker.Clock(len(missing))
        # latents and masks are small in comparison with the frames
        needed = sum(window.frames for window in missing) * scene.height * scene.width * 3
        check_disk_space(folder, needed, "the windows of the video", "choose a folder on a larger disk")

    def run(self, regenerate: int | None, regenerate_seed: int | None) -> Iterator[tuple[Window, StoredWindow, bool]]:
        """Each window, its content, and whether it was generated now."""
        self._check_regenerate(regenerate)
        previous = None
        for window in self.needed:
            again = regenerate is not None and window.index == regenerate - 1
            fresh = again or not self.files.has(window.index)
            if fresh:
                with KeptLatents(self.files.latents_path(window.index)).until_written():
                    stored = self._generate(window, previous, again, regenerate_seed)
                    self.files.write(window.index, stored)
            else:
                stored = self.files.read(window.index)
            if self.colors is None:
                self.colors = channel_statistics(stored.latents)
            previous = shared_end(stored, window)
            yield window, stored, fresh

    @torch.no_grad()
    def _generate(self, window: Window, previous: StoredWindow | None, again: bool, seed: int | None) -> StoredWindow:
        old = self.files.read(window.index) if again else None
        take = 0 if old is None else old.take + 1
        if seed is None or not again:
            seed = window_seed(self.scene.sampling.seed, window.index, take)
        tracker = WindowTracker(self.tracker, window.index + 1, len(self.plan), self.clock)
        following = old if old is not None and window.tail and self.files.has(window.index + 1) else None
        joins = [version(each) for each in (previous, following)]
        kept = self.files.kept_latents(window.index, *joins, str(seed), str(take))
        denoised = kept.load()
        if denoised is None:
            prepared = self.prepare(window, previous, seed, tracker, following)
            if self.resume is not None and self.resume.index == window.index and not again:
                routing = self.resume.load(prepared, version(previous))
            else:
                routing = route(prepared, self.model, tracker)
            latents, masks = denoise_latents(prepared, routing, self.model, tracker)
            notices = (*prepared.scene.notices, *routing.notices, *mask_notices(self.scene.names, masks))
            denoised = Denoised(latents, masks, routing.matrix, tuple(dict.fromkeys((*notices, *tracker.notices))))
            kept.save(denoised)
        latents = denoised.latents.to(self.model.device)
        if self.scene.windows.match_colors and self.colors is not None:
            latents = match_statistics(latents, self.colors)
        frames = decode_latents(latents, self.model, tracker)
        tracker.finish()
        notices = tuple(dict.fromkeys((*denoised.notices, *tracker.notices)))
        return StoredWindow(frames, latents.float().cpu(), denoised.masks, denoised.matrix, seed, take, notices)

    @torch.no_grad()
    def prepare(
        self,
        window: Window,
        previous: StoredWindow | None,
        seed: int,
        tracker: ProgressTracker,
        following: StoredWindow | None = None,
    ) -> Prepared:
        """Encode a window, continuing `previous` and ending as `following`."""
        prepared = prepare(self._part(window, seed, previous), self.model, tracker, self._features(window))
        return carry_over(prepared, window, previous, following)

    def _scene_of(self, window: Window, scene: Scene) -> Scene:
        """`scene`, or that of the windows before the one that is resumed."""
        resume = self.resume
        before = None if resume is None or window.index >= resume.index else resume.before
        if before is None:
            return scene
        return replace(
            scene,
            mask_control=before.mask_control,
            sampling=replace(scene.sampling, preset=before.sampling.preset),
            routing=replace(scene.routing, refine=before.routing.refine),
        )

    def _key(self, window: Window) -> str:
        return self.resume.key if self.resume is not None and window.index >= self.resume.index else ""

    def _part(self, window: Window, seed: int, previous: StoredWindow | None) -> Scene:
        """The scene of one window."""
        scene, fps = self._scene_of(window, self.scene), self.scene.fps
        first = scene.first_frame if previous is None else previous.frames[0].movedim(-1, 0).float() / 255
        return replace(
            scene,
            prompt=prompt_at(scene, window.start / fps, window.stop / fps),
            prompts=(),
            speeches=tuple(s and replace(s, offset=s.offset - window.start / fps) for s in scene.speeches),
            sound=None,
            first_frame=first,
            num_frames=window.frames,
            footage=scene.footage and scene.footage.part(window.start, window.stop),
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
