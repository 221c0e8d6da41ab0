"""`bya probe`: predict the character masks of a scene before the video is generated."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import OmitArgPrefixes

from bya_core.cli.common import ProgressBar, RuntimeOptions, SamplingOptions, SceneFile, optional, output, report_saved
from bya_core.errors import InputError

if TYPE_CHECKING:
    from bya_core.scene.types import Scene
    from bya_core.weights.bundle import ModelBundle


@dataclass(frozen=True)
class Probe:
    """Predict the character masks of a scene, to inspect and edit them before the video is generated.

    Continue with `bya generate --resume-from STATE`. Edited masks go into `router.masks` of the scene.
    """

    scene: SceneFile
    output: Annotated[
        Path | None,
        output("Routing state to save (safetensors), with masks and partially denoised latents."),
    ] = None
    masks: Annotated[Path | None, optional("Save the character masks (npz).")] = None
    overlay: Annotated[Path | None, optional("Save a preview with the masks drawn over it (png or mp4).")] = None
    runtime: OmitArgPrefixes[RuntimeOptions] = field(default_factory=RuntimeOptions)
    sampling: OmitArgPrefixes[SamplingOptions] = field(default_factory=SamplingOptions)

    def run(self) -> int:
        from bya_core.scene.schema import read_scene_file

        with ProgressBar() as bar:
            bar.stage("Loading model")
            from bya_core.io.media import existing_file
            from bya_core.masks import mask_statistics
            from bya_core.pipelines.load import load_model
            from bya_core.pipelines.outputs import RoutingOutputs
            from bya_core.pipelines.prepare import prepare
            from bya_core.pipelines.run_report import mask_notices
            from bya_core.progress import ProgressTracker
            from bya_core.routing.route import postprocess_masks, predict_masks

            outputs = RoutingOutputs(self.output, self.masks, self.overlay)
            outputs.check(inputs=(existing_file(self.scene, "the scene"),))
            self.sampling.check()
            read_scene_file(self.scene)  # report errors before loading the model
            bundle = load_model(self.runtime.model, vram=self.runtime.vram)
            bar.stage("Reading scene")
            scene = self.sampling.load_scene(self.scene, bundle.defaults)
            _check_one_window(scene, bundle)
            tracker = ProgressTracker(bar)
            prepared = prepare(scene, bundle, tracker)
            found = predict_masks(prepared, bundle, tracker)
            final = postprocess_masks(found, prepared.scene)
            bar.warn((*prepared.scene.notices, *final.notices, *mask_notices(prepared.scene, final.masks)))
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
