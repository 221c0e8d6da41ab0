"""Reading and writing images, audio and video. Audio keeps its sample rate and channels until it is resampled."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Protocol

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.audio.resampler import AudioResampler
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write
from bya_core.io.files import existing_file

FLAT = 3 / 255  # images whose colors differ less are rejected as blank
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}


class PlacedSpeech(Protocol):
    """A speech on the time axis of the video, see `bya_core.scene.types.Speech`."""

    @property
    def waveform(self) -> Tensor: ...
    @property
    def sample_rate(self) -> int: ...
    @property
    def offset(self) -> float: ...
    @property
    def gain(self) -> float: ...


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """Read an image of any common format as [3, H, W] in 0..1, with its EXIF orientation, on white.

    Raises:
        InputError: The file is missing, unreadable, or of a single color.
    """
    path = existing_file(path, "the image")
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened) or opened
            if upright.mode[0] in "IF":  # 16 or 32 bits per pixel, which a conversion to RGB would clip
                values = np.asarray(upright, dtype=np.float32)
                upright = Image.fromarray((values / max(float(values.max()), 1.0) * 255).astype(np.uint8))
            rgba = upright.convert("RGBA")
            white = Image.new("RGBA", rgba.size, "white")
            pixels = np.array(Image.alpha_composite(white, rgba).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problem = f"the image {path} cannot be read"
        raise InputError(problem, "an image such as png, jpg or webp", "save it in one of these formats") from error
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    if float((image.amax(dim=(1, 2)) - image.amin(dim=(1, 2))).max()) < FLAT:
        raise InputError(f"the image {path} is blank (a single color)", "an image with content", "choose another file")
    return image


def fit_image(image: Tensor, height: int, width: int) -> Tensor:
    """Scale an image [3, H, W] to cover height x width and crop the center: [3, height, width]."""
    scale = max(height / image.shape[1], width / image.shape[2])
    size = max(height, round(image.shape[1] * scale)), max(width, round(image.shape[2] * scale))
    scaled = F.interpolate(image[None], size=size, mode="bicubic", antialias=True)[0]
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scaled[:, top : top + height, left : left + width].clamp(0, 1)


def read_audio(path: str | os.PathLike[str]) -> tuple[Tensor, int]:
    """Read the audio of an audio or video file: ([channels, samples] float32, sample rate in Hz).

    Raises:
        InputError: The file is missing, unreadable, empty, or has no audio.
    """
    path = existing_file(path, "the audio")
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.audio:
                raise InputError(f"{path} has no audio", "an audio file, or a video with audio", "choose another file")
            rate = int(container.streams.audio[0].rate)
            to_float = AudioResampler(format="fltp")
            chunks = [chunk.to_ndarray() for frame in container.decode(audio=0) for chunk in to_float.resample(frame)]
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        problem, hint = f"the audio {path} cannot be read", "save it in one of these formats"
        raise InputError(problem, "an audio file such as wav, flac, mp3 or m4a", hint) from error
    waveform = torch.from_numpy(np.concatenate(chunks, axis=1)) if chunks else torch.zeros(1, 0)
    if waveform.shape[1] == 0:
        raise InputError(f"the audio {path} is empty", "at least one sample", "choose another file")
    if not bool(torch.isfinite(waveform).all()):
        raise InputError(f"the audio {path} contains NaN or infinity", "finite samples", "export it again")
    return waveform.float(), rate


def resample(waveform: Tensor, rate: int, target: int) -> Tensor:
    """Resample each channel of a waveform [C, S] from `rate` to `target` Hz: [C, round(S * target / rate)]."""
    if rate == target or waveform.shape[1] == 0:
        return waveform
    length = round(waveform.shape[1] * target / rate)
    channels = []
    for channel in waveform.float().cpu().numpy():
        resampler = AudioResampler(format="fltp", layout="mono", rate=target)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channel[None]), format="fltp", layout="mono")
        frame.sample_rate = rate
        chunks = [chunk.to_ndarray()[0] for each in (frame, None) for chunk in resampler.resample(each)]
        samples = np.concatenate(chunks)[:length]
        channels.append(np.pad(samples, (0, length - len(samples))))
    return torch.from_numpy(np.stack(channels))


def resample_mono(waveform: Tensor, rate: int, target: int) -> Tensor:
    """Average the channels of a waveform [C, S] and resample it to `target` Hz: [S']."""
    return resample(waveform.mean(dim=0, keepdim=True), rate, target)[0]


def place(waveform: Tensor, rate: int, offset: float, gain: float) -> Tensor:
    """Place a waveform [C, S] on the time axis of the video.

    Args:
        waveform: [C, S].
        rate: sample rate in Hz.
        offset: start in seconds; the part before time 0 is cut off.
        gain: in dB.
    """
    shift = round(offset * rate)
    if shift < 0:
        waveform = waveform[:, -shift:]
    placed = F.pad(waveform, (max(shift, 0), 0))
    return placed * 10 ** (gain / 20)


def mix_speeches(speeches: Sequence[PlacedSpeech | None], seconds: float) -> tuple[Tensor, int] | None:
    """Mix speeches to `seconds` of audio, at the highest of their sample rates and channel counts.

    Mono speeches are added to all channels. If the sum would clip, the mix is attenuated.

    Returns:
        ([C, S], sample rate), or None if there is no speech.
    """
    present = [speech for speech in speeches if speech is not None]
    if not present:
        return None
    rate = max(speech.sample_rate for speech in present)
    channels = max(speech.waveform.shape[0] for speech in present)
    mix = torch.zeros(channels, round(seconds * rate))
    for speech in present:
        voice = place(resample(speech.waveform, speech.sample_rate, rate), rate, speech.offset, speech.gain)
        voice = voice[:, : mix.shape[1]].float()
        mix[: voice.shape[0] if voice.shape[0] > 1 else None, : voice.shape[1]] += voice
    return mix / max(1.0, float(mix.abs().max())) if mix.numel() else mix, rate


def read_video(path: str | os.PathLike[str]) -> tuple[Tensor, float]:
    """Read the frames of a video: (uint8 [F, H, W, 3], frames per second).

    Raises:
        InputError: The file is missing, unreadable, or has no video stream.
    """
    path = existing_file(path, "the video")
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path} has no video stream", "a video", "choose another file")
            rate = container.streams.video[0].average_rate
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the video {path} cannot be read", "a video such as mp4", "save it as mp4") from error
    if not frames or not rate:
        raise InputError(f"the video {path} is empty", "at least one frame", "choose another file")
    return torch.from_numpy(np.stack(frames)), float(rate)


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[Tensor | np.ndarray],
    fps: float,
    audio: tuple[Tensor, int] | None = None,
) -> None:
    """Write an mp4 (H.264 and AAC) atomically.

    Args:
        path: output file; an existing one is replaced.
        frames: uint8 [H, W, 3] each, all of the same even size.
        fps: frames per second.
        audio: ([C, S] in -1..1, sample rate in Hz); cut to the length of the video.

    Raises:
        InputError: There are no frames, or frames of odd or different sizes.
    """
    with atomic_write(path) as temporary, av.open(os.fspath(temporary), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        # mbtree reads uninitialized memory for small frames, so that equal frames would not give equal files
        options = {"crf": "16", "preset": "medium", "x264-params": "mbtree=0"}
        video = container.add_stream("libx264", rate=rate, options=options)
        video.pix_fmt = "yuv420p"
        track = _AudioWriter(container, *audio) if audio is not None else None
        size: tuple[int, int] | None = None
        count = 0
        for frame in frames:
            pixels = np.ascontiguousarray(np.asarray(frame))
            if size is None:
                size = pixels.shape[0], pixels.shape[1]
                if size[0] % 2 or size[1] % 2:
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
            waveform = waveform.mean(dim=0, keepdim=True)
        self.layout = LAYOUTS[waveform.shape[0]]
        self.samples = waveform.clamp(-1, 1).float().cpu().numpy()
        bits = 96_000 * self.samples.shape[0]
        self.stream = container.add_stream("aac", rate=self.rate, layout=self.layout, bit_rate=bits)

    def write(self, container: av.container.OutputContainer, until: float) -> None:
        """Encode up to `until` seconds."""
        chunk = self.samples[:, self.written : round(until * self.rate)]
        if chunk.shape[1] == 0:
            return
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(chunk), format="fltp", layout=self.layout)
        frame.sample_rate, frame.pts = self.rate, self.written
        frame.time_base = Fraction(1, self.rate)
        self.written += chunk.shape[1]
        container.mux(self.stream.encode(frame))
