"""Stage 2: where one camera shot ends and the next begins, by the detectors of scenedetect.

Pictures are streamed: memory does not grow with the length of a film. Only every picture that others refer to is
looked at, shrunk; frames between the two pictures around a cut belong to neither shot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bya_core.errors import InputError
from training.curation.footage import Picture, pictures, upright
from training.curation.record import FPS, Record
from training.curation.stage import Resources, Unusable


@dataclass(frozen=True)
class ShotSettings:
    """How cuts are found.

    Args:
        detector: "content" (hard cuts by the change of colours) or "adaptive" (the change against that around it; for
            footage with much camera motion). Both are scenedetect's.
        threshold: of the detector; None = scenedetect's own.
        width: pixels that pictures are shrunk to.
        least_seconds: shorter shots are left out.
        longest_seconds: longer shots are worked on in pieces of this length, so that many processes share them.
    """

    detector: Literal["content", "adaptive"] = "content"
    threshold: float | None = None
    width: int = 160
    least_seconds: float = 1.0
    longest_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.detector not in ("content", "adaptive"):
            raise InputError(f"a shot detector {self.detector!r}", '"content" or "adaptive"', "choose one of them")
        if not 0 < self.least_seconds < self.longest_seconds or self.width < 16:
            raise InputError(f"{self}", "0 < least_seconds < longest_seconds and a width of 16 pixels", "change them")


class Shots:
    """Cuts a source into shots."""

    name = "shots"
    version = 1

    def __init__(self, settings: ShotSettings, resources: Resources) -> None:
        self.settings, self.resources = settings, resources

    def __call__(self, record: Record) -> list[Record]:
        least = math.ceil(self.settings.least_seconds * FPS)
        cuts, breaks = 0, 0
        made: list[Record] = []
        for number, (start, end, broken) in enumerate(self._spans(record)):
            cuts, breaks = number, breaks + broken
            if end - start < least:
                continue
            made += [record.part("shot", a, b, shot=number) for a, b in _pieces(start, end, self._longest)]
        if not made:
            reason = f"no shot of {self.settings.least_seconds:g} s: {cuts + 1} shots"
            return [record.reject(reason + (f", {breaks} places cannot be decoded" if breaks else ""))]
        return made

    @property
    def _longest(self) -> int:
        return math.ceil(self.settings.longest_seconds * FPS)

    def _spans(self, record: Record) -> Iterator[tuple[int, int, bool]]:
        """(first frame, end, whether it ends where something cannot be decoded) of every shot."""
        from scenedetect import FrameTimecode

        detector = _detector(self.settings)
        begin, before = 0.0, None
        recent: list[Picture] = []
        count = 0
        for picture in pictures(record.source, rough=True):
            if picture.after_break and before is not None:
                yield _first(begin), _last(before.time), True
                begin, recent, detector = picture.time, [], _detector(self.settings)
            count += 1
            found = detector.process_frame(FrameTimecode(count, float(FPS)), _small(picture, self.settings.width))
            recent.append(picture)
            recent = recent[-(1 + detector.event_buffer_length) - 2 :]
            for cut in sorted(int(timecode.frame_num) for timecode in found):
                place = len(recent) - 1 - (count - cut)
                if place < 1:
                    continue
                yield _first(begin), _last(recent[place - 1].time), False
                begin = recent[place].time
            before = picture
            recent[-1] = Picture(picture.time, None, False)  # type: ignore[arg-type] - times are kept, pixels are not
        if before is None:
            raise Unusable("none of its pictures can be decoded")
        yield _first(begin), min(record.end, _last(before.time) + 3), False


def _detector(settings: ShotSettings) -> Any:
    """A fresh detector of scenedetect; every cut counts, however near to the one before."""
    try:
        import cv2
        from scenedetect.detectors import AdaptiveDetector, ContentDetector
    except ImportError as error:
        came = f"scenedetect cannot be used here ({error})"
        raise InputError(came, "scenedetect 0.7 or newer", 'pip install "bind-your-avatar[data]"') from error
    cv2.setNumThreads(1)
    if settings.detector == "content":
        own = {} if settings.threshold is None else {"threshold": settings.threshold}
        return ContentDetector(min_scene_len=1, **own)
    own = {} if settings.threshold is None else {"adaptive_threshold": settings.threshold}
    return AdaptiveDetector(min_scene_len=1, **own)


def _small(picture: Picture, width: int) -> np.ndarray:
    """uint8 BGR [h, width, 3]."""
    frame = picture.frame
    height = max(2, round(frame.height * width / frame.width / 2) * 2)
    small = frame.reformat(width, height, "bgr24", interpolation="FAST_BILINEAR").to_ndarray()
    return upright(small, frame.rotation)


def _first(time: float) -> int:
    return math.ceil(time * FPS - 0.01)


def _last(time: float) -> int:
    """End (excluded) of a shot whose last picture is shown at `time`."""
    return math.floor(time * FPS + 0.01) + 1


def _pieces(start: int, end: int, longest: int) -> Iterator[tuple[int, int]]:
    """Even pieces of at most `longest` frames."""
    count = math.ceil((end - start) / longest)
    edges = np.linspace(start, end, count + 1).round().astype(int).tolist()
    yield from zip(edges, edges[1:], strict=False)
