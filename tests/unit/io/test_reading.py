"""Reading of audio and video: time stamps, parts, channels, damage, bounds."""

from __future__ import annotations

import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from bya_core.errors import InputError
from bya_core.io import media
from bya_core.scene.types import Speech
from tests.fakes import tone, write_wav

RATE = 16_000


def record(
    path: Path,
    codec: str = "flac",
    seconds: float = 1.0,
    rate: int = RATE,
    layout: str = "mono",
    shift: Callable[[float], float] = lambda second: 0.0,
    video_start: float | None = None,
    container: str | None = None,
) -> Path:
    """Write a tone; `shift` moves its samples in time, `video_start` adds pictures."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        channels = stream.codec_context.layout.nb_channels
        to_format = av.AudioResampler(format=stream.codec_context.format.name, layout=layout, rate=rate)
        if video_start is not None:
            video = out.add_stream("ffv1", rate=25)
            video.width = video.height = 16
            video.pix_fmt, video.codec_context.time_base = "yuv444p", Fraction(1, 1000)
            for k in range(5):
                picture = av.VideoFrame.from_ndarray(np.full((16, 16, 3), 50 * k, np.uint8), format="rgb24")
                picture.pts, picture.time_base = round(1000 * (video_start + k / 25)), Fraction(1, 1000)
                out.mux(video.encode(picture.reformat(format="yuv444p")))
            out.mux(video.encode(None))
        samples = tone(seconds, rate=rate).astype(np.float32)
        for start in range(0, len(samples), 1000):
            piece = np.repeat(samples[start : start + 1000], channels)[None]
            frame = av.AudioFrame.from_ndarray(piece, format="flt", layout=layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = start + round(shift(start / rate) * rate)
            for each in to_format.resample(frame):
                out.mux(stream.encode(each))
        for each in to_format.resample(None):
            out.mux(stream.encode(each))
        out.mux(stream.encode(None))
    return path


def level(recording: media.Recording, start: float, stop: float) -> float:
    """Root mean square between two times."""
    rate = recording.sample_rate
    part = recording.waveform[:, round((start - recording.start) * rate) : round((stop - recording.start) * rate)]
    return float(part.square().mean().sqrt())


LOUD = 0.3 / 2**0.5


def film(path: Path, times: list[float], rotation: int = 0, codec: str = "libx264") -> Path:
    """Write pictures of gray 10 * k, with a bright top left corner, at the given times."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for k, second in enumerate(times):
            pixels = np.full((64, 96, 3), 10 * k % 200, np.uint8)
            pixels[:16, :16] = 255
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")
            picture.pts, picture.time_base = round(1000 * second), Fraction(1, 1000)
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return path


def shown(video: media.Video) -> list[int]:
    """Number of the picture in each frame, by its gray."""
    return (video.frames[:, 40:, 40:].float().mean(dim=(1, 2, 3)) / 10).round().int().tolist()


def test_late_sound_and_gaps_are_silent(tmp_path: Path) -> None:
    late = media.read_recording(record(tmp_path / "late.mkv", shift=lambda second: 0.5, video_start=0.0))
    assert late.seconds == pytest.approx(1.5, abs=0.01) and not late.notices
    assert level(late, 0.0, 0.48) == 0 and level(late, 0.52, 1.4) == pytest.approx(LOUD, rel=0.05)
    gap = media.read_recording(record(tmp_path / "gap.mka", shift=lambda second: 1.0 * (second >= 0.5)))
    assert level(gap, 0.6, 1.4) == 0 and level(gap, 1.6, 1.9) == pytest.approx(LOUD, rel=0.05)
    # without pictures, the recording starts with its first sample
    alone = media.read_recording(record(tmp_path / "alone.mka", shift=lambda second: 0.5))
    assert level(alone, 0.0, 0.4) == pytest.approx(LOUD, rel=0.05)


def test_time_zero_is_the_start_of_playback_or_the_first_picture(tmp_path: Path) -> None:
    path = record(tmp_path / "a.mkv", video_start=0.4)
    assert level(media.read_recording(path), 0.0, 0.3) > 0.1
    cut = media.read_recording(path, zero="video")
    assert cut.seconds == pytest.approx(0.6, abs=0.01) and level(cut, 0.0, 0.5) > 0.1


