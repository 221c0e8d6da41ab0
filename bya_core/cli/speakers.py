"""`bya speakers`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from bya_core.cli.common import optional, output, report_saved, warn
from bya_core.errors import InputError

if TYPE_CHECKING:
    from bya_core.evaluation.speakers import Speakers as Found
    from bya_core.io.atomic import AtomicFiles
    from bya_core.scene.timeline import Turn


@dataclass(frozen=True)
class Speakers:
    """Find who speaks when in a video of real people.

    Compares the sound of the video with every mouth. The result is a timeline of turns that a scene file can use.
    """

    video: Annotated[Positional[Path], arg(help="Video file with sound.")]
    output: Annotated[Path, output("Timeline to save (json or rttm).")]
    scene: Annotated[
        Path | None, optional("Scene file whose reference images name the faces. Default: face 1, ... from left.")
    ] = None
    save_scene: Annotated[
        Path | None,
        optional(
            "Scene to save (json): characters and turns, with the video as the dialogue. Without --scene, portraits "
            "are cut from the video into a folder beside it."
        ),
    ] = None
    plot: Annotated[Path | None, optional("Plot of all faces over time to save (png).")] = None

    def run(self) -> int:
        from bya_core.io.atomic import AtomicFiles, write_json, write_text
        from bya_core.io.files import existing_file
        from bya_core.io.outputs import check_distinct, check_output
        from bya_core.scene.timeline import write_rttm

        existing_file(self.video, "the video")
        if self.scene is not None:
            existing_file(self.scene, "the scene")
        timeline = check_output(self.output, (".json", ".rttm"), "the timeline")
        plot = None if self.plot is None else check_output(self.plot, (".png",), "the plot")
        scene = None if self.save_scene is None else check_output(self.save_scene, (".json",), "the scene")
        check_distinct(path for path in (timeline, plot, scene) if path is not None)
        from bya_core.evaluation.plots import draw_speakers
        from bya_core.evaluation.speakers import find_speakers_in

        found = find_speakers_in(self.video, self.scene)
        warn(found.notices)
        with AtomicFiles() as files:
            if timeline.suffix.lower() == ".rttm":
                write_text(files.at(timeline), write_rttm(found.turns, self.video.stem))
            else:
                write_json(files.at(timeline), _entries(found.turns))
            if scene is not None:
                self._write_scene(scene, found, files)
            if plot is not None:
                draw_speakers(found.names, found.lanes, found.scores, found.speech).save(files.at(plot))
        for turn in found.turns:
            print(f"{turn.start:7.2f} to {turn.end:7.2f} s  {turn.speaker}")
        if found.unseen >= 0.5:
            warn([f"{found.unseen:.1f} s of speech belong to no visible face."])
        report_saved(*(path for path in (timeline, scene, plot) if path is not None))
        return 0

    def _write_scene(self, path: Path, found: Found, files: AtomicFiles) -> None:
        """Write a scene whose characters speak in the turns that were found, and portraits if none are given."""
        from PIL import Image

        from bya_core.cli.script import relative_path
        from bya_core.io.atomic import write_json
        from bya_core.scene.schema import read_scene_file

        if not found.turns:
            raise InputError(f"nobody speaks in {self.video}", "at least one turn", "leave out --save-scene")
        if self.scene is not None:
            given = read_scene_file(self.scene)
            prompt = given.prompt
            images = {
                each.name: relative_path(self.scene.parent / each.image, path.parent) for each in given.characters
            }
        else:
            prompt = f"{', '.join(found.names)} from left to right, talking to each other."
            folder, images = path.with_name(f"{path.stem}_faces"), {}
            for name, picture in zip(found.names, found.portraits, strict=True):
                file = folder / f"{name}.png"
                Image.fromarray(picture).save(files.at(file), format="png")
                images[name] = f"{folder.name}/{file.name}"
        scene = {
            "prompt": prompt,
            "characters": [{"name": name, "image": image} for name, image in images.items()],
            "dialogue": relative_path(self.video, path.parent),
            "timeline": _entries([turn for turn in found.turns if turn.speaker in images]),
        }
        write_json(files.at(path), scene)


def _entries(turns: Iterable[Turn]) -> list[dict[str, str | float]]:
    """Turns as in a scene file."""
    return [{"speaker": turn.speaker, "start": turn.start, "end": turn.end} for turn in turns]
