"""`bya generate`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import OmitArgPrefixes

from bya_core.cli.common import (
    ProgressBar,
    Runtime,
    RuntimeOptions,
    Sampling,
    SamplingOptions,
    SceneFile,
    check_work_folder,
    group,
    optional,
    output,
    report_saved,
    setting,
    windows_beside,
)
from bya_core.config import ProbeConfig, SamplingConfig
from bya_core.errors import Cancelled, InputError, Paused

if TYPE_CHECKING:
    from bya_core.pipelines.kept_latents import KeptLatents
    from bya_core.pipelines.long_video import LongVideo, WindowRouting
    from bya_core.pipelines.sample import Video
    from bya_core.pipelines.takes import Selection, Takes
    from bya_core.progress import ProgressCallback
    from bya_core.routing import Routing
    from bya_core.sampling.conditions import Prepared
    from bya_core.scene.types import Scene
    from bya_core.weights.bundle import ModelBundle


@dataclass(frozen=True)
class WindowOptions:
    """Videos longer than one window."""

    work_dir: Annotated[Path | None, optional("Keep the finished windows in this folder.")] = None
    regenerate: Annotated[int | None, optional("Regenerate window N of --work-dir.", "N")] = None
    regenerate_seed: Annotated[
        int | None, optional("Random seed of the regenerated window. Default: a new one.", "INT")
    ] = None

    def check(self) -> None:
        """Raise InputError for options that contradict each other or are out of range."""
        if self.regenerate is not None and self.regenerate < 1:
            raise InputError(f"--regenerate {self.regenerate}", "a window number from 1", "correct it")
        if self.regenerate_seed is not None:
            SamplingConfig(seed=self.regenerate_seed)
            if self.regenerate is None:
                raise InputError("--regenerate-seed without --regenerate", "both", "add --regenerate N")
        if self.work_dir is not None:
            check_work_folder(self.work_dir)

    def folder(self, video: Path, state: Path | None) -> Path:
        """Where the windows of a video are stored: those that `bya probe` made beside a state are used."""
        beside = None if state is None else windows_beside(state)
        return self.work_dir or (beside if beside is not None and beside.is_dir() else windows_beside(video))

    def is_temporary(self, path: Path, video: LongVideo) -> bool:
        """Whether the windows of a finished video are deleted: they are beside it, and no one asked to keep them."""
        return self.work_dir is None and video.files.folder == windows_beside(path)


@dataclass(frozen=True)
class TakeOptions:
    """Generate the scene with several seeds and choose the best."""

    takes: Annotated[
        int, tyro.conf.arg(help="Probe N seeds, from --seed on, and rank them by their masks.", metavar="N")
    ] = 1
    keep: Annotated[
        int,
        tyro.conf.arg(
            help="Finish the K best and rank them by binding, identity, faces and sharpness. The others are saved "
            "beside the output, with their seed in the name.",
            metavar="K",
        ),
    ] = 1

    def selection(self) -> Selection | None:
        """The selection; None for a single take. Raises InputError for values out of range."""
        from bya_core.pipelines.takes import Selection

        ProbeConfig(num_takes=self.takes)
        selection = Selection(self.takes, self.keep)
        return None if self.takes == 1 else selection


@dataclass(frozen=True)
class OutputOptions:
    """Additional output files."""

    masks: Annotated[Path | None, optional("Save the character masks (npz).")] = None
    overlay: Annotated[Path | None, optional("Save the video with the masks drawn over it (mp4).")] = None
    json: Annotated[Path | None, optional("Save a report (json): timings, memory, mask statistics, warnings.")] = None


@dataclass(frozen=True)
class Generate:
    """Generate the video of a scene."""

    scene: SceneFile
    output: Annotated[Path, output("Video to save (mp4).")]
    resume_from: Annotated[Path | None, optional("Resume from a routing state of `bya probe`.")] = None
    spatial: Annotated[bool, setting(SamplingConfig, "spatial")] = False
    runtime: Runtime = RuntimeOptions()
    sampling: Sampling = SamplingOptions()
    long_video: Annotated[WindowOptions, OmitArgPrefixes, group("long video")] = WindowOptions()
    best_take: Annotated[TakeOptions, OmitArgPrefixes, group("best take")] = TakeOptions()
    files: Annotated[OutputOptions, OmitArgPrefixes, group("output")] = OutputOptions()

    def run(self) -> int:
        from bya_core.cli.processes import joined

        with joined(self) as command:
            return command.generate()

    def generate(self) -> int:
        """Run in this process."""
        from bya_core.cli.processes import distribute_guidance
        from bya_core.io.files import existing_file
        from bya_core.pipelines.outputs import Outputs

        outputs = Outputs(self.output, self.files.masks, self.files.overlay, self.files.json)
        self.long_video.check()
        selection = self.best_take.selection()
        if selection is not None and (self.resume_from or self.long_video != WindowOptions()):
            problem = "--takes with --resume-from or options of long videos"
            raise InputError(problem, "one of them", "remove the other")
        self.runtime.check()
        if self.resume_from is not None:
            existing_file(self.resume_from, "the state")
        self.sampling.check(existing_file(self.scene, "the scene"))
        outputs.check()
        start = time.perf_counter()
        with ProgressBar() as bar, ExitStack() as stack:
            bar.stage("Loading model")
            from bya_core.pipelines.long_video import LongVideo
            from bya_core.pipelines.run_report import build_report

            loading = time.perf_counter()
            bundle = self.runtime.load()
            seconds = {"Loading model": round(time.perf_counter() - loading, 3)}
            bar.stage("Reading scene")
            scene = self.sampling.load_scene(self.scene, bundle.defaults)
            scene = replace(scene, sampling=replace(scene.sampling, spatial=self.spatial))
            distribute_guidance(scene.sampling, bundle)
            bar.warn(scene.notices)
            takes = None if selection is None else self._takes(scene, bundle, selection, bar)
            if takes is not None:
                video: Video | LongVideo = takes.videos[0]
            else:
                if (kept := self._kept_latents(scene, bundle, stack)) is not None:
                    stack.enter_context(kept.until_written(bar.warn))
                video = self._video(scene, bundle, bar, stack, kept)
            bar.warn(video.notices)
            bar.stage("Saving")
            report = build_report(scene, self.scene, bundle, video, seconds, outputs.wanted)
            if isinstance(video, LongVideo):
                report["windows"] = list(video.windows)
            if takes is not None:
                report |= {"seed": takes.rows[0].seed, "takes": [take.row() for take in takes.rows]}
            outputs.write(scene, video, report)
            others = [] if takes is None else self._save_others(takes)
            if isinstance(video, LongVideo) and self.long_video.is_temporary(self.output, video):
                video.files.remove(len(video.windows))
        size = f"{scene.width}x{scene.height}, {scene.fps:g} frames per second"
        print(f"Generated {scene.seconds:.2f} s of video ({size}) in {time.perf_counter() - start:.1f} s")
        if takes is not None:
            print(takes.table())
        report_saved(*outputs.wanted, *others)
        return 0

    def _takes(self, scene: Scene, bundle: ModelBundle, selection: Selection, callback: ProgressBar) -> Takes:
        """All takes; what they cost at most is shown first, and the files are checked."""
        from bya_core.io.outputs import check_distinct, check_output
        from bya_core.pipelines.takes import check_takes, cost_text, generate_takes

        check_takes(scene, bundle)
        numbers = range(selection.takes if selection.keep > 1 else 0)
        beside = [self._beside(scene.sampling.seed + number) for number in numbers]
        for path in beside:
            check_output(path, (".mp4",), "the take")
        check_distinct([self.output, *filter(None, vars(self.files).values()), *beside])
        callback.stage(cost_text(scene, selection))
        return generate_takes(scene, bundle, selection, callback)

    def _beside(self, seed: int) -> Path:
        return self.output.with_name(f"{self.output.stem}.seed{seed}{self.output.suffix}")

    def _save_others(self, takes: Takes) -> list[Path]:
        """Save all finished videos but the best; their paths."""
        paths = [self._beside(take.seed) for take in takes.rows[1 : len(takes.videos)]]
        for path, other in zip(paths, takes.videos[1:], strict=True):
            other.save(path)
        return paths

    def _kept_latents(self, scene: Scene, bundle: ModelBundle, stack: ExitStack) -> KeptLatents | None:
        """File of the denoised latents of a video of one window; None for others, which have one for each window."""
        from bya_core.pipelines.long_video import plan
        from bya_core.pipelines.window_files import WindowFolder, fingerprint, locked_windows, window_inputs
        from bya_core.pipelines.window_links import window_seed

        windows, options = plan(scene, bundle), self.long_video
        if len(windows) > 1 or options.work_dir is not None or options.regenerate is not None:
            return None
        key = "" if self.resume_from is None else check_resume(scene, bundle, self.resume_from)[1]
        folder = options.folder(self.output, self.resume_from)
        stack.enter_context(locked_windows(folder))
        files = WindowFolder(folder, fingerprint(scene, bundle), [window_inputs(scene, windows[0], key)])
        seed = window_seed(scene.sampling.seed, 0, 0)
        return files.kept_latents(0, "", "", str(seed), "0")  # as `generate_long` does

    def _video(
        self,
        scene: Scene,
        bundle: ModelBundle,
        callback: ProgressCallback,
        stack: ExitStack,
        kept: KeptLatents | None,
    ) -> Video | LongVideo:
        """The video; `stack` keeps the folder of the windows of a long one locked.

        Raises Paused if a long video is cancelled: finished windows are kept.
        """
        from bya_core.pipelines.generate import generate
        from bya_core.pipelines.long_video import generate_long
        from bya_core.pipelines.window_files import locked_windows

        folder, options, given = self.long_video.folder(self.output, self.resume_from), self.long_video, None
        if kept is not None:
            if self.resume_from is not None:
                return resume(scene, bundle, self.resume_from, callback, kept)
            return generate(scene, bundle, callback, kept)
        if self.resume_from is not None:
            given = resume_window(scene, bundle, self.resume_from)
        stack.enter_context(locked_windows(folder))
        try:
            return generate_long(
                scene,
                bundle,
                folder,
                callback,
                regenerate=options.regenerate,
                regenerate_seed=options.regenerate_seed,
                resume=given,
            )
        except (Cancelled, KeyboardInterrupt) as stopped:
            count = len(list(folder.glob("window_*.safetensors")))
            windows = f"{count} finished window{'' if count == 1 else 's'} kept in {folder}"
            raise Paused(f"{windows}; run the same command again to resume") from stopped


def resume(
    scene: Scene,
    bundle: ModelBundle,
    state: Path,
    callback: ProgressCallback | None = None,
    kept: KeptLatents | None = None,
) -> Video:
    """Generate the video of a scene from a routing state saved by `bya probe`.

    Refinement and mask control of the scene are applied to the masks of the state.

    Raises:
        InputError: A state that is damaged or belongs to another scene.
        Cancelled: `callback` returned False.
    """
    from bya_core.pipelines.prepare import prepare
    from bya_core.pipelines.sample import decode_video, sample
    from bya_core.progress import ProgressTracker
    from bya_core.routing.route import postprocess_masks
    from bya_core.routing.state import load_routing

    check_resume(scene, bundle, state)
    tracker = ProgressTracker(callback)
    if kept is not None and (denoised := kept.load()) is not None:
        return decode_video(denoised, scene, bundle, tracker)
    prepared = prepare(scene, bundle, tracker)
    routing = postprocess_masks(load_routing(state, prepared), prepared.scene)
    return sample(prepared, routing, bundle, tracker, kept)


def resume_window(scene: Scene, bundle: ModelBundle, state: Path) -> WindowRouting:
    """The routing of one window of a long scene, from a state saved by `bya probe`. Raises as `resume` does."""
    from bya_core.pipelines.long_video import WindowRouting
    from bya_core.routing.route import postprocess_masks
    from bya_core.routing.state import load_routing

    number, key = check_resume(scene, bundle, state)

    def load(prepared: Prepared, continues: str) -> Routing:
        return postprocess_masks(load_routing(state, prepared, continues), prepared.scene)

    return WindowRouting(number - 1, load, key)


def check_resume(scene: Scene, bundle: ModelBundle, state: Path) -> tuple[int, str]:
    """Number of the window of a state, and a key of its content.

    Raises:
        InputError: A state that is damaged or belongs to another scene, or to a window that the scene does not have.
    """
    from bya_core.pipelines.long_video import plan
    from bya_core.pipelines.window_links import window_seed
    from bya_core.routing.state import check_state, read_window

    saved, windows = read_window(state), plan(scene, bundle)
    part = windows[saved.number - 1] if saved.number <= len(windows) else None
    if part is None or (part.start, part.frames) != (saved.start, saved.frames):
        end = saved.start + saved.frames
        found = f"the state {state} is of window {saved.number} of {saved.windows} (frames {saved.start} to {end})"
        count = len(windows)
        expected = f"a window of this scene, of {count} window{'s' if count > 1 else ''}"
        if part is not None:
            expected += f" (window {saved.number}: frames {part.start} to {part.stop})"
        raise InputError(found, expected, "run bya probe for this scene again, or restore its length and windows")
    seed = window_seed(scene.sampling.seed, part.index, 0)
    scene = replace(scene, sampling=replace(scene.sampling, seed=seed))
    grid = bundle.grid(part.frames, scene.height, scene.width)
    check_state(state, scene, grid, bundle.codec.latent_channels)
    return saved.number, saved.key
