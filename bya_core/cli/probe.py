"""The command `probe`: who is where, before the video is made; and going on from what it wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from bya_core.cli.selftest import Vram
from bya_core.config import Preset

if TYPE_CHECKING:
    from bya_core.pipelines.generate import Video
    from bya_core.progress import ProgressCallback
    from bya_core.scene.types import Scene
    from bya_core.weights.bundle import ModelBundle


@dataclass(frozen=True)
class Probe:
    """Find out who is where, before the video is made: masks to look at and edit, and a state to go on from.

    Give the state to `generate --state`, and masks you have edited to `router.masks` of the scene.

    Args:
        scene: the scene file (see docs/reference/scene.md).
        state: safetensors to write: the masks and, with the intra router, the half-done video.
        masks: npz to write the masks to.
        overlay: png or mp4 to write: the video as far as it can be seen by now, tinted by the masks.
        model: a name from `python -m bya_core models`.
        vram: GB of GPU memory to make do with; auto = what is free on it now (docs/how-to/memory.md).
        steps: denoising steps of the whole video, in place of the scene's.
        seed: of all random numbers, in place of the scene's.
        speed: how much work may be left out, in place of the scene's: exact = none, balanced, fast (docs/results/speed.md).
    """

    scene: tyro.conf.Positional[Path]
    state: Annotated[Path | None, tyro.conf.arg(aliases=["-s"])] = None
    masks: Path | None = None
    overlay: Path | None = None
    model: str = "toy"
    vram: Vram = "auto"
    steps: int | None = None
    seed: int | None = None
    speed: Preset | None = None

    def run(self) -> int:
        from bya_core.cli.main import Bar

        with Bar() as bar:
            bar.say("Importing libraries")
            from bya_core.io.media import existing_file
            from bya_core.masks import mask_statistics
            from bya_core.pipelines.load import load_model
            from bya_core.pipelines.outputs import RoutingOutputs
            from bya_core.pipelines.prepare import prepare
            from bya_core.pipelines.run_report import mask_notices
            from bya_core.progress import ProgressTracker
            from bya_core.routing.route import find, finish
            from bya_core.scene.loader import load_scene
            from bya_core.scene.schema import read_scene_file

            outputs = RoutingOutputs(self.state, self.masks, self.overlay)
            outputs.check(inputs=(existing_file(self.scene, "the scene"),))
            read_scene_file(self.scene)  # the cheapest mistakes are found before anything heavy is loaded
            bar.say(f"Loading model {self.model}")
            bundle = load_model(self.model, vram=self.vram)
            bar.say("Reading scene")
            scene = load_scene(self.scene, bundle.defaults, steps=self.steps, seed=self.seed, speed=self.speed)
            _one_window(scene, bundle)
            tracker = ProgressTracker(bar)
            prepared = prepare(scene, bundle, tracker)
            scene = prepared.scene  # who hears whom is settled now
            found = find(prepared, bundle, tracker)
            shown = finish(found, scene)
            figures = mask_statistics(shown.masks)
            for notice in (*scene.notices, *shown.notices, *mask_notices(scene, shown.masks)):
                bar.warn(notice)
            bar.say("Saving")
            outputs.write(found, shown, prepared, bundle)
        if found.state is not None:
            print(f"after {found.state.step} of {found.state.total} steps:")
        width = max(len(character.name) for character in scene.characters)
        for character, figure in zip(scene.characters, figures, strict=True):
            print(f"{character.name:<{width}}  {figure}")
        for path in outputs.wanted:
            print(f"wrote {path}")
        return 0


def _one_window(scene: Scene, bundle: ModelBundle) -> None:
    """Raise InputError where the scene is made in windows, each of which has a run of its own."""
    from bya_core.errors import InputError
    from bya_core.pipelines.long_video import plan

    if (windows := len(plan(scene, bundle))) > 1:
        came = f"a scene of {scene.num_frames} frames, which is made in {windows} windows"
        do = "shorten its length to look at its beginning, or make windows of that many frames"
        raise InputError(came, f"one window ({scene.windows.frames or bundle.native.num_frames} frames)", do)


def go_on(scene: Scene, bundle: ModelBundle, state: Path, callback: ProgressCallback | None = None) -> Video:
    """Make the video of a scene from the state that `probe` wrote for it.

    What the scene wants done to the masks (cleaning, a person's masks over them, ...) is done now.

    Raises:
        InputError: a state that is broken or of another scene.
        Cancelled: `callback` returned False.
    """
    from bya_core.pipelines.generate import prepare, sample
    from bya_core.progress import ProgressTracker
    from bya_core.routing.route import finish
    from bya_core.routing.state import load_routing

    tracker = ProgressTracker(callback)
    prepared = prepare(scene, bundle, tracker)
    return sample(prepared, finish(load_routing(state, prepared), prepared.scene), bundle, tracker)
