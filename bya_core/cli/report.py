"""`bya report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from bya_core.cli.common import optional, output, report_saved

NOT_BOUND = 3
"""Exit code if a mouth does not follow its own speech."""


@dataclass(frozen=True)
class Report:
    """Measure lip sync and identity of each character in a video.

    The exit code is 3 if a check fails, and 0 if all pass or are inconclusive.
    """

    video: Annotated[Positional[Path], arg(help="Video file, of this or any other system.")]
    scene: Annotated[Path, arg(help="Scene file with the characters and their speech.")]
    output: Annotated[Path | None, output("Image to save (png). Without both: VIDEO.binding.png and .json.", "")] = None
    json: Annotated[Path | None, optional("Report to save (json).")] = None
    masks: Annotated[
        Path | None, optional("Character masks of the video (npz). Without it characters are detected.")
    ] = None
    people: Annotated[
        Literal["auto", "drawn", "real"], arg(help="Whether the characters are drawn puppets or real people.")
    ] = "auto"

    def run(self) -> int:
        from bya_core.io.atomic import AtomicFiles, write_json
        from bya_core.io.files import existing_file
        from bya_core.io.outputs import check_output
        from bya_core.scene.schema import read_scene_file

        existing_file(self.video, "the video")
        if self.masks is not None:
            existing_file(self.masks, "the masks")
        read_scene_file(existing_file(self.scene, "the scene"))
        image, data = self.output, self.json
        if image is None and data is None:
            image, data = self.video.with_suffix(".binding.png"), self.video.with_suffix(".binding.json")
        if image is not None:
            check_output(image, (".png",), "the image")
        if data is not None:
            check_output(data, (".json",), "the report")
        from bya_core.evaluation.video_file import measure_file

        report = measure_file(self.video, self.scene, self.masks, self.people)
        figures = {"video": str(self.video), "scene": str(self.scene)} | report.metrics
        figures["text"] = report.text.splitlines()
        with AtomicFiles() as files:
            if image is not None:
                report.picture.save(files.at(image))
            if data is not None:
                write_json(files.at(data), figures)
        print(report.text)
        print("Binding: " + {True: "passed", False: "FAILED", None: "inconclusive"}[report.metrics["passed"]])
        report_saved(*(path for path in (image, data) if path is not None))
        return NOT_BOUND if report.metrics["passed"] is False else 0
