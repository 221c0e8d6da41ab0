"""`bya timeline`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from bya_core.cli.common import MODEL, SceneFile, output, report_saved, warn


@dataclass(frozen=True)
class Timeline:
    """Draw the speaker turns, prompts and windows of a scene, and check its audio."""

    scene: SceneFile
    output: Annotated[Path, output("Image to save (png).")]
    model: Annotated[str, arg(help=MODEL + " Its size is used if the scene has none.", metavar="MODEL")] = "toy"

    def run(self) -> int:
        from bya_core.io.atomic import atomic_write
        from bya_core.io.files import existing_file
        from bya_core.io.outputs import check_output
        from bya_core.scene.schema import read_scene_file

        read_scene_file(existing_file(self.scene, "the scene"))
        path = check_output(self.output, (".png",), "the timeline")
        from bya_core.evaluation.timeline_plot import timeline_page, window_spans
        from bya_core.scene.loader import load_scene
        from bya_core.weights.loader import load_defaults

        defaults = load_defaults(self.model)
        scene = load_scene(self.scene, defaults)
        warn(scene.notices)
        image = timeline_page(scene, windows=window_spans(scene, defaults)).image()
        with atomic_write(path) as temporary:
            image.save(temporary)
        report_saved(path)
        return 0
