"""Source footage on the common timeline, read with `bya_core.io.media`.

At most one frame is held in memory, or one clip where a clip is requested. Frames are upright. Frame k of the common
timeline (25 fps) is the picture nearest to k / 25 seconds after the first picture, so files of any constant or variable
frame rate stay in sync with their audio.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import av
import numpy as np
from PIL import Image

from bya_core.errors import InputError
from bya_core.evaluation.face_tracks import lip_crops
from bya_core.io import container as media
from bya_core.io.files import existing_file
from bya_core.io.media import Picture, decode_pictures, on_time_line, read_recording, resample_mono
from bya_core.io.video import TOLERANCE
from training.curation.record import FPS, Record
from training.curation.stage import UnusableFootage

SAMPLE_RATE = 16_000
_MAX_IN_MEMORY = 256 << 20  # bytes of the frames of a shot
_MAX_OPEN = 3  # decoders of files whose following frames may be read next
_AHEAD = 100  # frames that are decoded instead of opening the file again
MARGIN = 0.1  # seconds of audio on each side that are resampled with a part


@contextmanager
def footage_errors(path: str) -> Iterator[None]:
    """Raise every `InputError` as `UnusableFootage`, with its problem, without the path, as the reason."""
    try:
        yield
    except InputError as error:
        reason = error.problem.removeprefix("the footage ").removeprefix(f"{path} ").removeprefix("has ")
        raise UnusableFootage(reason) from error


@contextmanager
def open_container(path: str) -> Iterator[av.container.InputContainer]:
    """Open a file; all errors are raised as `UnusableFootage`."""
    with footage_errors(path), media.open_media(path, "the footage", "a video") as container:
        yield container


def video_stream(container: av.container.InputContainer, path: str) -> av.video.stream.VideoStream:
    """Return the first video stream that is not a cover image. Raises UnusableFootage if there is none."""
    with footage_errors(path):
        return media.video_stream(container, path)


def decode_frames(path: str, start: float = 0.0, end: float = float("inf"), fast: bool = False) -> Iterator[Picture]:
    """Decode pictures from the one shown at `start` to the first at or after `end` (seconds), see `decode_pictures`.

    Raises:
        UnusableFootage: the file cannot be opened.
    """
    with footage_errors(path):
        yield from decode_pictures(path, start, end, zero="video", fast=fast, what="the footage")


def first_tick(before: float, time: float) -> int:
    """First frame of the timeline that shows the picture at `time`, which follows one at `before` (seconds).

    The same rule as that of `on_time_line`.
    """
    turn = time - min((time - before) / 2, 1 / FPS + TOLERANCE)
    return math.floor(turn * FPS + 1e-9) + 1


def timeline_frames(path: str, first: int, last: int) -> Iterator[tuple[int, Picture]]:
    """Yield (k, picture nearest to k) for k in first..last-1.

    A range that begins shortly after the end of a recent one continues its decoder, see `close_footage`.

    Raises:
        UnusableFootage: the file cannot be opened, or part of the range cannot be decoded.
    """
    decoder = _take_decoder(path, first)
    for k, picture in decoder.frames(last):
        if k >= first:
            yield k, picture
    if decoder.next == last:
        _decoders.append(decoder)
        return
    if decoder.shown is None:
        raise UnusableFootage(f"not decodable from {first / FPS:.2f} s on")
    for k in range(max(first, decoder.next), last):
        if k / FPS > decoder.shown.time + 1.0:
            raise UnusableFootage(f"video ends at {decoder.shown.time:.2f} s")
        yield k, decoder.shown


class _Decoder:
    """The frames of a file from `first` on, in ranges that follow each other."""

    def __init__(self, path: str, first: int) -> None:
        self.file, self.next, self.last = _identity(path), first, first
        self.whole = True  # nothing undecodable so far
        self.shown: Picture | None = None  # the last one
        self._first, self._frames = first, on_time_line(self._pictures(path), FPS, first)

    def frames(self, last: int) -> Iterator[tuple[int, Picture]]:
        """The frames up to `last`, exclusive, or up to the end. Raises UnusableFootage where some are missing."""
        self.last = last
        while self.next < last and (found := next(self._frames, None)) is not None:
            self.next, self.shown = found[0] + 1, found[1]
            yield found

    def _pictures(self, path: str) -> Iterator[Picture]:
        previous: Picture | None = None
        for picture in decode_frames(path, self._first / FPS):
            if previous is None and picture.time > self._first / FPS + 0.5:
                raise UnusableFootage(f"not decodable between {self._first / FPS:.2f} and {picture.time:.2f} s")
            if previous is not None and picture.after_gap:
                self.whole = False
                if previous.time < (self.last - 1) / FPS:
                    raise UnusableFootage(f"not decodable at {picture.time:.2f} s")
            previous = picture
            yield picture


_decoders: list[_Decoder] = []  # the most recent ones last


def _take_decoder(path: str, first: int) -> _Decoder:
    """The open decoder that is closest before a frame, or a new one, which seeks."""
    file = _identity(path)
    near = [each for each in _decoders if each.file == file and 0 <= first - each.next <= _AHEAD and each.whole]
    if not near:
        while len(_decoders) >= _MAX_OPEN:
            del _decoders[0]
        return _Decoder(path, first)
    decoder = max(near, key=lambda each: each.next)
    _decoders.remove(decoder)
    return decoder


def _identity(path: str) -> tuple[str, int, int]:
    """Path, size and time of change of a file."""
    with footage_errors(path):
        info = existing_file(path, "the footage").stat()
    return path, info.st_size, info.st_mtime_ns


def close_footage() -> None:
    """Close the files that `timeline_frames` keeps open for following ranges, and free cached frames."""
    _decoders.clear()
    read_frame.cache_clear()
    _read.cache_clear()


def read_shot(path: str, first: int, last: int, max_side: int) -> tuple[np.ndarray, float]:
    """Decode frames first..last-1 with the longer side at most `max_side`: uint8 [F,H,W,3] and the scale factor.

    Long shots are held in an unnamed temporary file.

    Raises:
        UnusableFootage: part of the range cannot be decoded.
    """
    result: np.ndarray | None = None
    previous: tuple[Picture, np.ndarray] | None = None
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


@lru_cache(maxsize=4)
def read_frame(path: str, k: int) -> np.ndarray:
    """Decode timeline frame k as uint8 [H,W,3], read-only; recent results are cached. Raises UnusableFootage."""
    [(_, picture)] = timeline_frames(path, k, k + 1)
    pixels = picture.pixels
    pixels.flags.writeable = False  # shared by the clips of a shot
    return pixels


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
    previous: tuple[Picture, np.ndarray] | None = None
    reduction = max(size[1] / (crop[2] - crop[0]), size[0] / (crop[3] - crop[1]))
    for k, frame in timeline_frames(path, first, last):
        if previous is None or previous[0] is not frame:
            largest = max(frame.image.width, frame.image.height)
            pixels, scale = frame.resized(math.ceil(largest * min(1.0, reduction)))  # fast, before the exact crop
            image = Image.fromarray(pixels)
            box = np.minimum(np.array(crop) * scale, np.tile(image.size, 2)).tolist()  # sizes are rounded
            resized = image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)
            previous = frame, np.asarray(resized)
        result[k - first] = previous[1]
    return result


def read_audio(path: str, start: float, seconds: float) -> np.ndarray:
    """Decode audio as mono float32 [S] at 16 kHz. Time 0 is that of the first video frame; gaps are silent.

    Raises:
        UnusableFootage: no audio stream, or it cannot be decoded.
    """
    first = max(0.0, start - MARGIN)
    with footage_errors(path):
        part = read_recording(path, first, start + seconds + MARGIN - first, "the footage", zero="video")
    skipped, count = round((start - first) * SAMPLE_RATE), round(seconds * SAMPLE_RATE)
    samples = resample_mono(part.waveform, part.sample_rate, SAMPLE_RATE)[skipped : skipped + count].numpy()
    return np.pad(samples, (0, count - len(samples)))


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
