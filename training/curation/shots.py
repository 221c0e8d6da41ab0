"""Stage "shots": shot boundary detection with scenedetect.

Frames are streamed, so memory does not grow with the length of a file. Only reference frames are analyzed, at reduced
resolution. The frames between the two analyzed frames around a cut are then decoded to find the exact position.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np

from bya_core.errors import InputError
from bya_core.io.video import Picture, upright
from bya_core.validation import Field, validated
from training.curation.footage import decode_frames, first_tick
from training.curation.record import FPS, Record
from training.curation.stage import Stage, UnusableFootage


@validated
class ShotSettings:
    """Options of shot detection.

    Args:
        detector: scenedetect detector: "adaptive" (color change relative to the surrounding frames, which tells cuts
            between similar shots from motion) or "content" (color change alone).
        threshold: threshold of the detector; None = default of scenedetect.
        width: analysis width in pixels.
        min_seconds: shorter shots are discarded.
        max_seconds: longer shots are split into parts of at most this length for parallel processing.
    """

    detector: Literal["content", "adaptive"] = "adaptive"
    threshold: float | None = None
    width: Annotated[int, Field(ge=16)] = 160
    min_seconds: Annotated[float, Field(gt=0)] = 1.0
    max_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.min_seconds >= self.max_seconds:
            problem = f"shots: min_seconds {self.min_seconds:g} and max_seconds {self.max_seconds:g}"
            raise InputError(problem, "min_seconds < max_seconds", "change the curation config")


class Shots(Stage):
    """Splits a source into shots."""

    name = "shots"
    version = 2

    def __call__(self, record: Record) -> list[Record]:
        min_frames = math.ceil(self.settings.min_seconds * FPS)
        max_frames = math.ceil(self.settings.max_seconds * FPS)
        count, gaps = 0, 0
        shots: list[Record] = []
        for index, (start, end, ends_at_gap) in enumerate(self._spans(record)):
            count, gaps = index + 1, gaps + ends_at_gap
            if end - start >= min_frames:
                parts = math.ceil((end - start) / max_frames)
                edges = np.linspace(start, end, parts + 1).round().astype(int).tolist()
                shots += [record.child("shot", a, b, shot=index) for a, b in zip(edges, edges[1:], strict=False)]
        if not shots:
            reason = f"no shot of at least {self.settings.min_seconds:g} s among {count}"
            return [record.reject(reason + (f", {gaps} undecodable gaps" if gaps else ""))]
        return shots

    def _spans(self, record: Record) -> Iterator[tuple[int, int, bool]]:
        """Yield (start, end, whether it ends at undecodable data) of every shot."""
        from scenedetect import FrameTimecode

        detector = _build_detector(self.settings)
        begin, previous = 0, None
        recent: list[Picture] = []
        count = 0
        for frame in decode_frames(record.source, fast=True):
            if frame.after_gap and previous is not None:
                yield begin, _end_frame(previous.time), True
                begin, recent, detector = _start_frame(frame.time), [], _build_detector(self.settings)
            count += 1
            cuts = detector.process_frame(FrameTimecode(count, float(FPS)), _downscale(frame, self.settings.width))
            recent.append(frame)
            recent = recent[-(1 + detector.event_buffer_length) - 2 :]
            for cut in sorted(int(timecode.frame_num) for timecode in cuts):
                index = len(recent) - 1 - (count - cut)
                if index < 1:
                    continue
                cut_at = self._locate_cut(record.source, recent[index - 1].time, recent[index].time)
                yield begin, cut_at, False
                begin = cut_at
            previous = frame
            recent[-1] = replace(frame, image=None, after_gap=False)  # type: ignore[arg-type]  # frees the pixels
        if previous is None:
            raise UnusableFootage("no frame can be decoded")
        yield begin, min(record.end, _end_frame(previous.time) + 3), False

    def _locate_cut(self, source: str, before: float, after: float) -> int:
        """First frame of the timeline after a cut that lies between the source frames at two times in seconds."""
        largest, cut, last = 0.0, first_tick(before, after), before
        previous: np.ndarray | None = None
        for frame in decode_frames(source, before, after + 0.5 / FPS):
            pixels = _downscale(frame, self.settings.width).astype(np.int16)
            change = 0.0 if previous is None else float(np.abs(pixels - previous).mean())
            if change > largest and frame.time <= after + 1e-3:
                largest, cut = change, first_tick(last, frame.time)
            previous, last = pixels, frame.time
        return cut


def _build_detector(settings: ShotSettings) -> Any:
    """Build a scenedetect detector that reports every cut."""
    try:
        import cv2
        from scenedetect.detectors import AdaptiveDetector, ContentDetector
    except ImportError as error:
        problem = f"scenedetect cannot be imported ({error})"
        raise InputError(problem, "scenedetect 0.7 or newer", "run pip install -e .[data]") from error
    cv2.setNumThreads(1)
    content = settings.detector == "content"
    detector, option = (ContentDetector, "threshold") if content else (AdaptiveDetector, "adaptive_threshold")
    return detector(min_scene_len=1, **({} if settings.threshold is None else {option: settings.threshold}))


def _downscale(frame: Picture, width: int) -> np.ndarray:
    """Return the frame as uint8 BGR [h, width, 3]."""
    image = frame.image
    height = max(2, round(image.height * width / image.width / 2) * 2)
    small = frame.reformatter.reformat(image, width, height, "bgr24", interpolation="FAST_BILINEAR")
    return upright(small.to_ndarray(), image)


def _start_frame(time: float) -> int:
    return math.ceil(time * FPS - 0.01)


def _end_frame(time: float) -> int:
    """Exclusive end of a shot whose last frame is shown at `time`."""
    return math.floor(time * FPS + 0.01) + 1
