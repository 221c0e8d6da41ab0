"""Decoding of source footage with PyAV on a common timeline.

At most one frame is held in memory, or one clip where a clip is requested. Frames are upright: the rotation stored by
phones is applied. Frame k of the common timeline (25 fps) is the last decoded frame at or before k / 25 seconds after
the first frame, so files of any constant or variable frame rate stay in sync with their audio.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import av
import numpy as np
from av.audio.resampler import AudioResampler
from PIL import Image

from bya_core.evaluation.face_tracks import lip_crops
from training.curation.record import FPS, Record
from training.curation.stage import UnusableFootage

SAMPLE_RATE = 16_000
_TOLERANCE = 1e-3  # seconds, rounding of timestamps
_MAX_IN_MEMORY = 256 << 20  # bytes of the frames of a shot


@dataclass(frozen=True)
class Frame:
    """A decoded frame.

    Args:
        time: seconds since the first frame.
        image: frame as stored, not rotated.
        after_gap: whether undecodable data precedes it.
    """

    time: float
    image: av.VideoFrame
    after_gap: bool = False

    @property
    def pixels(self) -> np.ndarray:
        """uint8 [H,W,3], upright."""
        return rotate_upright(self.image.to_ndarray(format="rgb24"), self.image.rotation)

    def resized(self, max_side: int) -> tuple[np.ndarray, float]:
        """Return the upright pixels with the longer side at most `max_side`, and the scale factor."""
        image = self.image
        scale = min(1.0, max_side / max(image.width, image.height))
        if scale == 1.0:
            return self.pixels, 1.0
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        pixels = image.reformat(*size, "rgb24", interpolation="AREA").to_ndarray()
        return rotate_upright(pixels, image.rotation), scale


def rotate_upright(pixels: np.ndarray, rotation: int) -> np.ndarray:
    """Rotate counterclockwise by the nearest multiple of 90 degrees."""
    quarters = round(rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels


@contextmanager
def open_container(path: str) -> Iterator[av.container.InputContainer]:
    """Open a file; all FFmpeg errors are raised as `UnusableFootage`."""
    try:
        with av.open(os.fspath(path), metadata_errors="ignore") as container:
            yield container
    except av.error.FFmpegError as error:
        raise UnusableFootage(f"not readable as video ({error.strerror or type(error).__name__})") from error
    except (OSError, ValueError, UnicodeError, OverflowError) as error:
        raise UnusableFootage(f"the file cannot be read ({error})") from error


def video_stream(container: av.container.InputContainer) -> av.video.stream.VideoStream:
    """Return the first video stream that is not a cover image. Raises UnusableFootage if there is none."""
    has_cover = False
    for stream in container.streams.video:
        if stream.disposition & av.stream.Disposition.attached_pic:
            has_cover = True
        elif stream.codec_context is not None:
            return stream
    raise UnusableFootage("no video stream, only a cover image" if has_cover else "no video stream")


def decode_frames(path: str, start: float = 0.0, end: float = float("inf"), fast: bool = False) -> Iterator[Frame]:
    """Decode frames from the one shown at `start` up to `end` (seconds), one at a time.

    Undecodable data is skipped and marked by `after_gap` of the next frame.

    Args:
        fast: skip non-reference frames and deblocking, which halves the decoding time.

    Raises:
        UnusableFootage: the file cannot be opened.
    """
    with open_container(path) as container:
        video = video_stream(container)
        context = video.codec_context
        context.thread_count = 1  # many files are decoded in parallel
        if fast:
            context.skip_frame = "NONREF"
            context.options = {"skip_loop_filter": "all", "flags2": "+fast"}
        base = video.time_base or Fraction(1, 1000)
        origin = float((video.start_time or 0) * base)
        if start > 0:
            try:
                container.seek(int((origin + max(0.0, start - 0.1)) / base), stream=video, backward=True)
            except av.error.FFmpegError:
                container.seek(0)
        pending: Frame | None = None  # the last frame at or before the start
        gap = False
        for packet in container.demux(video):
            try:
                images = packet.decode()
            except av.error.FFmpegError:
                gap = True
                continue
            for image in images:
                if image.pts is None or getattr(image, "is_corrupt", False):
                    gap = True
                    continue
                frame = Frame(float(image.pts * (image.time_base or base)) - origin, image, gap)  # type: ignore[arg-type]
                gap = False
                if frame.time <= start + _TOLERANCE:
                    pending = frame
                    continue
                if pending is not None:
                    yield pending
                if frame.time >= end - _TOLERANCE:
                    return
                pending = None
                yield frame
        if pending is not None:
            yield pending


def timeline_frames(path: str, first: int, last: int) -> Iterator[tuple[int, Frame]]:
    """Yield (k, frame shown at k) for k in first..last-1.

    Raises:
        UnusableFootage: the file cannot be opened, or part of the range cannot be decoded.
    """
    k = first
    shown: Frame | None = None
    for frame in decode_frames(path, first / FPS, last / FPS):
        while shown is not None and k < last and k / FPS < frame.time - _TOLERANCE:
            yield k, shown
            k += 1
        if frame.after_gap and shown is not None:
            raise UnusableFootage(f"not decodable at {frame.time:.2f} s")
        if shown is None and frame.time > first / FPS + 0.5:
            raise UnusableFootage(f"not decodable between {first / FPS:.2f} and {frame.time:.2f} s")
        shown = frame
    while shown is not None and k < last:
        if k / FPS > shown.time + 1.0:
            raise UnusableFootage(f"video ends at {shown.time:.2f} s")
        yield k, shown
        k += 1
    if shown is None:
        raise UnusableFootage(f"not decodable from {first / FPS:.2f} s on")


def read_shot(path: str, first: int, last: int, max_side: int) -> tuple[np.ndarray, float]:
    """Decode frames first..last-1 with the longer side at most `max_side`: uint8 [F,H,W,3] and the scale factor.

    Long shots are held in an unnamed temporary file.

    Raises:
        UnusableFootage: part of the range cannot be decoded.
    """
    result: np.ndarray | None = None
    previous: tuple[Frame, np.ndarray] | None = None
    scale = 1.0
    for k, frame in timeline_frames(path, first, last):
        if previous is None or previous[0] is not frame:
            pixels, scale = frame.resized(max_side)
            previous = frame, pixels
        if result is None:
            shape = (last - first, *previous[1].shape)
            if math.prod(shape) <= _MAX_IN_MEMORY:
                result = np.empty(shape, np.uint8)
            else:
                with tempfile.TemporaryFile() as file:
                    result = np.memmap(file, np.uint8, "w+", shape=shape)
        if previous[1].shape != result.shape[1:]:
            raise UnusableFootage(f"the size of the frames changes at {frame.time:.2f} s")
        result[k - first] = previous[1]
    assert result is not None  # otherwise `timeline_frames` raises
    return result, scale


def read_frame(path: str, k: int) -> np.ndarray:
    """Decode timeline frame k as uint8 [H,W,3]. Raises UnusableFootage."""
    return next(timeline_frames(path, k, k + 1))[1].pixels


def read_crop(
    path: str, first: int, last: int, crop: tuple[float, float, float, float], size: tuple[int, int]
) -> np.ndarray:
    """Decode frames first..last-1, cropped and resized: uint8 [F, *size, 3].

    Args:
        crop: x0, y0, x1, y1 in upright source pixels.
        size: height, width.

    Raises:
        UnusableFootage: part of the range cannot be decoded.
    """
    result = np.empty((last - first, *size, 3), np.uint8)
    previous: tuple[Frame, np.ndarray] | None = None
    for k, frame in timeline_frames(path, first, last):
        if previous is None or previous[0] is not frame:
            image = Image.fromarray(frame.pixels)
            resized = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=crop, reducing_gap=3.0)
            previous = frame, np.asarray(resized)
        result[k - first] = previous[1]
    return result


def read_audio(path: str, start: float, seconds: float) -> np.ndarray:
    """Decode audio as mono float32 [S] at 16 kHz. Time 0 is that of the first video frame; gaps are silent.

    Raises:
        UnusableFootage: no audio stream, or it cannot be decoded.
    """
    num_samples = round(seconds * SAMPLE_RATE)
    waveform = np.zeros(num_samples, np.float32)
    with open_container(path) as container:
        video, streams = video_stream(container), container.streams.audio
        if not streams:
            raise UnusableFootage("no audio stream")
        base = video.time_base or Fraction(1, 1000)
        begin = start + float((video.start_time or 0) * base)
        audio = streams[0]
        if begin > 1.0:
            container.seek(int((begin - 0.5) / (audio.time_base or base)), stream=audio, backward=True)
        resampler = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE)
        position: int | None = None
        for packet in container.demux(audio):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                continue  # left silent
            for frame in frames:
                if frame.time is None:
                    continue
                expected = round((frame.time - begin) * SAMPLE_RATE)
                # the resampler keeps its own sample count; follow timestamps across real gaps only
                if position is None or abs(expected - position) > SAMPLE_RATE // 50:
                    position = expected
                for piece in resampler.resample(frame):
                    samples = np.nan_to_num(piece.to_ndarray()[0], posinf=0.0, neginf=0.0)
                    low, high = max(0, position), min(num_samples, position + len(samples))
                    if high > low:
                        waveform[low:high] = samples[low - position : high - position]
                    position += len(samples)
            if position is not None and position >= num_samples:
                break
    return waveform


def model_size(record: Record, max_side: int) -> tuple[int, int]:
    """Even height and width of a clip's crop, downscaled so that the longer side is at most `max_side`."""
    x0, y0, x1, y1 = record.data["crop"]
    scale = min(1.0, max_side / max(x1 - x0, y1 - y0))
    return max(2, round((y1 - y0) * scale / 2) * 2), max(2, round((x1 - x0) * scale / 2) * 2)


