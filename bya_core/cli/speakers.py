"""`bya speakers`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from bya_core.cli.common import optional, output, report_saved, warn


@dataclass(frozen=True)
class Speakers:
    """Find who speaks when in a video of real people.

    Compares the sound of the video with every mouth. The result is a timeline of turns that a scene file can use.
    """

    video: Annotated[Positional[Path], arg(help="Video file with sound.")]
    output: Annotated[Path, output("Timeline to save (json).")]
    scene: Annotated[
        Path | None, optional("Scene file whose reference images name the faces. Default: face 1, ... from left.")
    ] = None
    plot: Annotated[Path | None, optional("Plot of all faces over time to save (png).")] = None

    def run(self) -> int:
        from bya_core.io.atomic import AtomicFiles, write_json
        from bya_core.io.files import existing_file
        from bya_core.io.outputs import check_output

        existing_file(self.video, "the video")
        if self.scene is not None:
            existing_file(self.scene, "the scene")
        timeline = check_output(self.output, (".json",), "the timeline")
        plot = None if self.plot is None else check_output(self.plot, (".png",), "the plot")
        from bya_core.evaluation.plots import draw_speakers
        from bya_core.evaluation.speakers import find_speakers_in

        found = find_speakers_in(self.video, self.scene)
        warn(found.notices)
        with AtomicFiles() as files:
            turns = [{"speaker": turn.speaker, "start": turn.start, "end": turn.end} for turn in found.turns]
            write_json(files.at(timeline), turns)
            if plot is not None:
                draw_speakers(found.names, found.lanes, found.scores, found.speech).save(files.at(plot))
        for turn in found.turns:
            print(f"{turn.start:7.2f} to {turn.end:7.2f} s  {turn.speaker}")
        if found.unseen >= 0.5:
            warn([f"{found.unseen:.1f} s of speech belong to no visible face."])
        report_saved(*(path for path in (timeline, plot) if path is not None))
        return 0
