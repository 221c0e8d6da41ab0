"""`bya generate`."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes

from bya_core.cli.common import (
    ProgressBar,
    Runtime,
    RuntimeOptions,
    Sampling,
    SamplingOptions,
    SceneFile,
    group,
    optional,
    output,
    report_saved,
)
from bya_core.config import SamplingConfig
from bya_core.errors import Cancelled, InputError, Paused

if TYPE_CHECKING:
    from bya_core.pipelines.long_video import LongVideo
    from bya_core.pipelines.sample import Video
    from bya_core.progress import ProgressCallback
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

    def folder(self, video: Path) -> Path:
        """Where the windows of a video are stored."""
        return self.work_dir or video.with_suffix(".windows")


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
    runtime: Runtime = RuntimeOptions()
    sampling: Sampling = SamplingOptions()
    long_video: Annotated[WindowOptions, OmitArgPrefixes, group("long video")] = WindowOptions()
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
            distribute_guidance(scene.sampling, bundle)
            bar.warn(scene.notices)
            video = self._video(scene, bundle, bar, stack)
            bar.warn(video.notices[len(scene.notices) :])
            bar.stage("Saving")
            report = build_report(scene, self.scene, bundle, video, seconds, outputs.wanted)
            if isinstance(video, LongVideo):
                report["windows"] = list(video.windows)
            outputs.write(scene, video, report)
            if isinstance(video, LongVideo) and self.long_video.work_dir is None:
                video.files.remove(len(video.windows))
        size = f"{scene.width}x{scene.height}, {scene.fps:g} frames per second"
        print(f"Generated {scene.seconds:.2f} s of video ({size}) in {time.perf_counter() - start:.1f} s")
        report_saved(*outputs.wanted)
        return 0

    def _video(
        self, scene: Scene, bundle: ModelBundle, callback: ProgressCallback, stack: ExitStack
    ) -> Video | LongVideo:
        """The video; `stack` keeps the folder of the windows of a long one locked.

        Raises Paused if a long video is cancelled: finished windows are kept.
        """
        from bya_core.pipelines.generate import generate
        from bya_core.pipelines.long_video import generate_long, plan
        from bya_core.pipelines.window_files import locked_windows

        if self.resume_from is not None:
            return resume(scene, bundle, self.resume_from, callback)
        folder, options = self.long_video.folder(self.output), self.long_video
        if options.work_dir is None and options.regenerate is None and len(plan(scene, bundle)) == 1:
            return generate(scene, bundle, callback)
        stack.enter_context(locked_windows(folder))
        try:
            return generate_long(
                scene, bundle, folder, callback, regenerate=options.regenerate, regenerate_seed=options.regenerate_seed
            )
        except (Cancelled, KeyboardInterrupt) as stopped:
            kept = len(list(folder.glob("window_*.safetensors")))
            windows = f"{kept} finished window{'' if kept == 1 else 's'} kept in {folder}"
            raise Paused(f"{windows}; run the same command again to resume") from stopped


def resume(scene: Scene, bundle: ModelBundle, state: Path, callback: ProgressCallback | None = None) -> Video:
    """Generate the video of a scene from a routing state saved by `bya probe`.

    Refinement and mask control of the scene are applied to the masks of the state.

    Raises:
        InputError: A state that is damaged or belongs to another scene.
        Cancelled: `callback` returned False.
    """
    from bya_core.pipelines.generate import prepare, sample
    from bya_core.progress import ProgressTracker
    from bya_core.routing.route import postprocess_masks
    from bya_core.routing.state import load_routing

    tracker = ProgressTracker(callback)
    prepared = prepare(scene, bundle, tracker)
    return sample(prepared, postprocess_masks(load_routing(state, prepared), prepared.scene), bundle, tracker)
