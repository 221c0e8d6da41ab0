"""`bya probe`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from bya_core.cli.common import (
    ProgressBar,
    Runtime,
    RuntimeOptions,
    Sampling,
    SamplingOptions,
    SceneFile,
    optional,
    output,
    report_saved,
)
from bya_core.errors import InputError

if TYPE_CHECKING:
    from bya_core.scene.types import Scene
    from bya_core.weights.bundle import ModelBundle


@dataclass(frozen=True)
class Probe:
    """Predict the character masks of a scene.

    Edit the masks before the video is generated: `bya generate --resume-from STATE` resumes from here.

    Edited masks go into `router.masks` of the scene.
    """

    scene: SceneFile
    output: Annotated[
        Path | None, output("Save the routing state (safetensors): masks and partially denoised latents.", "")
    ] = None
    masks: Annotated[Path | None, optional("Save the character masks (npz).")] = None
    overlay: Annotated[Path | None, optional("Save a preview with the masks drawn over it (png or mp4).")] = None
    runtime: Runtime = RuntimeOptions()
    sampling: Sampling = SamplingOptions()

    def run(self) -> int:
        with ProgressBar() as bar:
            bar.stage("Loading model")
            from bya_core.io.files import existing_file
            from bya_core.masks import mask_statistics
            from bya_core.pipelines.interactive import routing_notices
            from bya_core.pipelines.outputs import RoutingOutputs
            from bya_core.pipelines.prepare import prepare
            from bya_core.progress import ProgressTracker
            from bya_core.routing.route import postprocess_masks, predict_masks

            outputs = RoutingOutputs(self.output, self.masks, self.overlay)
            self.runtime.check()
            self.sampling.check(existing_file(self.scene, "the scene"))
            outputs.check()
            bundle = self.runtime.load()
            bar.stage("Reading scene")
            scene = self.sampling.load_scene(self.scene, bundle.defaults)
            _check_one_window(scene, bundle)
            tracker = ProgressTracker(bar)
            prepared = prepare(scene, bundle, tracker)
            found = predict_masks(prepared, bundle, tracker)
            final = postprocess_masks(found, prepared.scene)
            bar.warn((*routing_notices(prepared.scene, final),))
            bar.stage("Saving")
            outputs.write(found, final, prepared, bundle)
        if found.state is not None:
            print(f"After {found.state.step} of {found.state.total} steps:")
        width = max(len(character.name) for character in scene.characters)
        for character, statistics in zip(scene.characters, mask_statistics(final.masks), strict=True):
            print(f"{character.name:<{width}}  {statistics}")
        report_saved(*outputs.wanted)
        return 0


def _check_one_window(scene: Scene, bundle: ModelBundle) -> None:
    """Raise InputError for a scene of several windows: each one has its own masks."""
    from bya_core.pipelines.long_video import plan

    if (windows := len(plan(scene, bundle))) > 1:
        raise InputError(
            f"a scene of {scene.num_frames} frames, which needs {windows} windows",
            f"one window ({scene.windows.frames or bundle.native.num_frames} frames)",
            "reduce its length to probe the start",
        )