@pytest.mark.parametrize(
    "codec, name", [("flac", "a.mka"), ("libmp3lame", "a.mp3"), ("pcm_s16le", "a.wav"), ("aac", "a.m4a")]
)
def test_a_part_equals_the_same_part_of_the_whole(codec: str, name: str, tmp_path: Path) -> None:
    path = record(tmp_path / name, codec, seconds=5.0)
    whole = media.read_recording(path)
    part = media.read_recording(path, 3.0, 0.5)
    assert part.waveform.shape[1] == RATE // 2 and part.seconds == pytest.approx(whole.seconds, abs=0.1)
    expected = whole.waveform[:, 3 * RATE : 3 * RATE + RATE // 2]
    assert float((part.waveform - expected).abs().max()) < 0.02
    assert media.read_recording(path, 100.0, 1.0).waveform.shape[1] == 0


@pytest.mark.parametrize("channels", [1, 2, 7, 8, 9, 16, 64])
def test_any_number_of_channels(channels: int, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    samples = np.stack([tone(0.2) * (k + 1) / channels for k in range(channels)], axis=1)
    data = (samples * 32767).astype("<i2").tobytes()
    head = struct.pack("<IHHIIHH", 16, 1, channels, RATE, RATE * 2 * channels, 2 * channels, 16)
    content = b"WAVEfmt " + head + b"data" + struct.pack("<I", len(data)) + data
    path.write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content)
    waveform, rate = media.read_audio(path)
    assert rate == RATE and not media.read_recording(path).notices
    np.testing.assert_allclose(waveform.numpy(), samples.T, atol=1e-3)
    media.write_video(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)] * 5, 25, (waveform, rate))
    assert media.read_recording(tmp_path / "a.mp4").seconds == pytest.approx(0.2, abs=0.07)


@pytest.mark.parametrize(
    "name, codec", [("a.flac", "flac"), ("a.ogg", "libopus"), ("a.wav", "pcm_s16le"), ("a.mp3", "libmp3lame")]
)
def test_what_is_left_of_a_cut_file_is_read_with_a_notice(name: str, codec: str, tmp_path: Path) -> None:
    rate = 48_000 if codec == "libopus" else RATE
    path = record(tmp_path / name, codec, seconds=3.0, rate=rate)
    assert media.read_recording(path).notices == ()
    path.write_bytes(path.read_bytes()[: round(path.stat().st_size * 0.6)])
    part = media.read_recording(path)
    (notice,) = part.notices
    assert "incomplete" in notice and name in notice
    assert 1.1 < part.waveform.shape[1] / rate < 2.2 and level(part, 0.2, 1.0) == pytest.approx(LOUD, rel=0.1)


def test_speech_after_the_damage_stays_in_place(tmp_path: Path) -> None:
    path = record(tmp_path / "a.m4a", "aac", seconds=3.0)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(content)
    part = media.read_recording(path)
    assert any("damaged" in notice for notice in part.notices)
    assert part.seconds == pytest.approx(3.0, abs=0.1) and level(part, 2.0, 2.8) == pytest.approx(LOUD, rel=0.1)


