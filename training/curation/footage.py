"""Reading raw footage with PyAV: its pictures on a common time line, and its sound.

Nothing here keeps more than one picture, or one clip where a clip was asked for. Pictures are upright (the rotation
that phones write into a file is applied). Frame k of the common time line (25 a second) is the last picture at or
before second k / 25 after the first picture, so files of any frame rate, also a changing one, stay in step with their
sound.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.audio.resampler import AudioResampler
from PIL import Image

from training.curation.record import FPS
from training.curation.stage import Unusable

RATE = 16_000
_EARLY = 1e-3  # seconds that time stamps may be early by rounding


@dataclass(frozen=True)
class Picture:
    """One decoded picture: its time in seconds after the first one, and the frame (still turned as stored)."""

    time: float
    frame: av.VideoFrame
    after_break: bool = False

    @property
    def pixels(self) -> np.ndarray:
        """uint8 [H,W,3], upright."""
        return upright(self.frame.to_ndarray(format="rgb24"), self.frame.rotation)

    def small(self, longest: int) -> tuple[np.ndarray, float]:
        """The same with its longer side at most this long, scaled while it is converted; and the scale."""
        frame = self.frame
        scale = min(1.0, longest / max(frame.width, frame.height))
        if scale == 1.0:
            return self.pixels, 1.0
        size = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
        return upright(frame.reformat(*size, "rgb24", interpolation="AREA").to_ndarray(), frame.rotation), scale


def upright(pixels: np.ndarray, rotation: int) -> np.ndarray:
    """Turned counter-clockwise by the nearest quarter."""
    quarters = round(rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels


@contextmanager
def opened(path: str) -> Iterator[av.container.InputContainer]:
    """The file; whatever FFmpeg finds wrong with it is an `Unusable`."""
    try:
        with av.open(os.fspath(path), metadata_errors="ignore") as container:
            yield container
    except av.error.FFmpegError as error:
        raise Unusable(f"it cannot be read as video ({error.strerror or type(error).__name__})") from error
    except (OSError, ValueError, UnicodeError, OverflowError) as error:
        raise Unusable(f"it cannot be read ({error})") from error


def video_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream:
    """The first stream of moving pictures. Raises Unusable where there is none."""
    covers = 0
    for stream in container.streams.video:
        if stream.disposition & av.stream.Disposition.attached_pic:
            covers += 1
        elif stream.codec_context is not None:
            return stream
    raise Unusable("it holds no moving pictures, only a cover" if covers else "it holds no pictures")


def pictures(path: str, start: float = 0.0, end: float = float("inf"), rough: bool = False) -> Iterator[Picture]:
    """Decoded pictures from the one shown at second `start` up to `end`, one at a time.

    What cannot be decoded is left out, and the next picture says so (`after_break`).

    Args:
        rough: leave out what no other picture refers to, and the smoothing of block edges: twice as fast, for a look
            at what changes.

    Raises:
        Unusable: the file cannot be opened.
    """
    with opened(path) as container:
        video = video_stream(container)
        context = video.codec_context
        context.thread_count = 1  # many files are read at once
        if rough:
            context.skip_frame = "NONREF"
            context.options = {"skip_loop_filter": "all", "flags2": "+fast"}
        base = video.time_base or Fraction(1, 1000)
        origin = float((video.start_time or 0) * base)
        if start > 0:
            target = int((origin + max(0.0, start - 0.1)) / base)
            try:
                container.seek(target, stream=video, backward=True)
            except av.error.FFmpegError:
                container.seek(0)
        held: Picture | None = None
        broken = False
        for packet in container.demux(video):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                broken = True
                continue
            for frame in frames:
                if frame.pts is None or getattr(frame, "is_corrupt", False):
                    broken = True
                    continue
                picture = Picture(float(frame.pts * (frame.time_base or base)) - origin, frame, broken)  # type: ignore[arg-type]
                broken = False
                if picture.time > start + _EARLY:
                    if held is not None:
                        yield held
                    if picture.time >= end - _EARLY:
                        return
                    held = None
                    yield picture
                else:
                    held = picture  # the last one at or before the start
        if held is not None:
            yield held


def on_time_line(path: str, first: int, last: int, every: int = 1) -> Iterator[tuple[int, Picture]]:
    """(k, picture shown at frame k) for k = first, first + every ... below `last`.

    Raises:
        Unusable: the file cannot be opened, or something in between cannot be decoded.
    """
    wanted = first
    shown: Picture | None = None
    for picture in pictures(path, first / FPS, last / FPS):
        while shown is not None and wanted < last and wanted / FPS < picture.time - _EARLY:
            yield wanted, shown
            wanted += every
        if picture.after_break and shown is not None:
            raise Unusable(f"it cannot be decoded at second {picture.time:.2f}")
        if shown is None and picture.time > first / FPS + 0.5:
            raise Unusable(f"nothing can be decoded between seconds {first / FPS:.2f} and {picture.time:.2f}")
        shown = picture
    while shown is not None and wanted < last:
        if wanted / FPS > shown.time + 1.0:
            raise Unusable(f"its pictures end at second {shown.time:.2f}")
        yield wanted, shown
        wanted += every
    if shown is None:
        raise Unusable(f"nothing can be decoded from second {first / FPS:.2f} on")


def still(path: str, frame: int) -> np.ndarray:
    """uint8 [H,W,3]: the picture of one frame. Raises Unusable."""
    return next(on_time_line(path, frame, frame + 1))[1].pixels


def read_window(
    path: str, first: int, last: int, window: tuple[float, float, float, float], size: tuple[int, int]
) -> np.ndarray:
    """A part of the picture, scaled: uint8 [F, *size, 3] for frames first..last-1.

    Args:
        window: x0, y0, x1, y1 in upright pixels of the source.
        size: height, width.

    Raises:
        Unusable: something in between cannot be decoded.
    """
    made = np.empty((last - first, *size, 3), np.uint8)
    same: tuple[Picture, np.ndarray] | None = None
    for k, picture in on_time_line(path, first, last):
        if same is None or same[0] is not picture:
            image = Image.fromarray(picture.pixels)
            scaled = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=window, reducing_gap=3.0)
            same = picture, np.asarray(scaled)
        made[k - first] = same[1]
    return made


def read_sound(path: str, start: float, seconds: float) -> np.ndarray:
    """float32 [S] at 16 kHz, the mean of all channels; second 0 is that of the first picture, gaps are silent.

    Raises:
        Unusable: no sound, or it cannot be decoded.
    """
    wanted = round(seconds * RATE)
    made = np.zeros(wanted, np.float32)
    with opened(path) as container:
        video, sounds = video_stream(container), container.streams.audio
        if not sounds:
            raise Unusable("it has no sound")
        base = video.time_base or Fraction(1, 1000)
        begin = start + float((video.start_time or 0) * base)
        sound = sounds[0]
        if begin > 1.0:
            container.seek(int((begin - 0.5) / (sound.time_base or base)), stream=sound, backward=True)
        to_mono = AudioResampler(format="flt", layout="mono", rate=RATE)
        at: int | None = None
        for packet in container.demux(sound):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                continue  # stays silent
            for frame in frames:
                if frame.time is None:
                    continue
                place = round((frame.time - begin) * RATE)
                if at is None or abs(place - at) > RATE // 50:  # resampling keeps its own count; follow real gaps only
                    at = place
                for piece in to_mono.resample(frame):
                    samples = np.nan_to_num(piece.to_ndarray()[0], posinf=0.0, neginf=0.0)
                    low, high = max(0, at), min(wanted, at + len(samples))
                    if high > low:
                        made[low:high] = samples[low - at : high - at]
                    at += len(samples)
            if at is not None and at >= wanted:
                break
    return made