def clip_frames(record: Record, size: tuple[int, int], context: bool = False) -> np.ndarray:
    """Frames of a clip, or of its context range: uint8 [F, *size, 3], read-only. The most recent results are cached."""
    first, last = record.data["context"] if context else (record.start, record.end)
    return _read(record.source, first, last, tuple(record.data["crop"]), size)


@lru_cache(maxsize=2)
def _read(
    source: str, first: int, last: int, crop: tuple[float, float, float, float], size: tuple[int, int]
) -> np.ndarray:
    frames = read_crop(source, first, last, crop, size)
    frames.flags.writeable = False  # shared by several stages
    return frames


def clip_boxes(record: Record, size: tuple[int, int], context: bool = False) -> np.ndarray:
    """Face boxes [N,F,4] in pixels of the clip's crop resized to `size`."""
    x0, y0, x1, y1 = record.data["crop"]
    scale = np.array([size[1] / (x1 - x0), size[0] / (y1 - y0)] * 2)
    boxes = (record.array("boxes") - np.array([x0, y0, x0, y0])) * scale
    if context:
        return boxes
    offset = record.start - record.data["context"][0]
    return boxes[:, offset : offset + record.num_frames]


def clip_points(record: Record, size: tuple[int, int], context: bool = False) -> np.ndarray:
    """Face meshes float32 [N,F,468,2] in pixels of the clip's crop resized to `size`; NaN where a face is hidden."""
    boxes = clip_boxes(record, size, context)[:, :, None]
    points = record.array("points").astype(np.float32)
    offset = 0 if context else record.start - record.data["context"][0]
    return boxes[..., :2] + points[:, offset : offset + boxes.shape[1]] * (boxes[..., 2:] - boxes[..., :2])


def face_crops(record: Record, max_side: int, context: bool) -> np.ndarray:
    """Face crops of a clip, framed as SyncNet expects: uint8 [N,F,224,224,3]."""
    size = model_size(record, max_side)
    frames, boxes = clip_frames(record, size, context), clip_boxes(record, size, context)
    return np.stack([lip_crops(frames, track) for track in boxes])
