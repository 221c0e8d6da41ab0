"""Writing of mp4 files with H.264 video and AAC audio."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write
from bya_core.io.audio import resample, to_mono

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[Tensor | np.ndarray],
    fps: float,
    audio: tuple[Tensor, int] | None = None,
    preset: str = "medium",
    lossless: bool = False,
) -> None:
    """Write an mp4 (H.264 and AAC) atomically.

    Args:
        path: output file; an existing one is replaced.
        frames: uint8 [H, W, 3] each, all of the same even size.
        fps: frames per second.
        audio: ([C, S] in -1..1, sample rate in Hz); cut to the length of the video.
        lossless: store the exact pixels (H.264 in RGB, which few players show); also of odd sizes.
        preset: effort of the encoder, a preset of x264; the quality is the same, faster ones give larger files.

    Raises:
        InputError: There are no frames, or frames of odd or different sizes.
    """
    # an open file, because PyAV cannot encode every path
    with atomic_write(path) as temporary, temporary.open("wb") as out, av.open(out, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        # mbtree reads uninitialized memory for small frames, so that equal frames would not give equal files
        quality = {"qp": "0"} if lossless else {"crf": "16"}
        options = {**quality, "preset": preset, "x264-params": "mbtree=0"}
        video = container.add_stream("libx264rgb" if lossless else "libx264", rate=rate, options=options)
        video.pix_fmt = "rgb24" if lossless else "yuv420p"
        if not lossless:  # players take untagged video of 720 lines and more for BT.709, with other colors
            video.codec_context.colorspace = Colorspace.ITU601
            video.codec_context.color_range = ColorRange.MPEG
        track = _AudioWriter(container, *audio) if audio is not None else None
        size: tuple[int, int] | None = None
        count = 0
        for frame in frames:
            pixels = np.ascontiguousarray(np.asarray(frame))
            if size is None:
                size = pixels.shape[0], pixels.shape[1]
                if not lossless and (size[0] % 2 or size[1] % 2):
                    raise InputError(f"frames of {size[1]}x{size[0]} pixels", "even sizes", "change the size")
                video.height, video.width = size
            if pixels.shape != (*size, 3) or pixels.dtype != np.uint8:
                raise InputError(f"a frame {pixels.shape} {pixels.dtype}", f"uint8 {(*size, 3)}", "use one size")
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            count += 1
            if track is not None:
                track.write(container, float(count / rate))
        if not count:
            raise InputError("a video without frames", "at least one frame", "make it longer")
        container.mux(video.encode(None))
        if track is not None:
            container.mux(track.stream.encode(None))


class _AudioWriter:
    """The AAC stream of a video, written in step with the frames."""

    def __init__(self, container: av.container.OutputContainer, waveform: Tensor, rate: int) -> None:
        self.rate, self.written = next((r for r in AAC_RATES if r >= rate), AAC_RATES[-1]), 0
        waveform = resample(waveform, rate, self.rate)
        if waveform.shape[0] not in LAYOUTS:
            waveform = to_mono(waveform, self.rate)[None]
        self.layout = LAYOUTS[waveform.shape[0]]
        self.samples = waveform.clamp(-1, 1).float().cpu().numpy()
        self.to_planar = AudioResampler(format="fltp", layout=self.layout, rate=self.rate)
        bits = 96_000 * self.samples.shape[0]
        self.stream = container.add_stream("aac", rate=self.rate, layout=self.layout, bit_rate=bits)

    def write(self, container: av.container.OutputContainer, until: float) -> None:
        """Encode up to `until` seconds."""
        chunk = self.samples[:, self.written : round(until * self.rate)]
        if chunk.shape[1] == 0:
            return
        # packed: PyAV cannot make frames of 8 planes
        packed = np.ascontiguousarray(chunk.T.reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=self.layout)
        frame.sample_rate, frame.pts = self.rate, self.written
        frame.time_base = Fraction(1, self.rate)
        self.written += chunk.shape[1]
        for planar in self.to_planar.resample(frame):
            container.mux(self.stream.encode(planar))
