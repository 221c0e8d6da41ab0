"""Video: pictures by their time stamps, upright, on a time line of any frame rate."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.container import (
    Clock,
    Damage,
    TimeZero,
    declared_seconds,
    decode_packets,
    open_media,
    seek,
    time_zero,
    video_stream,
)
from bya_core.io.files import existing_file, file_label

EXPECTED = "a video such as mp4"
MAX_BYTES = 1 << 30  # of all frames of a video in memory
MAX_PICTURE = 64_000_000  # pixels of one picture
MIN_SIDE = 128  # pixels of the shorter side to which a video is reduced to fit into memory
MAX_FPS = 240.0
MAX_HOLD = 10.0  # seconds for which the last picture is shown at most
NEAR = 2.0  # seconds from the start up to which decoding starts at the first picture
MISSING = 0.15  # seconds that may be missing at the end without a notice
INSPECTED = 3_000  # packets from which the frame rate is taken
TOLERANCE = 1e-3  # seconds, rounding of time stamps
COMMON_FPS = (23.976, 24.0, 25.0, 29.97, 30.0, 48.0, 50.0, 59.94, 60.0, 12.5, 15.0, 10.0, 12.0)


@dataclass(frozen=True)
class Picture:
    """A decoded picture.

    Args:
        time: seconds after time zero.
        image: picture as stored, neither rotated nor mirrored.
        index: number of the picture among the decoded ones.
        after_gap: whether undecodable data precedes it.
        seconds: how long it is shown according to the file; 0 if unknown.
        reformatter: converts the pictures of a video; faster than one per picture.
    """

    time: float
    image: av.VideoFrame
    index: int = 0
    after_gap: bool = False
    seconds: float = 0.0
    reformatter: VideoReformatter = field(default_factory=VideoReformatter)

    @property
    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3], upright."""
        return upright(self.reformatter.reformat(self.image, format="rgb24").to_ndarray(), self.image)

    def resized(self, max_side: int, interpolation: str = "AREA") -> tuple[np.ndarray, float]:
        """Return the upright pixels with the longer side at most `max_side`, and the scale factor."""
        image = self.image
        scale = min(1.0, max_side / max(image.width, image.height))
        if scale == 1.0:
            return self.pixels, 1.0
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        resized = self.reformatter.reformat(image, *size, "rgb24", interpolation=interpolation)
        return upright(resized.to_ndarray(), image), scale


@dataclass(frozen=True)
class Video:
    """Frames of a video at a constant rate.

    Args:
        frames: uint8 [F, H, W, 3], upright; frame k is the picture nearest to `start` + k / `fps` seconds.
        fps: frames per second.
        pictures: [F] int64, number of the picture of the file that each frame shows.
        num_pictures: pictures that were decoded.
        notices: what is missing or was changed, one sentence each.
    """

    frames: Tensor
    fps: float
    pictures: Tensor
    num_pictures: int
    notices: tuple[str, ...] = ()


def upright(pixels: np.ndarray, image: av.VideoFrame) -> np.ndarray:
    """Rotate and mirror pixels [H, W, 3] as the display matrix of a picture says."""
    quarters, mirrored = display_transform(image)
    if quarters:
        pixels = np.rot90(pixels, quarters)
    if mirrored:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def display_transform(image: av.VideoFrame) -> tuple[int, bool]:
    """Counterclockwise quarter turns, and whether the turned picture is mirrored left to right."""
    matrix: Any = image.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return round(image.rotation / 90) % 4, False
    a, b, _, c, d, *_ = np.frombuffer(memoryview(matrix), np.int32, 9).astype(float) / 65536
    mirrored = a * d - b * c < 0
    if mirrored:
        a, c = -a, -c  # the display matrix mirrors horizontally after the rotation
    angle = math.degrees(math.atan2(-b, a)) if a or b else 0.0
    return round(angle / 90) % 4, mirrored


