"""Stage "probe": inspect a file and reject unsuitable footage (paper sec. 4.1: resolution, duration, frame rate)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import av

from bya_core.validation import validated
from training.curation.footage import open_container, video_stream
from training.curation.record import FPS, Record
from training.curation.stage import Stage, UnusableFootage

_HDR = {16: "PQ", 18: "HLG"}  # transfer functions of ITU-T H.273
_MAX_ASPECT_ERROR = 0.02  # deviation of the pixel aspect ratio from 1
_MAX_PACKETS = 300  # packets within which the first frame must be decodable


@dataclass(frozen=True)
class MediaInfo:
    """Contents of a video file, measured from its packets.

    Args:
        width, height: upright pixels.
        fps: mean frame rate.
        seconds: duration from the first to the end of the last frame.
        declared: duration according to the header; 0 = unknown.
        gap: longest interval between two frames in seconds.
        rotation: counterclockwise rotation applied, in degrees.
        codec: video codec.
        hdr: HDR transfer function, or "".
        pixel_aspect: width over height of one pixel.
        interlaced: whether the first frame is interlaced.
        audio_seconds: duration of the audio; 0 = none.
        audio_rate, audio_channels: format of the audio.
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
    pixel_aspect: float
    interlaced: bool
    audio_seconds: float
    audio_rate: int
    audio_channels: int


@validated
class ProbeSettings:
    """Requirements on source footage. The paper names resolution, duration and frame rate without values.

    Args:
        min_side: minimum pixels of the shorter side.
        max_side: maximum pixels of the longer side.
        min_seconds, max_seconds: duration range.
        min_fps, max_fps: range of the mean frame rate.
        max_gap: longest interval without a new frame in seconds.
        min_complete: minimum fraction of the declared duration that is present.
        min_audio: minimum fraction of the video duration covered by audio.
    """

    min_side: int = 480
    max_side: int = 8192
    min_seconds: float = 2.0
    max_seconds: float = 6 * 3600.0
    min_fps: float = 23.9
    max_fps: float = 121.0
    max_gap: float = 0.5
    min_complete: float = 0.9
    min_audio: float = 0.9


class Probe(Stage):
    """Reads all packets of a file once and decodes its first frame."""

    name = "probe"

    def __call__(self, record: Record) -> list[Record]:
        info = inspect_file(record.source)
        record = record.with_data(**{k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(info).items()})
        if reason := self._rejection(info):
            return [record.reject(reason)]
        return [record.child("source", 0, int(info.seconds * FPS + 1e-6))]

    def _rejection(self, info: MediaInfo) -> str | None:
        limits: ProbeSettings = self.settings
        size = f"{info.width}x{info.height} pixels"
        if min(info.width, info.height) < limits.min_side:
            return f"resolution too low: {size}, shorter side at least {limits.min_side}"
        if max(info.width, info.height) > limits.max_side:
            return f"resolution too high: {size}, longer side at most {limits.max_side}"
        if max(info.declared, info.seconds) > limits.max_seconds:
            return f"too long: {max(info.declared, info.seconds):.0f} s, at most {limits.max_seconds:.0f} s"
        if info.declared and info.seconds < limits.min_complete * info.declared - 0.2:
            return f"truncated: {info.seconds:.1f} s of video, {info.declared:.1f} s declared"
        if info.seconds < limits.min_seconds:
            return f"too short: {info.seconds:.2f} s, at least {limits.min_seconds:.2f} s"
        if info.gap > max(limits.max_gap, 1.5 / info.fps):
            return f"missing frames: {info.gap:.2f} s without a new frame"
        if not limits.min_fps <= info.fps <= limits.max_fps:
            return f"frame rate out of range: {info.fps:.2f} fps, {limits.min_fps:g} to {limits.max_fps:g}"
        if info.hdr:
            return f"HDR is not supported: {info.hdr}"
        if abs(info.pixel_aspect - 1) > _MAX_ASPECT_ERROR:
            return f"pixels are not square: aspect ratio {info.pixel_aspect:.3f}"
        if info.interlaced:
            return "interlaced video"
        if info.audio_seconds == 0:
            return "no audio"
        if info.audio_seconds < limits.min_audio * info.seconds:
            return f"incomplete audio: {info.audio_seconds:.1f} s for {info.seconds:.1f} s of video"
        return None


def inspect_file(path: str) -> MediaInfo:
    """Read all packets and decode the first frame. Raises UnusableFootage."""
    with open_container(path) as container:
        video = video_stream(container, path)
        if video.codec_context.codec is None:
            raise UnusableFootage("unknown video codec")
        audio = next((stream for stream in container.streams.audio if stream.codec_context is not None), None)
        declared = max((container.duration or 0) / av.time_base, float((video.duration or 0) * (video.time_base or 0)))
        video_times, audio_times = _Timestamps(), _Timestamps()
        first: av.VideoFrame | None = None
        for packet in container.demux([stream for stream in (video, audio) if stream is not None]):
            stamp = packet.dts if packet.dts is not None else packet.pts
            if packet.size == 0 or packet.time_base is None or stamp is None:
                continue
            is_video = packet.stream.index == video.index
            times = video_times if is_video else audio_times
            times.add(float(stamp * packet.time_base), float((packet.duration or 0) * packet.time_base))
            if is_video and first is None and video_times.count <= _MAX_PACKETS:
                first = _decode_first(video, packet)
        if video_times.count == 0:
            raise UnusableFootage("no video frames")
        first = first or _decode_first(video, None)
        if first is None:
            raise UnusableFootage("none of the first frames can be decoded")
        quarters = round(first.rotation / 90) % 4
        size = (first.width, first.height) if quarters % 2 == 0 else (first.height, first.width)
        seconds = video_times.seconds
        return MediaInfo(
            width=size[0],
            height=size[1],
            fps=video_times.count / seconds if seconds > 0 else 0.0,
            seconds=seconds,
            declared=declared,
            gap=video_times.gap,
            rotation=90 * quarters,
            codec=str(video.codec_context.name),
            hdr=_HDR.get(int(first.color_trc), ""),
            pixel_aspect=float(video.sample_aspect_ratio or 1) or 1.0,
            interlaced=bool(first.interlaced_frame),
            audio_seconds=audio_times.seconds,
            audio_rate=int(audio.rate or 0) if audio is not None else 0,
            audio_channels=int(audio.channels or 0) if audio is not None else 0,
        )


class _Timestamps:
    """Running range and largest step of timestamps."""

    def __init__(self) -> None:
        self.count, self.gap = 0, 0.0
        self.low, self.high, self.last, self.last_duration = 0.0, 0.0, 0.0, 0.0

    def add(self, time: float, duration: float) -> None:
        if self.count == 0:
            self.low = self.high = self.last = time
        self.gap = max(self.gap, time - self.last)
        self.low, self.high, self.last = min(self.low, time), max(self.high, time), time
        self.last_duration = duration
        self.count += 1

    @property
    def seconds(self) -> float:
        """Duration to the end of the last frame, whose own duration defaults to the mean interval."""
        if self.count == 0:
            return 0.0
        mean = (self.high - self.low) / (self.count - 1) if self.count > 1 else 0.0
        plausible = 0 < self.last_duration < 10 * max(mean, 0.04)
        return self.high - self.low + (self.last_duration if plausible else mean)


def _decode_first(video: av.video.stream.VideoStream, packet: av.Packet | None) -> av.VideoFrame | None:
    """Decode a packet, or flush the decoder; return its first frame, if any."""
    try:
        return next(iter(video.decode(packet)), None)
    except av.error.FFmpegError:
        return None
