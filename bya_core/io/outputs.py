"""What a run leaves on disk: the video and, if asked for, masks, overlay and report; all or none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bya_core.errors import InputError
from bya_core.io.atomic import AtomicFiles, check_output
from bya_core.io.media import write_video
from bya_core.io.overlay import overlay_frames
from bya_core.pipelines.run_report import MadeVideo, mask_figures
from bya_core.scene.types import Scene


@dataclass(frozen=True)
class Outputs:
    """Where a run writes to.

    Args:
        video: mp4 with the original sound.
        masks: npz with "masks" [N, T, h, w] in 0..1 and "names" [N]; a scene's `router.masks` can read it.
        overlay: mp4 of the video tinted by the masks, with a legend.
        report: json, see `bya_core.pipelines.run_report`.
    """

    video: Path
    masks: Path | None = None
    overlay: Path | None = None
    report: Path | None = None

    @property
    def wanted(self) -> list[Path]:
        return [path for path in (self.video, self.masks, self.overlay, self.report) if path is not None]

    def check(self, inputs: tuple[Path, ...] = ()) -> None:
        """Call before long work starts. Raises InputError where something cannot be written.

        Args:
            inputs: files that no output may replace.
        """
        check_output(self.video, (".mp4",), "the video")
        for path, suffix, what in (
            (self.masks, ".npz", "the masks"),
            (self.overlay, ".mp4", "the overlay"),
            (self.report, ".json", "the report"),
        ):
            if path is not None:
                check_output(path, (suffix,), what)
        places = [path.resolve() for path in (*self.wanted, *inputs)]
        if len(set(places)) < len(places):
            twice = next(place for place in places if places.count(place) > 1)
            raise InputError(f"{twice} was named twice", "a file of its own for each output", "rename one")

    def write(self, scene: Scene, video: MadeVideo, report: dict[str, Any]) -> None:
        """Write everything that is wanted; the files appear together, once all are complete."""
        with AtomicFiles() as files:
            write_video(files.at(self.video), video.frames, scene.fps, video.audio)
            if self.masks is not None:
                names = np.array([character.name for character in scene.characters])
                np.savez_compressed(files.at(self.masks), masks=video.masks.numpy(), names=names)
            if self.overlay is not None:
                tinted = _tinted(video, legend_lines(scene, video))
                write_video(files.at(self.overlay), tinted, scene.fps, video.audio)
            if self.report is not None:
                text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
                files.at(self.report).write_text(text, encoding="utf-8")


def _tinted(video: MadeVideo, labels: list[str]) -> Iterator[np.ndarray]:
    """Frames under their masks, one at a time: a long video never lies in memory as a whole."""
    single = replace(video.grid, frames=1)
    frames = iter(video.frames)
    for t in range(video.grid.frames):
        shown = single.tokens_to_pixels(video.masks[:, t : t + 1])
        for frame in islice(frames, 1 if t == 0 else video.grid.time_factor):
            yield from overlay_frames(frame[None], shown, labels)


def legend_lines(scene: Scene, video: MadeVideo) -> list[str]:
    """One line per character for the overlay."""
    return [
        f"{character.name}: {100 * figure.coverage:.0f} % of the picture, confidence {figure.confidence:.2f}"
        for character, figure in zip(scene.characters, mask_figures(video.masks), strict=True)
    ]
