"""`bya report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from bya_core.cli.common import optional, output, report_saved
from bya_core.errors import InputError

NOT_BOUND, INCONCLUSIVE = 3, 4
"""Exit codes if a mouth does not follow its own speech, and if the result is inconclusive."""


@dataclass(frozen=True)
class Report:
    """Measure lip sync and identity of each character in a video.

    The exit code is 0 if all checks pass, 3 if one fails, and 4 if one is inconclusive and none fails.
    """

    video: Annotated[Positional[Path], arg(help="Video file, of this or any other system.")]
    scene: Annotated[Path | None, optional("Scene file with the characters and their speech.")] = None
    voices: Annotated[
        tuple[Path, ...], arg(help="Recordings instead of a scene, one per voice.", metavar="PATH ...")
    ] = ()
    output: Annotated[Path | None, output("Image to save (png). Without both: VIDEO.binding.png and .json.", "")] = None
    json: Annotated[Path | None, optional("Report to save (json).")] = None
    masks: Annotated[
        Path | None, optional("Character masks of the video (npz). Without it characters are found by likeness.")
    ] = None
    people: Annotated[
        Literal["auto", "drawn", "real"], arg(help="Whether the characters are drawn puppets or real people.")
    ] = "auto"

    def run(self) -> int:
        from bya_core.io.atomic import AtomicFiles, write_json
        from bya_core.io.files import existing_file
        from bya_core.io.outputs import check_distinct, check_output
        from bya_core.scene.schema import read_scene_file

        if (self.scene is None) == (not self.voices):
            given = "neither a scene nor voices" if self.scene is None else "a scene and voices"
            raise InputError(given, "--scene FILE, or --voices FILE ...", "give one of them")
        if self.voices and self.masks is not None:
            raise InputError("--masks with --voices", "--masks with --scene", "masks are those of characters")
        existing_file(self.video, "the video")
        for voice in self.voices:
            existing_file(voice, "the voice")
        if self.masks is not None:
            existing_file(self.masks, "the masks")
        if self.scene is not None:
            read_scene_file(existing_file(self.scene, "the scene"))
        image, data = self.output, self.json
        if image is None and data is None:
            image, data = self.video.with_suffix(".binding.png"), self.video.with_suffix(".binding.json")
        if image is not None:
            check_output(image, (".png",), "the image")
        if data is not None:
            check_output(data, (".json",), "the report")
        check_distinct(path for path in (image, data) if path is not None)
        from bya_core.evaluation.video_file import measure_file, measure_voices

        if self.scene is None:
            report = measure_voices(self.video, self.voices)
            source: dict[str, object] = {"voice_files": [str(path) for path in self.voices]}
        else:
            report = measure_file(self.video, self.scene, self.masks, self.people)
            source = {"scene": str(self.scene)}
        figures = {"video": str(self.video)} | source | report.metrics
        figures["text"] = report.text.splitlines()
        with AtomicFiles() as files:
            if image is not None:
                report.picture.save(files.at(image))
            if data is not None:
                write_json(files.at(data), figures)
        print(report.text)
        passed = report.metrics["passed"]
        print("Binding: " + {True: "passed", False: "FAILED", None: "inconclusive"}[passed])
        report_saved(*(path for path in (image, data) if path is not None))
        return {True: 0, False: NOT_BOUND, None: INCONCLUSIVE}[passed]