def decode_pictures(
    path: str | os.PathLike[str],
    start: float = 0.0,
    stop: float = math.inf,
    *,
    zero: TimeZero = "file",
    fast: bool = False,
    damage: Damage | None = None,
    what: str = "the video",
) -> Iterator[Picture]:
    """Decode the pictures of a video, one at a time, from the one shown at `start` up to the first at or after `stop`.

    Undecodable data is skipped and marked by `after_gap` of the next picture.

    Args:
        path: video file.
        start, stop: range in seconds after time zero.
        zero: "file" counts from the start of playback, "video" from the first picture.
        fast: skip non-reference pictures and deblocking, which halves the decoding time.
        damage: updated while reading.
        what: the video in messages.

    Raises:
        InputError: The file is missing, unreadable, or has no video.
    """
    path = existing_file(path, what)
    damage = damage or Damage()
    with open_media(path, what, EXPECTED) as container:
        stream = video_stream(container, path)
        context = stream.codec_context
        context.thread_count = 1  # many files are decoded in parallel
        if fast:
            context.skip_frame = "NONREF"
            context.options = {"skip_loop_filter": "all", "flags2": "+fast"}
        base = stream.time_base or Fraction(1, 1000)
        first = stream.start_time
        origin = time_zero(container)
        if first is not None and (zero == "video" or abs(float(first * base) - origin) < 0.6 / nominal_fps(stream)):
            origin = float(first * base)  # the first picture is frame 0, also if the audio starts a little earlier
        if start > NEAR:
            seek(container, stream, origin + start - 0.1)
        clock = Clock(origin, 1 / nominal_fps(stream))
        pending: Picture | None = None  # the last picture at or before the start
        index, errors, reformatter = -1, damage.errors, VideoReformatter()
        for image in decode_packets(container, stream, damage):
            _check_size(image.width, image.height, file_label(what, path))
            corrupt = getattr(image, "is_corrupt", False)
            if corrupt:
                damage.errors += 1
                continue
            index += 1
            time = clock(image.pts, image.time_base or base)
            shown = float((image.duration or 0) * (image.time_base or base))
            picture = Picture(time, image, index, damage.errors > errors, shown, reformatter)
            errors = damage.errors
            if picture.time <= start + TOLERANCE:
                pending = picture
                continue
            if pending is not None:
                yield pending
                pending = None
            yield picture
            if picture.time >= stop - TOLERANCE:
                return
        if pending is not None:
            yield pending


def nominal_fps(stream: Any) -> float:
    """Frame rate that a stream declares, 25 if it declares none."""
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < float(rate) <= MAX_FPS:
            return float(rate)
    return 25.0


def _check_size(width: int, height: int, what: str) -> None:
    if width * height > MAX_PICTURE:
        expected = f"at most {MAX_PICTURE // 1_000_000} megapixels"
        raise InputError(f"{what} has pictures of {width}x{height} pixels", expected, "reduce its size")


def on_time_line(pictures: Iterable[Picture], fps: float, first: int = 0) -> Iterator[tuple[int, Picture]]:
    """Yield (k, picture nearest to k / fps seconds) for k = first, first + 1, ... up to the end of the last picture.

    Where a picture is shown for longer than two frames, it is held until one frame before the next.

    Args:
        pictures: in order of time, as from `decode_pictures`.
        fps: frames per second.
        first: first frame of the time line.
    """
    k, shown, interval = first, None, 1 / fps
    for picture in pictures:
        if shown is not None:
            interval = picture.time - shown.time
            turn = picture.time - min(interval / 2, 1 / fps + TOLERANCE)
            while k / fps <= turn:
                yield k, shown
                k += 1
        shown = picture
    if shown is not None:
        end = shown.time + min(shown.seconds or interval, MAX_HOLD)
        while k / fps < end - 0.5 / fps or k == first:
            yield k, shown
            k += 1


def read_video(path: str | os.PathLike[str]) -> tuple[Tensor, float]:
    """Read the frames of a video: (uint8 [F, H, W, 3], frames per second).

    Raises:
        InputError: see `read_frames`.
    """
    video = read_frames(path)
    return video.frames, video.fps


def read_frames(
    path: str | os.PathLike[str],
    fps: float | None = None,
    *,
    start: float = 0.0,
    seconds: float | None = None,
    max_side: int | None = None,
    max_bytes: int = MAX_BYTES,
    what: str = "the video",
) -> Video:
    """Read the frames of a video upright and at a constant rate. Only the part that is asked for is decoded.

    Args:
        path: video file.
        fps: frames per second; None is the rate of the file, or the usual interval of one with a variable rate.
        start: start of the part in seconds after the start of playback.
        seconds: length of the part; None reads to the end.
        max_side: pixels of the longer side to which frames are reduced; None keeps their size.
        max_bytes: limit of all frames; longer videos are reduced to fit, with a notice.
        what: the video in messages.

    Raises:
        InputError: The file is missing, unreadable, has no video, or is too long.
    """
    path = existing_file(path, what)
    own, declared, exact = _inspect(path, what)
    fps = own if fps is None else fps
    if not 0 < fps <= MAX_FPS:
        raise InputError(f"{fps:g} frames per second", f"at most {MAX_FPS:g}", "use a usual frame rate")
    rest = max(0.0, declared - start)
    count = (rest if seconds is None else min(seconds, rest) if declared else seconds) * fps
    limit = math.inf if seconds is None else round(seconds * fps)
    damage, first = Damage(), round(start * fps)
    pictures = decode_pictures(path, start, math.inf if seconds is None else start + seconds, damage=damage, what=what)
    buffer = _Frames(file_label(what, path), fps, count, max_side, max_bytes)
    shown: list[int] = []
    for k, picture in on_time_line(pictures, fps, first):
        if k - first >= limit:
            break
        buffer.add(picture)
        shown.append(picture.index)
    if not shown:
        reason = "nothing in it can be decoded" if damage.errors or damage.cut else "it has no pictures"
        raise InputError(f"{file_label(what, path)} is empty ({reason})", "at least one frame", "choose another file")
    end = (first + len(shown)) / fps
    return Video(
        frames=buffer.frames,
        fps=fps,
        pictures=torch.tensor(shown),
        num_pictures=max(shown) + 1,
        notices=(
            *buffer.notices(path.name),
            *_missing(path.name, damage, end, declared if exact else 0.0),
        ),
    )


