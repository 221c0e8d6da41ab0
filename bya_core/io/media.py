"""Pictures, sound and video in and out. Sound keeps its rate and channels until a model asks for its own."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np
import torch
from av.audio.resampler import AudioResampler
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.atomic import atomic_write

FLAT = 3 / 255  # a picture whose colours differ by less than this has no content
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}


class PlacedSpeech(Protocol):
    """What mixing needs to know of a speech (see `bya_core.scene.types.Speech`)."""

    @property
    def waveform(self) -> Tensor: ...
    @property
    def sample_rate(self) -> int: ...
    @property
    def offset(self) -> float: ...
    @property
    def gain(self) -> float: ...


def existing_file(path: str | os.PathLike[str], what: str) -> Path:
    """The path, if a file is there. Raises InputError otherwise."""
    path = Path(path)
    if not path.is_file():
        came = f"{what} {path} is a folder" if path.is_dir() else f"{what} {path} does not exist"
        raise InputError(came, "a file that can be read", "check the path; in a scene it counts from the scene file")
    return path


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """A picture of any usual format as [3, H, W] in 0..1; transparency becomes white, orientation is applied.

    Raises:
        InputError: missing, unreadable, or a single flat colour.
    """
    path = existing_file(path, "the image")
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened) or opened
            if picture.mode[0] in "IF":  # 16 or 32 bits a pixel, which a conversion to RGB would clip
                wide = np.asarray(picture, dtype=np.float32)
                picture = Image.fromarray((wide / max(float(wide.max()), 1.0) * 255).astype(np.uint8))
            rgba = picture.convert("RGBA")
            white = Image.new("RGBA", rgba.size, "white")
            pixels = np.array(Image.alpha_composite(white, rgba).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        came = f"the image {path} cannot be read"
        raise InputError(came, "a picture such as png, jpg or webp", "save it again in one of them") from error
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    if float((image.amax(dim=(1, 2)) - image.amin(dim=(1, 2))).max()) < FLAT:
        came = f"the image {path} has no content (one flat colour)"
        raise InputError(came, "a picture that shows something", "choose another file")
    return image


def fit_image(image: Tensor, height: int, width: int) -> Tensor:
    """Scale to cover height x width, cut the rest evenly from both sides: [3, H, W] -> [3, height, width]."""
    scale = max(height / image.shape[1], width / image.shape[2])
    inner = max(height, round(image.shape[1] * scale)), max(width, round(image.shape[2] * scale))
    large = torch.nn.functional.interpolate(image[None], size=inner, mode="bicubic", antialias=True)[0]
    top, left = (inner[0] - height) // 2, (inner[1] - width) // 2
    return large[:, top : top + height, left : left + width].clamp(0, 1)


def read_audio(path: str | os.PathLike[str]) -> tuple[Tensor, int]:
    """Sound of any usual format (also of a video) as it is: ([channels, samples] float32, rate in Hz).

    Raises:
        InputError: missing, unreadable, without sound, or empty.
    """
    path = existing_file(path, "the audio")
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.audio:
                raise InputError(f"{path} has no sound", "an audio file, or a video with sound", "choose another file")
            rate = int(container.streams.audio[0].rate)
            to_float = AudioResampler(format="fltp")
            pieces = [piece.to_ndarray() for frame in container.decode(audio=0) for piece in to_float.resample(frame)]
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        came = f"the audio {path} cannot be read"
        raise InputError(came, "a recording such as wav, flac, mp3 or m4a", "save it again in one of them") from error
    waveform = torch.from_numpy(np.concatenate(pieces, axis=1)) if pieces else torch.zeros(1, 0)
    if waveform.shape[1] == 0:
        raise InputError(f"the audio {path} is empty", "a recording with at least one sample", "choose another file")
    if not bool(torch.isfinite(waveform).all()):
        raise InputError(f"the audio {path} holds values that are no numbers", "finite samples", "export it again")
    return waveform.float(), rate


def resample(waveform: Tensor, rate: int, target: int) -> Tensor:
    """[C, S] at `rate` -> [C, S'] at `target` Hz, S' = round(S * target / rate); each channel by itself."""
    if rate == target or waveform.shape[1] == 0:
        return waveform
    length = round(waveform.shape[1] * target / rate)
    channels = []
    for channel in waveform.float().cpu().numpy():
        resampler = AudioResampler(format="fltp", layout="mono", rate=target)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channel[None]), format="fltp", layout="mono")
        frame.sample_rate = rate
        pieces = [piece.to_ndarray()[0] for given in (frame, None) for piece in resampler.resample(given)]
        made = np.concatenate(pieces)[:length]
        channels.append(np.pad(made, (0, length - len(made))))
    return torch.from_numpy(np.stack(channels))


def resample_mono(waveform: Tensor, rate: int, target: int) -> Tensor:
    """[C, S] at `rate` -> [S'] at `target` Hz, the mean of the channels."""
    return resample(waveform.mean(dim=0, keepdim=True), rate, target)[0]


def place(waveform: Tensor, rate: int, offset: float, gain: float) -> Tensor:
    """[C, S] as heard from video time 0 on: `offset` seconds later (negative: start cut), `gain` in dB."""
    shift = round(offset * rate)
    if shift < 0:
        waveform = waveform[:, -shift:]
    placed = torch.nn.functional.pad(waveform, (max(shift, 0), 0))
    return placed * 10 ** (gain / 20)


def mix_speeches(speeches: Sequence[PlacedSpeech | None], seconds: float) -> tuple[Tensor, int] | None:
    """All speeches as one sound of `seconds`, at the highest of their rates and channel counts.

    One-channel voices are put on all channels. Where the sum would clip, the whole mix is turned down to fit.

    Returns:
        ([C, S], rate), or None where nobody speaks.
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
        if voice.shape[0] == 1:
            mix[:, : voice.shape[1]] += voice
        else:
            mix[: voice.shape[0], : voice.shape[1]] += voice
    return mix / max(1.0, float(mix.abs().max())) if mix.numel() else mix, rate


def read_video(path: str | os.PathLike[str]) -> tuple[Tensor, float]:
    """The pictures of a video: (uint8 [F, H, W, 3], frames a second).

    Raises:
        InputError: missing, unreadable, or without pictures.
    """
    path = existing_file(path, "the video")
    try:
        with av.open(os.fspath(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path} has no pictures", "a video", "choose another file")
            rate = container.streams.video[0].average_rate
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.error.FFmpegError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the video {path} cannot be read", "a video such as mp4", "save it again") from error
    if not frames or not rate:
        raise InputError(f"the video {path} is empty", "at least one frame", "choose another file")
    return torch.from_numpy(np.stack(frames)), float(rate)


def write_video(
    path: str | os.PathLike[str],
    frames: Iterable[Tensor | np.ndarray],
    fps: float,
    audio: tuple[Tensor, int] | None = None,
) -> None:
    """Write an h264 + aac mp4; the file appears only once it is complete.

    Args:
        path: the mp4 to write; an older one is replaced.
        frames: uint8 [H, W, 3] each, all of one even height and width.
        fps: frames a second.
        audio: ([C, S] in -1..1, rate in Hz); cut to the length of the video.

    Raises:
        InputError: no frames, or frames of odd or changing size.
    """
    with atomic_write(path) as temporary, av.open(os.fspath(temporary), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        # mbtree reads memory that nobody wrote in small pictures: equal frames would not give equal files
        options = {"crf": "16", "preset": "medium", "x264-params": "mbtree=0"}
        video = container.add_stream("libx264", rate=rate, options=options)
        video.pix_fmt = "yuv420p"
        sound = _Sound(container, *audio) if audio is not None else None
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
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(video.encode(picture))
            count += 1
            if sound is not None:
                sound.write(container, float(count / rate))
        if not count:
            raise InputError("a video without frames", "at least one frame", "make it longer")
        container.mux(video.encode(None))
        if sound is not None:
            container.mux(sound.stream.encode(None))


class _Sound:
    """The aac stream of a video being written; hands out samples as far as the pictures have come."""

    def __init__(self, container: av.container.OutputContainer, waveform: Tensor, rate: int) -> None:
        fitting = rate if rate in AAC_RATES else next((r for r in AAC_RATES if r >= rate), AAC_RATES[-1])
        self.rate, self.done = fitting, 0
        waveform = resample(waveform, rate, fitting)
        if waveform.shape[0] not in LAYOUTS:
            waveform = waveform.mean(dim=0, keepdim=True)
        self.layout = LAYOUTS[waveform.shape[0]]
        self.samples = waveform.clamp(-1, 1).float().cpu().numpy()
        bits = 96_000 * self.samples.shape[0]
        self.stream = container.add_stream("aac", rate=fitting, layout=self.layout, bit_rate=bits)

    def write(self, container: av.container.OutputContainer, until: float) -> None:
        """Encode up to `until` seconds."""
        piece = self.samples[:, self.done : round(until * self.rate)]
        if piece.shape[1] == 0:
            return
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), format="fltp", layout=self.layout)
        frame.sample_rate, frame.pts = self.rate, self.done
        frame.time_base = Fraction(1, self.rate)
        self.done += piece.shape[1]
        container.mux(self.stream.encode(frame))
