"""Malformed and unusual files with the expected reason of their rejection."""

from __future__ import annotations

import gzip
import os
import struct
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

VALID = "no face detected"
"""Reason for valid files, which show no face."""


def video(
    path: Path,
    width: int = 128,
    height: int = 96,
    frames: int = 60,
    fps: float = 25,
    sound: float | None = None,
    times: Callable[[int], float] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    trc: int | None = None,
    rotation: int = 0,
    rate: int = 16_000,
    channels: int = 1,
    noise: float = 0.05,
    container: str | None = None,
    aspect: Fraction | None = None,
    interlaced: bool = False,
) -> Path:
    """Write a moving pattern with a tone; `sound` in seconds (None = duration of the video, 0 = no audio)."""
    with av.open(os.fspath(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if trc is not None:
            stream.codec_context.color_trc = trc
            stream.codec_context.options = {"x264-params": f"transfer={'smpte2084' if trc == 16 else 'arib-std-b67'}"}
        if aspect is not None:
            stream.sample_aspect_ratio = aspect
        if interlaced:
            stream.codec_context.options = {"x264-params": "interlaced=1:tff=1"}
        if rotation:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        seconds, layout = frames / fps if sound is None else sound, "mono" if channels == 1 else "stereo"
        audio = out.add_stream("aac", rate=rate, layout=layout) if seconds > 0 else None
        y, x = np.mgrid[0:height, 0:width] + len(path.name) + sum(path.name.encode()) % 97  # every file is different
        for k in range(frames):
            gray = (110 + 60 * np.sin((x + 2 * k) / 9) * np.cos((y - k) / 7)).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(np.repeat(gray[..., None], 3, axis=2), format="rgb24")
            if trc is not None:
                frame.color_trc = trc
            if times is not None:
                frame.pts, frame.time_base = round(times(k) * 1000), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if audio is not None:
            samples = np.sin(np.arange(round(seconds * rate)) / rate * 2 * np.pi * 220) * noise
            piece = np.repeat(samples[None].astype(np.float32), channels, axis=0)
            audio_frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
            audio_frame.sample_rate, audio_frame.pts = rate, 0
            out.mux(audio.encode(audio_frame))
            out.mux(audio.encode(None))
    return path


def _cut(source: Path, target: Path, share: float) -> None:
    content = source.read_bytes()
    target.write_bytes(content[: int(share * len(content))])


def _corrupt(source: Path, target: Path, first: float, last: float) -> None:
    content = bytearray(source.read_bytes())
    a, b = int(first * len(content)), int(last * len(content))
    content[a:b] = np.random.default_rng(0).integers(0, 256, b - a, np.uint8).tobytes()
    target.write_bytes(content)


def _long_header(source: Path, target: Path, seconds: int) -> None:
    """Copy a Matroska file and change the duration in its header (element 0x4489, milliseconds)."""
    content = bytearray(source.read_bytes())
    at = content.index(b"\x44\x89\x88") + 3
    content[at : at + 8] = struct.pack(">d", 1000.0 * seconds)
    target.write_bytes(content)


def make_hostile(folder: Path) -> dict[str, str]:
    """Write all files; return regular expressions of the reasons by name."""
    folder.mkdir(parents=True)
    good = video(folder / "sound.mp4")
    flowing = video(folder / "flowing.mkv")
    reasons = {"sound.mp4": VALID, "flowing.mkv": VALID}

    def add(name: str, reason: str) -> Path:
        reasons[name] = reason
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        return folder / name

    add("empty.mp4", "empty").touch()
    for share in (0.05, 0.5, 0.97):  # the index of an mp4 stands at its end
        _cut(good, add(f"cut at {share}.mp4", "cannot be read|no video"), share)
    _cut(flowing, add("cut at 0.01.mkv", "cannot be read|no video|decoded"), 0.01)
    _cut(flowing, add("cut at 0.5.mkv", "truncated: .* 2.5 s declared"), 0.5)
    add("random.mp4", "cannot be read").write_bytes(np.random.default_rng(1).bytes(50_000))
    add("zeros.avi", "cannot be read").write_bytes(bytes(100_000))
    add("text.mp4", "cannot be read .it is damaged, or neither audio nor video").write_text("no video at all\n" * 500)
    add("page.html", "cannot be read|no video").write_text("<html><body>404</body></html>")
    add("packed.mp4.gz", "cannot be read").write_bytes(gzip.compress(good.read_bytes()))
    Image.new("RGB", (640, 480), "red").save(add("picture.png", "cannot be read .its format is not supported"))
    Image.new("RGB", (640, 480), "red").save(add("picture.mp4", "cannot be read"), format="JPEG")
    with wave.open(str(add("only sound.wav", "no video stream")), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(bytes(96_000))
    video(add("one pixel.mkv", "resolution too low: 1x1"), 1, 1, codec="ffv1", pixels="yuv444p")
    video(add("two pixels.mp4", "resolution too low: 2x2"), 2, 2)
    video(add("strip.mp4", "resolution too low: 1024x16"), 1024, 16)
    _long_header(flowing, add("ten hours.mkv", "too long: 36000 s"), 36_000)
    _long_header(flowing, add("ten minutes.mkv", "truncated: .* 600.0 s declared"), 600)
    video(add("one frame.mp4", "too short"), frames=1)
    video(add("short.mp4", "too short: 0.40 s"), frames=10)
    video(add("one a second.mp4", "frame rate out of range: 1.00 fps"), frames=4, fps=1)
    video(add("ten a second.mp4", "frame rate out of range: 10.00 fps"), frames=30, fps=10)
    video(add("thousand a second.mp4", "frame rate .*: 1000.00 fps"), frames=2000, fps=1000, width=64, height=64)
    video(add("no sound.mp4", "no audio"), sound=0)
    video(add("sound ends early.mp4", "incomplete audio: 0.9 s for 2.4 s of video"), sound=0.8)
    video(add("silence.mp4", VALID), noise=0.0)
    video(add("pause.mkv", "missing frames: 2.04 s"), times=lambda k: k / 25 + (2.0 if k >= 30 else 0), sound=4.4)
    video(add("uneven.mkv", VALID), times=lambda k: k / 25 + (0.01 if k % 3 else 0.0))  # changing frame rate
    video(add("hdr pq.mp4", "HDR is not supported: PQ"), trc=16)
    video(add("hdr hlg.mp4", "HDR is not supported: HLG"), trc=18)
    video(add("flat pixels.mp4", "not square: aspect ratio 1.333"), aspect=Fraction(4, 3))
    video(add("interlaced.mp4", "interlaced video"), interlaced=True)
    for angle in (90, 180, 270):
        video(add(f"turned {angle}.mp4", VALID), rotation=angle)
    video(add("odd size.mkv", VALID), 131, 97, codec="ffv1", pixels="yuv444p")
    video(add("a name with  spaces, ünïcödé 漢字 🎬 'quotes' & $(x).mp4", VALID))
    video(add("deep/er/down.mp4", VALID), frames=70)
    video(add("-rf.mp4", VALID), frames=80)
    video(add("wrong ending.avi", VALID), frames=65, container="mp4")
    video(add("eight kilohertz stereo.mkv", VALID), rate=8000, channels=2)
    video(add("old codec.avi", VALID), codec="mpeg4")
    _corrupt(flowing, add("corrupt in the middle.mkv", "."), 0.4, 0.6)
    _corrupt(good, add("corrupt data.mp4", "."), 0.1, 0.8)
    _corrupt(flowing, add("corrupt header.mkv", "cannot be read"), 0.0, 0.002)
    add("twin of sound.mp4", "same content as sound.mp4").write_bytes(good.read_bytes())
    os.symlink(folder / "nothing.mp4", add("dangling link.mp4", "cannot be read"))
    os.mkfifo(add("pipe.mp4", "not a regular file"))
    (folder / "a folder.mp4").mkdir()
    (folder / ".hidden.mp4").write_bytes(b"left out")
    return reasons
