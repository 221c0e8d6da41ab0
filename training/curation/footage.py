"""Reading raw footage with PyAV: what a file holds, its pictures on a common time line, its sound.

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
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler
from PIL import Image

from training.curation.record import FPS
from training.curation.stage import Unusable

RATE = 16_000
HDR = {16: "PQ", 18: "HLG"}  # transfer functions of ITU-T H.273 that ordinary screens and models do not know
_EARLY = 1e-3  # seconds that time stamps may be early by rounding
_PROBE_PACKETS = 200  # of sound looked at for its first sample


@dataclass(frozen=True)
class Facts:
    """What a file holds, by its packets and not only by what its header says.

    Args:
        width, height: upright pixels.
        fps: mean frames a second.
        seconds: from the first to the end of the last picture.
        declared: seconds that the header claims; 0 = nothing.
        gap: longest time between two pictures, in seconds.
        rotation: degrees counter-clockwise that were applied.
        codec: of the pictures.
        hdr: name of an HDR transfer function, or "".
        pixel_form: width over height of one pixel.
        interlaced: two moments in the odd and even lines of one picture.
        sound_seconds: extent of the sound; 0 = none.
        sound_rate, channels: of the sound.
    """

    width: int
    height: int
    fps: float
    seconds: float
    declared: float
    gap: float
    rotation: int
    codec: str
    hdr: str
    pixel_form: float
    interlaced: bool
    sound_seconds: float
    sound_rate: int
    channels: int


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


def look(path: str) -> Facts:
    """Read all packets, decode the first picture. Raises Unusable."""
    with opened(path) as container:
        video = video_stream(container)
        if video.codec_context.codec is None:
            raise Unusable("its pictures have an unknown codec")
        sounds = [stream for stream in container.streams.audio if stream.codec_context is not None]
        sound = sounds[0] if sounds else None
        declared = max(
            float(container.duration or 0) / av.time_base,
            float((video.duration or 0) * (video.time_base or 0)),
        )
        times = _Times()
        heard = _Times()
        first: av.VideoFrame | None = None
        for packet in container.demux([s for s in (video, sound) if s is not None]):
            if packet.size == 0 or packet.time_base is None:
                continue
            stamp = packet.dts if packet.dts is not None else packet.pts
            if stamp is None:
                continue
            if packet.stream.index == video.index:
                times.add(float(stamp * packet.time_base), float((packet.duration or 0) * packet.time_base))
                if first is None and times.count <= 300:
                    first = _first(packet)
            else:
                heard.add(float(stamp * packet.time_base), float((packet.duration or 0) * packet.time_base))
        if times.count == 0:
            raise Unusable("it holds no pictures")
        if first is None:
            first = next(iter(_flushed(video)), None)
        if first is None:
            raise Unusable("none of its first pictures can be decoded")
        quarter = round(first.rotation / 90) % 4
        size = (first.width, first.height) if quarter % 2 == 0 else (first.height, first.width)
        seconds = times.seconds
        return Facts(
            width=size[0],
            height=size[1],
            fps=times.count / seconds if seconds > 0 else 0.0,
            seconds=seconds,
            declared=declared,
            gap=times.gap,
            rotation=90 * quarter,
            codec=str(video.codec_context.name),
            hdr=HDR.get(int(first.color_trc), ""),
            pixel_form=float(video.sample_aspect_ratio or 1) or 1.0,
            interlaced=bool(first.interlaced_frame),
            sound_seconds=heard.seconds,
            sound_rate=int(sound.rate or 0) if sound is not None else 0,
            channels=int(sound.channels or 0) if sound is not None else 0,
        )


class _Times:
    """Extent and largest step of time stamps, without keeping them."""

    def __init__(self) -> None:
        self.count, self.gap = 0, 0.0
        self.low, self.high, self.last, self.tail = 0.0, 0.0, 0.0, 0.0

    def add(self, time: float, duration: float) -> None:
        if self.count == 0:
            self.low = self.high = self.last = time
        self.gap = max(self.gap, time - self.last)
        self.low, self.high, self.last = min(self.low, time), max(self.high, time), time
        self.tail = duration
        self.count += 1

    @property
    def seconds(self) -> float:
        """From the first to the end of the last; where no duration is told, the last lasts as long as the others."""
        if self.count == 0:
            return 0.0
        mean = (self.high - self.low) / (self.count - 1) if self.count > 1 else 0.0
        return self.high - self.low + (self.tail if 0 < self.tail < 10 * max(mean, 0.04) else mean)


def _first(packet: av.Packet) -> av.VideoFrame | None:
    try:
        return next(iter(packet.decode()), None)  # type: ignore[return-value]
    except av.error.FFmpegError:
        return None


def _flushed(video: av.video.stream.VideoStream) -> list[av.VideoFrame]:
    try:
        return video.decode(None)
    except av.error.FFmpegError:
        return []


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
        if picture.after_break:
            raise Unusable(f"it cannot be decoded at second {picture.time:.2f}")
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


def existing(path: str | Path) -> bool:
    """Whether a regular file (no pipe, socket or device) is there."""
    return Path(path).is_file()
