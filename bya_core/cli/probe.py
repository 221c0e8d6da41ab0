"""`bya probe`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from bya_core.cli.common import (
    ProgressBar,
    Runtime,
    RuntimeOptions,
    Sampling,
    SamplingOptions,
    SceneFile,
    check_work_folder,
    optional,
    output,
    report_saved,
    windows_beside,
)


@dataclass(frozen=True)
class Probe:
    """Predict the character masks of a scene, or of one window of a long one.

    Edit the masks before the video is generated: `bya generate --resume-from STATE` resumes from here.

    Edited masks go into `router.masks` of the scene. The windows before the one to look at are generated and kept.
    """

    scene: SceneFile
    output: Annotated[
        Path | None, output("Save the routing state (safetensors): masks and partially denoised latents.", "")
    ] = None
    masks: Annotated[Path | None, optional("Save the character masks (npz).")] = None
    overlay: Annotated[Path | None, optional("Save a preview with the masks drawn over it (png or mp4).")] = None
    window: Annotated[int, tyro.conf.arg(help="Window of a long video to look at, from 1.", metavar="N")] = 1
    work_dir: Annotated[Path | None, optional("Keep the finished windows in this folder.")] = None
    runtime: Runtime = RuntimeOptions()
    sampling: Sampling = SamplingOptions()

    def run(self) -> int:
        with ProgressBar() as bar:
            bar.stage("Loading model")
            from bya_core.io.files import existing_file
            from bya_core.masks import mask_statistics
            from bya_core.pipelines.interactive import routing_notices
            from bya_core.pipelines.long_video import prepare_window
            from bya_core.pipelines.outputs import RoutingOutputs
            from bya_core.progress import ProgressTracker
            from bya_core.routing.route import postprocess_masks, predict_masks

            outputs = RoutingOutputs(self.output, self.masks, self.overlay)
            self.runtime.check()
            self.sampling.check(existing_file(self.scene, "the scene"))
            outputs.check()
            if self.work_dir is not None:
                check_work_folder(self.work_dir)
            bundle = self.runtime.load()
            bar.stage("Reading scene")
            scene = self.sampling.load_scene(self.scene, bundle.defaults)
            window = prepare_window(scene, bundle, self.window, self._folder(), bar)
            prepared, tracker = window.prepared, ProgressTracker(bar)
            found = predict_masks(prepared, bundle, tracker)
            final = postprocess_masks(found, prepared.scene)
            bar.warn(routing_notices(prepared.scene, final))
            bar.stage("Saving")
            outputs.write(found, final, window, bundle)
        place = window.window
        if window.count > 1:
            seconds = f"{place.start / scene.fps:.2f} to {place.stop / scene.fps:.2f} s"
            print(f"Window {self.window} of {window.count} (frames {place.start} to {place.stop}, {seconds})")
        if found.state is not None:
            print(f"After {found.state.step} of {found.state.total} steps:")
        width = max(len(character.name) for character in scene.characters)
        for character, statistics in zip(scene.characters, mask_statistics(final.masks), strict=True):
            print(f"{character.name:<{width}}  {statistics}")
        report_saved(*outputs.wanted)
        return 0

    def _folder(self) -> Path | None:
        """Where the windows before are kept; None = a temporary folder."""
        named = self.output or self.masks or self.overlay
        return self.work_dir or (None if named is None or self.window == 1 else windows_beside(named))