@pytest.mark.parametrize("rate", [0, 8, 1000, 2**31 - 1])
def test_impossible_sample_rates(rate: int, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_wav(path, tone(0.1))
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        media.read_recording(path)
    assert "\n" not in str(raised.value)


def test_playlists_are_no_media(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    write_wav(tmp_path / "b.wav", tone(0.1))
    for text in ("#EXTM3U\n#EXTINF:1,\nb.wav\n", "ffconcat version 1.0\nfile b.wav\n"):
        path.write_text(text)
        with pytest.raises(InputError, match="cannot be read"):
            media.read_recording(path)


def test_mono_mix_never_cancels_a_channel() -> None:
    voice = torch.from_numpy(tone(1.0)).float()
    for other in (-voice, torch.zeros_like(voice), voice):
        mixed = media.to_mono(torch.stack([voice, other]), RATE)
        assert float(mixed.abs().max()) > 0.25
    # two voices, the second of which has opposite polarity
    left = torch.cat([voice, voice])
    right = torch.cat([voice, -voice])
    mixed = media.to_mono(torch.stack([left, right]), RATE)
    assert float(mixed[: RATE // 2].abs().max()) > 0.25 and float(mixed[-RATE // 2 :].abs().max()) > 0.25
    three = media.to_mono(torch.stack([torch.zeros(RATE), voice, -voice]), RATE)
    assert float(three.abs().max()) > 0.25


def test_silence_is_what_the_model_does_not_hear() -> None:
    voice = torch.from_numpy(tone(1.0)).float()
    assert not Speech(torch.stack([voice, -voice]), RATE).silent
    assert Speech(torch.full((1, RATE), 0.5), RATE).silent  # a constant
    late = torch.cat([voice, torch.zeros(RATE)])[None]
    assert not Speech(late, RATE).silent and Speech(late, RATE, offset=-1.0).silent


def test_variable_frame_rate_on_a_time_line(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.08, 0.12, 0.24, 0.28, 0.32, 0.40, 0.44]
    video = media.read_frames(film(tmp_path / "a.mp4", times))
    assert video.fps == 25 and video.num_pictures == len(times)
    assert video.pictures.tolist() == [0, 1, 2, 3, 3, 4, 4, 5, 6, 6, 7, 8]  # the nearest, the earlier of two
    assert shown(video) == video.pictures.tolist()


@pytest.mark.parametrize("fps", [23.976, 24, 29.97, 30, 50])
def test_frames_are_the_nearest_pictures(fps: float, tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", [k / fps for k in range(40)])
    pictures = list(media.on_time_line(media.decode_pictures(path), 25))
    errors = [picture.time - k / 25 for k, picture in pictures]
    assert max(map(abs, errors)) <= 0.5 / fps + 2e-3 and abs(np.mean(errors)) < 4e-3
    assert len(pictures) == pytest.approx(40 / fps * 25, abs=1)
    part = media.read_frames(path, 25.0, start=0.4, seconds=0.4)
    assert shown(part) == [round(10 * p.index % 200 / 10) for k, p in pictures[10:20]]


@pytest.mark.parametrize("rotation, corner", [(0, (0, 0)), (90, (-1, 0)), (180, (-1, -1)), (270, (0, -1))])
def test_rotation_is_applied(rotation: int, corner: tuple[int, int], tmp_path: Path) -> None:
    frames, _ = media.read_video(film(tmp_path / "a.mp4", [0.0, 0.04, 0.08], rotation))
    assert frames.shape[1:3] == ((96, 64) if rotation % 180 else (64, 96))
    assert frames[0][corner].min() > 200
    others = [(0, 0), (-1, 0), (-1, -1), (0, -1)]
    assert all(frames[0][other].max() < 100 for other in others if other != corner)


def test_videos_are_reduced_to_fit_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bya_core.io.video.MIN_SIDE", 40)
    path = film(tmp_path / "a.mp4", [k / 25 for k in range(50)])
    video = media.read_frames(path, max_bytes=500_000, max_side=None)
    assert video.frames.shape[0] == 50 and video.frames.numel() <= 500_000
    assert video.notices and "reduced" in video.notices[0]
    with pytest.raises(InputError, match="too long"):
        media.read_frames(path, max_bytes=100_000)
    assert max(media.read_frames(path, max_side=48).frames.shape[1:3]) == 48


def test_cut_video_is_read_with_a_notice(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    film(path, [k / 25 for k in range(100)], codec="mpeg4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    video = media.read_frames(path)
    assert 20 < len(video.frames) < 80 and any("incomplete" in notice for notice in video.notices)


BOUNDED = """
import resource, sys
from bya_core.io import media
before = resource.getrusage(resource.RUSAGE_SELF)
part = media.read_recording(sys.argv[1], float(sys.argv[2]), 5.0)
after = resource.getrusage(resource.RUSAGE_SELF)
assert part.waveform.shape == (2, 5 * 48000) and abs(part.seconds - 7200) < 1, (part.waveform.shape, part.seconds)
print((after.ru_maxrss - before.ru_maxrss) / 1e3, after.ru_utime - before.ru_utime)
"""


@pytest.mark.parametrize("start", [0.0, 3600.0])
def test_two_hours_cost_what_five_seconds_do(start: float, tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    size = 7200 * 48_000 * 4
    head = struct.pack("<IHHIIHH", 16, 1, 2, 48_000, 48_000 * 4, 4, 16)
    with path.open("wb") as file:  # a sparse file
        file.write(b"RIFF" + struct.pack("<I", size + 36) + b"WAVEfmt " + head + b"data" + struct.pack("<I", size))
        file.truncate(size + 44)
    command = [sys.executable, "-c", BOUNDED, str(path), str(start)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=120)
    assert done.returncode == 0, done.stderr
    memory, seconds = map(float, done.stdout.split())
    assert memory < 100 and seconds < 3
    with pytest.raises(InputError, match="too long"):
        media.read_recording(path)


@pytest.mark.slow
def test_the_beginning_of_a_long_mp3_is_cheap(tmp_path: Path) -> None:
    path = record(tmp_path / "long.mp3", "libmp3lame", seconds=1200.0, rate=44_100, layout="stereo")
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    part = media.read_recording(path, 0.0, 0.36)
    assert time.process_time() - start < 1.5 and part.seconds == pytest.approx(1200, abs=1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
