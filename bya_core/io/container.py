"""Opening of audio and video files with PyAV: allowed formats, usable streams, time zero, damaged data."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av

from bya_core.errors import InputError
from bya_core.io.files import file_label
from bya_core.io.truncation import repaired

TimeZero = Literal["file", "video"]
FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,gif,h264,hevc,ivf,m4v,matroska,mov,mp3,mpeg,mpegts,"
    "mpegvideo,mxf,nut,obu,ogg,rm,tta,voc,w64,wav,wv,yuv4mpegpipe"
)  # no playlists, image sequences or scripts, which can name other files and addresses
DAMAGE = (av.error.FFmpegError, ValueError, RuntimeError, NotImplementedError, OverflowError, IndexError, TypeError)
MAX_ERRORS = 10_000  # undecodable packets after which reading stops
JUMP = 600.0  # seconds; larger steps of the time stamps are errors of the file


@dataclass
class Damage:
    """What could not be decoded.

    Args:
        errors: number of undecodable packets.
        cut: whether the end of the file is undecodable.
        reached_end: whether reading went on to the end of the file.
    """

    errors: int = 0
    cut: bool = False
    reached_end: bool = False


@contextmanager
def open_media(path: str | os.PathLike[str], what: str, expected: str) -> Iterator[av.container.InputContainer]:
    """Open a file; FFmpeg's errors are raised as one `InputError`.

    Args:
        path: existing file.
        what: the file in messages, such as "the audio".
        expected: what was expected, such as "an audio file such as wav".
    """
    path = Path(path)
    try:
        # "file:" and an absolute path: a name with a colon is no address
        name = "file:" + os.path.abspath(path)
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
        with av.open(repaired(path) or name, "r", options=options, metadata_errors="ignore") as container:
            yield container
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{file_label(what, path)} needs too much memory", expected, "use a smaller file") from error
    except (*DAMAGE, OSError) as error:
        size = path.stat().st_size if path.exists() else 0
        reason = "it is empty" if not size else _reason(error)
        hint = "save it again in one of these formats" if size else "choose another file"
        raise InputError(f"{file_label(what, path)} cannot be read ({reason})", expected, hint) from error


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.ArgumentError):
        return "its format is not supported"
    if isinstance(error, av.error.InvalidDataError):
        return "it is damaged, or neither audio nor video"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).strip().rstrip(".")[:120]


def usable_stream(container: av.container.InputContainer, kind: str) -> Any:
    """The first "audio" or "video" stream with a decoder that is no cover image, or None."""
    for stream in container.streams:
        if stream.type != kind or stream.codec_context is None or stream.codec_context.codec is None:
            continue
        if kind == "video" and stream.disposition & av.stream.Disposition.attached_pic:
            continue
        return stream
    return None


def video_stream(container: av.container.InputContainer, path: str | os.PathLike[str]) -> Any:
    """The first video stream that is no cover image. Raises InputError if there is none."""
    stream = usable_stream(container, "video")
    if stream is None:
        kinds = [other for other in container.streams if other.type == "video"]
        cover = any(other.disposition & av.stream.Disposition.attached_pic for other in kinds)
        problem = f"{path} has no video stream"
        problem += ", only a cover image" if cover else ", only one of an unknown codec" if kinds else ""
        raise InputError(problem, "a video", "choose another file")
    return stream


def time_zero(container: av.container.InputContainer, zero: TimeZero = "file") -> float:
    """Time stamp in seconds of time zero.

    Args:
        container: opened by `open_media`.
        zero: "file" is the start of playback, that of the first audio or video stream; "video" the first picture.
    """
    if zero == "video" and (stream := usable_stream(container, "video")) is not None:
        return float((stream.start_time or 0) * (stream.time_base or 0))
    starts = []
    for kind in ("audio", "video"):
        stream = usable_stream(container, kind)
        if stream is not None and stream.start_time is not None and stream.time_base:
            starts.append(float(stream.start_time * stream.time_base))
    if not starts and container.start_time is not None:
        starts.append(container.start_time / av.time_base)
    return min(starts, default=0.0)


def declared_seconds(container: av.container.InputContainer, stream: Any, zero: float) -> tuple[float, bool]:
    """End of a stream after time zero (a time stamp) in seconds according to the header, 0 if unknown.

    Also whether this is the end of this stream, and not that of the longest of the file.
    """
    start = float((stream.start_time or 0) * (stream.time_base or 0))
    if stream.duration and stream.time_base:
        return max(0.0, start + float(stream.duration * stream.time_base) - zero), True
    clock = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", str(stream.metadata.get("DURATION", "")))  # Matroska
    if clock is not None:
        hours, minutes, seconds = (float(part) for part in clock.groups())
        return max(0.0, 3600 * hours + 60 * minutes + seconds - zero), True
    alone = sum(each.type in ("audio", "video") for each in container.streams) == 1
    return max(0.0, (container.duration or 0) / av.time_base), alone


def seek(container: av.container.InputContainer, stream: Any, time: float) -> None:
    """Go to the last point at or before a time stamp in seconds from which decoding can start, if there is an index."""
    for target in (int(time / (stream.time_base or 1)), stream.start_time or 0):
        try:
            container.seek(target, stream=stream, backward=True)
            return
        except (av.error.FFmpegError, OverflowError):
            continue


def decode_packets(
    container: av.container.InputContainer, stream: Any, damage: Damage, skip_before: float | None = None
) -> Iterator[Any]:
    """Yield decoded frames of one stream; undecodable packets are counted in `damage` and skipped.

    Args:
        container: opened by `open_media`.
        stream: stream to decode.
        damage: updated while reading.
        skip_before: time stamp in seconds; packets that end before it are not decoded.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.EOFError):
            damage.reached_end = True
            return
        except DAMAGE:
            damage.cut = damage.reached_end = True
            return
        if skip_before is not None and packet.pts is not None and packet.time_base is not None:
            if float((packet.pts + (packet.duration or 0)) * packet.time_base) < skip_before:
                continue
            skip_before = None
        try:
            frames = packet.decode()
        except av.error.EOFError:
            continue
        except DAMAGE:
            damage.errors += 1
            damage.cut = True  # until more is decoded
            if damage.errors > MAX_ERRORS:
                damage.reached_end = True
                return
            continue
        if frames:
            damage.cut = False
        yield from frames


@dataclass
class Clock:
    """Time stamps in seconds after time zero that follow those of a file, without impossible steps.

    Args:
        zero: time stamp of time zero in seconds.
        step: seconds by which frames without a time stamp follow each other.
    """

    zero: float
    step: float = 0.0
    last: float | None = field(default=None, init=False)
    shift: float = field(default=0.0, init=False)
    _base: Fraction | None = field(default=None, init=False)
    _unit: float = field(default=0.0, init=False)

    def __call__(self, pts: int | None, base: Fraction | None, seconds: float | None = None) -> float:
        """Time of a frame; `seconds` is its duration if it is known."""
        step = self.step if seconds is None else seconds
        following = 0.0 if self.last is None else self.last
        if pts is None or not base:
            time = following
        else:
            if base is not self._base:
                self._base, self._unit = base, float(base)
            time = pts * self._unit - self.zero + self.shift
            if abs(time - following) > JUMP and self.last is not None or time < following - 1.0:
                self.shift += following - time  # the stamps start again, or are damaged
                time = following
        self.last = time + step
        return time