def _missing(name: str, damage: Damage, end: float, declared: float) -> list[str]:
    """What could not be read of a video that ends at `end` seconds."""
    notices, short = [], declared - end > max(MISSING, 0.02 * declared)
    if damage.reached_end and (damage.cut or short):
        says = f" of {declared:.2f} s" if short else ""
        notices.append(f"{name} is incomplete: it ends at {end:.2f} s{says}, the end is missing.")
    elif damage.errors:
        notices.append(f"{name} is damaged: {damage.errors} pictures cannot be decoded; the ones before are held.")
    return notices


def _inspect(path: Path, what: str) -> tuple[float, float, bool]:
    """Frame rate of a time line that shows all pictures of a video, and `declared_seconds`."""
    with open_media(path, what, EXPECTED) as container:
        stream = video_stream(container, path)
        _check_size(stream.codec_context.width or 0, stream.codec_context.height or 0, file_label(what, path))
        nominal = nominal_fps(stream)
        declared, exact = declared_seconds(container, stream, time_zero(container))
        times = []
        for packet in islice(container.demux(stream), INSPECTED):
            if packet.pts is not None and packet.time_base:
                times.append(float(packet.pts * packet.time_base))
    steps = np.diff(np.unique(times))
    steps = steps[steps > TOLERANCE]
    if not len(steps):
        return nominal, declared, exact
    usual = steps[abs(steps - np.median(steps)) <= max(0.3 * float(np.median(steps)), 2 * TOLERANCE)]
    rate = 1 / float(usual.mean())
    if len(usual) == len(steps) and abs(rate / nominal - 1) < 0.02:
        return nominal, declared, exact  # a constant rate
    nearest = min(COMMON_FPS, key=lambda common: abs(common / rate - 1))
    return (nearest if abs(nearest / rate - 1) < 0.03 else min(rate, MAX_FPS)), declared, exact


class _Frames:
    """Collects upright frames in one array of bounded size."""

    def __init__(self, what: str, fps: float, count: float, max_side: int | None, max_bytes: int) -> None:
        self.what, self.fps, self.count, self.max_side, self.max_bytes = what, fps, count, max_side, max_bytes
        self.buffer = np.zeros((0, 0, 0, 3), np.uint8)
        self.used, self.side = 0, max_side
        self.last: Picture | None = None

    @property
    def frames(self) -> Tensor:
        """uint8 [F, H, W, 3]."""
        return torch.from_numpy(self.buffer[: self.used])

    def notices(self, name: str) -> list[str]:
        if self.side == self.max_side:
            return []
        return [f"{name} is reduced to {self.side} pixels on the longer side, to fit into memory."]

    def add(self, picture: Picture) -> None:
        if self.used and picture is self.last:
            self._append(self.buffer[self.used - 1].copy())
            return
        if not self.used:
            self.side = self._fitting_side(picture.image)
        self.last = picture
        pixels = picture.pixels if self.side is None else picture.resized(self.side)[0]
        if self.used and pixels.shape != self.buffer.shape[1:]:  # the size changes within the video
            size = self.buffer.shape[2], self.buffer.shape[1]
            pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
        self._append(pixels)

    def _append(self, pixels: np.ndarray) -> None:
        most = self.max_bytes // pixels.nbytes
        if self.used >= most:
            raise self._too_long(pixels.nbytes)
        if self.used == len(self.buffer):
            capacity = min(most, max(self.used * 3 // 2, math.ceil(min(self.count, 1000.0)) + 1, self.used + 1))
            if self.used:
                self.buffer.resize((capacity, *pixels.shape), refcheck=False)
            else:
                self.buffer = np.empty((capacity, *pixels.shape), np.uint8)
        self.buffer[self.used] = pixels
        self.used += 1

    def _fitting_side(self, image: av.VideoFrame) -> int | None:
        """Longer side in pixels to which frames are reduced; None if they are not."""
        width, height = image.width, image.height
        scale = 1.0 if self.max_side is None else min(1.0, self.max_side / max(width, height))
        size = 3 * width * height * scale**2 * max(1.0, self.count)
        if size <= self.max_bytes:
            return self.max_side
        scale *= math.sqrt(0.98 * self.max_bytes / size)
        least = min(1.0, MIN_SIDE / min(width, height))
        if scale < least:
            raise self._too_long(3 * width * height * least**2)
        return max(1, int(max(width, height) * scale))

    def _too_long(self, size: float) -> InputError:
        seconds = self.max_bytes / size / self.fps
        return InputError(f"{self.what} is too long", f"at most about {seconds:.0f} s", "use a shorter part of it")
