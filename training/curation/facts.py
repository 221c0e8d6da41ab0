"""What a video file holds, by its packets and not only by what its header says."""

from __future__ import annotations

from dataclasses import dataclass

import av

from training.curation.footage import opened, video_stream
from training.curation.stage import Unusable

HDR = {16: "PQ", 18: "HLG"}  # transfer functions of ITU-T H.273 that ordinary screens and models do not know
_FIRST = 300  # packets in which the first picture must come


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
                if first is None and times.count <= _FIRST:
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
