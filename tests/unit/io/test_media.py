"""Reading and writing of images, audio and video."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image

from bya_core.errors import InputError
from bya_core.io.media import (
    fit_image,
    mix_speeches,
    place,
    read_audio,
    read_image,
    resample,
    resample_mono,
    write_video,
)
from bya_core.scene.types import Speech
from tests.fakes import RATE, tone, write_picture, write_wav


def encode_audio(path: Path, codec: str, rate: int, layout: str = "stereo") -> None:
    """Write one second of a tone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        channels = stream.codec_context.layout.nb_channels
        samples = np.tile(tone(1.0, rate=rate).astype(np.float32), (channels, 1))
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.codec_context.format.name, layout=layout, rate=rate)
        for chunk in resampler.resample(frame):
            container.mux(stream.encode(chunk))
        container.mux(stream.encode(None))


def frames_of(count: int, size: tuple[int, int] = (32, 48)) -> list[np.ndarray]:
    return [np.full((*size, 3), 10 * i % 256, np.uint8) for i in range(count)]


def test_read_image(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", size=(20, 10))
    expected = torch.from_numpy(np.array(Image.open(tmp_path / "a.png"))).permute(2, 0, 1) / 255
    torch.testing.assert_close(read_image(tmp_path / "a.png"), expected)
    assert expected.shape == (3, 10, 20)


def test_read_image_applies_transparency_orientation_and_depth(tmp_path: Path) -> None:
    pixels = np.zeros((8, 12, 4), np.uint8)
    pixels[:, 6:, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    image = read_image(tmp_path / "alpha.png")
    assert image[:, :, :6].min() == 1.0 and image[:, :, 6:].max() == 0.0
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    gradient = pixels[..., :3] + np.arange(12, dtype=np.uint8)[None, :, None]
    Image.fromarray(gradient).save(tmp_path / "rotated.jpg", exif=exif)
    assert read_image(tmp_path / "rotated.jpg").shape == (3, 12, 8)
    Image.fromarray(np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png")
    assert image.amax() == 1.0 and 0.4 < image.mean() < 0.6


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "blank", "transparent", "folder"])
def test_invalid_images_raise(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    if kind == "text":
        path.write_text("not an image")
    elif kind == "truncated":
        write_picture(path, size=(64, 64))
        path.write_bytes(path.read_bytes()[:500])
    elif kind in ("blank", "transparent"):
        Image.new("RGBA", (16, 16), (120, 130, 140, 255 if kind == "blank" else 0)).save(path)
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(InputError, match=r"a\.png"):
        read_image(path)


def test_fit_image_covers_and_crops_the_center() -> None:
    wide = torch.zeros(3, 10, 40)
    wide[:, :, 15:25] = 1.0
    fitted = fit_image(wide, 20, 20)
    assert fitted.shape == (3, 20, 20) and fitted.mean() > 0.95


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [("a.wav", "pcm_s16le", 44100), ("a.flac", "flac", 48000), ("a.mp3", "libmp3lame", 32000), ("a.m4a", "aac", 22050)],
)
def test_read_audio_keeps_rate_and_channels(name: str, codec: str, rate: int, tmp_path: Path) -> None:
    encode_audio(tmp_path / name, codec, rate)
    waveform, actual = read_audio(tmp_path / name)
    assert actual == rate and waveform.shape[0] == 2 and waveform.dtype == torch.float32
    assert waveform.shape[1] / rate == pytest.approx(1.0, abs=0.1)
    assert float(waveform.square().mean().sqrt()) == pytest.approx(0.3 / math.sqrt(2), rel=0.1)


@pytest.mark.parametrize("kind", ["missing", "text", "no bytes", "no samples", "image", "folder", "nan"])
def test_invalid_audio_raises(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.png" if kind == "image" else "a.wav")
    if kind == "text":
        path.write_text("not a recording")
    elif kind == "no bytes":
        path.touch()
    elif kind == "no samples":
        write_wav(path, np.zeros(0))
    elif kind == "image":
        write_picture(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "nan":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_f32le", rate=16000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.full((1, 100), np.nan, np.float32), format="flt", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    with pytest.raises(InputError):
        read_audio(path)


@pytest.mark.parametrize(("rate", "target"), [(44100, 16000), (8000, 48000), (16000, 16000)])
def test_resample_keeps_time_and_loudness(rate: int, target: int) -> None:
    waveform = torch.zeros(2, rate)
    waveform[0] = torch.from_numpy(tone(1.0, rate=rate))
    waveform[1, rate // 2] = 1.0
    resampled = resample(waveform, rate, target)
    assert resampled.shape == (2, target)
    assert float(resampled[0].square().mean().sqrt()) == pytest.approx(0.3 / math.sqrt(2), rel=0.02)
    assert abs(int(resampled[1].abs().argmax()) - target // 2) <= max(1, target // rate)
    assert resample_mono(waveform, rate, target).shape == (target,)


def test_place() -> None:
    waveform = torch.arange(1.0, 11.0)[None]
    assert place(waveform, 10, 0.2, 0.0)[0].tolist()[:4] == [0.0, 0.0, 1.0, 2.0]
    assert place(waveform, 10, -0.3, 0.0)[0, 0] == 4.0
    torch.testing.assert_close(place(waveform, 10, 0.0, 20.0), waveform * 10)


def test_mix_speeches() -> None:
    mono = Speech(torch.full((1, 8000), 0.25), 8000, offset=0.5)
    stereo = Speech(torch.stack([torch.full((16000,), 0.5), torch.zeros(16000)]), 16000, gain=-6.0206)
    mixed = mix_speeches([mono, None, stereo], 1.5)
    assert mixed is not None
    waveform, rate = mixed
    assert rate == 16000 and waveform.shape == (2, 24000)
    expected = {4000: [0.25, 0.0], 12000: [0.5, 0.25], 20000: [0.25, 0.25]}
    for sample, values in expected.items():
        assert waveform[:, sample].tolist() == pytest.approx(values, abs=1e-2)
    loud = Speech(torch.full((1, 100), 0.9), 100)
    mixed = mix_speeches([loud, loud], 1.0)
    assert mixed is not None and float(mixed[0].max()) == pytest.approx(1.0), "attenuated instead of clipped"
    assert mix_speeches([None, None], 1.0) is None


@pytest.mark.parametrize(
    ("rate", "channels"), [(44100, 2), (48000, 1), (11111, 1), (16000, 6), (16000, 8), (16000, 10)]
)
def test_write_video(rate: int, channels: int, tmp_path: Path) -> None:
    path, frames = tmp_path / "a.mp4", frames_of(30)
    sound = torch.zeros(channels, round(30 / 25 * rate))
    sound[:, rate // 2 :] = torch.from_numpy(tone(30 / 25 - 0.5, rate=rate))[: sound.shape[1] - rate // 2]
    write_video(path, frames, 25, (sound, rate))
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.frames, video.average_rate, video.width, video.height) == (30, 25, 48, 32)
        assert container.duration / av.time_base == pytest.approx(1.2, abs=0.03)
        shades = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
    np.testing.assert_allclose(shades, [frame.mean() for frame in frames], atol=4)
    waveform, actual = read_audio(path)
    assert actual == {11111: 12000}.get(rate, rate)
    assert waveform.shape[0] == (channels if channels != 10 else 1)
    start = (waveform[0].abs() > 0.05).nonzero()[0, 0]
    assert start / actual == pytest.approx(0.5, abs=0.03)


def test_videos_say_how_their_colors_are_stored(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", np.full((2, 16, 16, 3), (200, 40, 40), np.uint8), 25.0)
    with av.open(str(tmp_path / "a.mp4")) as container:
        (stream,) = container.streams.video
        frame = next(container.decode(stream))
        assert (frame.colorspace, frame.color_range) == (Colorspace.ITU601, ColorRange.MPEG)
        assert frame.to_ndarray(format="rgb24")[8, 8] == pytest.approx((200, 40, 40), abs=3)


def test_failed_videos_leave_the_old_file(tmp_path: Path) -> None:
    def interrupted() -> Iterator[np.ndarray]:
        yield from frames_of(3)
        raise KeyboardInterrupt

    (tmp_path / "a.mp4").write_bytes(b"old")
    for frames, error in (
        (interrupted(), KeyboardInterrupt),
        ([], InputError),
        (frames_of(1, (31, 48)), InputError),
        (frames_of(1) + frames_of(1, (16, 48)), InputError),
    ):
        with pytest.raises(error):
            write_video(tmp_path / "a.mp4", frames, 25)
        assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
        assert (tmp_path / "a.mp4").read_bytes() == b"old"


def test_write_video_is_deterministic(tmp_path: Path) -> None:
    small = torch.rand(49, 8, 12, 3, generator=torch.Generator().manual_seed(0))
    frames = (small.repeat_interleave(8, 1).repeat_interleave(8, 2) * 255).to(torch.uint8)
    sound = torch.from_numpy(tone(2.0)).float()[None]
    for k in range(4):
        write_video(tmp_path / f"{k}.mp4", frames, 25.0, (sound, RATE))
    assert len({(tmp_path / f"{k}.mp4").read_bytes() for k in range(4)}) == 1
