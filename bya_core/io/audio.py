"""Audio: recordings on the time axis of their file, mono mixes, resampling, placing and mixing of speech."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.audio.resampler import AudioResampler
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.container import (
    Clock,
    Damage,
    TimeZero,
    declared_seconds,
    decode_packets,
    open_media,
    seek,
    time_zero,
    usable_stream,
)
from bya_core.io.files import existing_file, file_label
from bya_core.io.truncation import ends_early

MIN_RATE, MAX_RATE = 2_000, 768_000  # Hz
MAX_CHANNELS = 128
MAX_SAMPLES = 1 << 27  # of one recording in memory, all channels together: 512 MiB
MAX_LEVEL = 1e6  # of a sample; full scale is 1
SILENCE = 1e-3  # peak below which a recording counts as silent (-60 dB)
PREROLL = 0.5  # seconds decoded before the part that is read: coders need earlier packets
STEP = 0.02  # seconds by which time stamps may deviate from the number of samples
LOOKAHEAD = 30.0  # seconds after the part that are decoded if the file ends in them
SHORT = 0.05  # seconds that may be missing at the end without a notice
BLOCK = 0.25  # seconds for which `to_mono` chooses polarities
OPPOSITE = -0.5  # correlation below which a channel has the opposite polarity
EXPECTED = "an audio file such as wav, flac, mp3 or m4a"


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


@dataclass(frozen=True)
class Recording:
    """A recording, or a part of one. Late starts and gaps are silent.

    Args:
        waveform: [channels, samples] float32; sample 0 is at `start`.
        sample_rate: in Hz.
        start: time of sample 0 after the start of the file, in seconds.
        seconds: length of the whole file; what its header says where its end was not read.
        notices: what is missing, one sentence each.
    """

    waveform: Tensor
    sample_rate: int
    start: float
    seconds: float
    notices: tuple[str, ...] = ()


def read_audio(path: str | os.PathLike[str]) -> tuple[Tensor, int]:
    """Read the audio of an audio or video file: ([channels, samples] float32, sample rate in Hz).

    Raises:
        InputError: see `read_recording`.
    """
    recording = read_recording(path)
    return recording.waveform, recording.sample_rate


def read_recording(
    path: str | os.PathLike[str],
    start: float = 0.0,
    seconds: float | None = None,
    what: str = "the audio",
    zero: TimeZero = "file",
) -> Recording:
    """Read the audio of an audio or video file, or a part of it. Only that part is decoded.

    Samples follow the time stamps of the file.

    Args:
        path: audio or video file.
        start: start of the part in seconds.
        seconds: length of the part; None reads to the end. The part is shorter if the recording ends before it does.
        what: the recording in messages.
        zero: time zero: "file" is the start of playback (the first audio or video stream), "video" the first picture.

    Raises:
        InputError: The file is missing, unreadable, empty, has no audio, or is too long.
    """
    path = existing_file(path, what)
    damage = Damage()
    with open_media(path, what, EXPECTED) as container:
        stream = usable_stream(container, "audio")
        if stream is None:
            raise InputError(f"{path} has no audio", "an audio file, or a video with audio", "choose another file")
        rate = check_sample_rate(int(stream.rate or 0), file_label(what, path))
        origin = time_zero(container, zero)
        declared, exact = declared_seconds(container, stream, origin)
        if seconds is not None and start >= declared > 0:
            seconds = 0.0  # behind the end
        skip = _seek(container, stream, origin, start)
        track = _Track(rate, start, seconds, file_label(what, path), declared)
        clock = Clock(origin)
        if seconds != 0.0:
            for frame in decode_packets(container, stream, damage, skip):
                if not frame.samples or not frame.sample_rate:
                    continue
                track.add(frame, clock(frame.pts, frame.time_base, frame.samples / frame.sample_rate))
                if track.full and not 0 < declared < start + (seconds or 0.0) + LOOKAHEAD:
                    break  # else the rest is decoded too, to tell whether the end is missing
        complete = damage.reached_end
    waveform, end = track.waveform(), start + track.end / rate
    total = max(end, declared) if not complete or declared - end > SHORT else end
    notices = []
    if complete and track.decoded == 0 and start == 0.0:
        reason = "nothing in it can be decoded" if damage.errors or damage.cut else "it has no samples"
        raise InputError(f"{file_label(what, path)} is empty ({reason})", "at least one sample", "choose another file")
    if complete and (exact and declared - end > max(SHORT, 0.01 * declared) or damage.cut or ends_early(path)):
        says = f" of {declared:.2f} s" if exact and declared - end > SHORT else ""
        notices.append(f"{path.name} is incomplete: it ends at {end:.2f} s{says}, the end is missing.")
    elif damage.errors:
        notices.append(f"{path.name} is damaged: what cannot be decoded ({damage.errors} packets) is silent.")
    check_samples(waveform, file_label(what, path))
    return Recording(waveform, rate, start, total, tuple(notices))


def _seek(container: av.container.InputContainer, stream: Any, zero: float, start: float) -> float | None:
    """Go to shortly before `start`. Returns the time stamp before which packets need no decoding."""
    target = zero + start - PREROLL
    if start <= 2 * PREROLL:
        return None
    if container.format.name not in ("aac", "mp3"):  # without an index: time stamps after a seek are estimates
        seek(container, stream, target)
    return target


class _Track:
    """Collects decoded frames into one array, placed by their time stamps."""

    def __init__(self, rate: int, start: float, seconds: float | None, what: str, declared: float) -> None:
        self.rate, self.start, self.what = rate, start, what
        self.limit = None if seconds is None else round(seconds * rate)
        self.expected = round(max(0.0, (declared or 10.0) - start) * rate) if seconds is None else self.limit
        self.samples = np.zeros((0, 1), np.float32)  # [S, C]
        self.filled, self.decoded, self.end, self.full = 0, 0, 0, self.limit == 0
        self.position: int | None = None
        self.key: tuple[Any, ...] | None = None

    def waveform(self) -> Tensor:
        """[C, S] float32; a long one is not contiguous, to bound memory."""
        samples = self.samples[: self.filled].T
        return torch.from_numpy(samples if samples.size > MAX_SAMPLES // 8 else np.ascontiguousarray(samples))

    def add(self, frame: av.AudioFrame, time: float) -> None:
        expected = round((time - self.start) * self.rate)
        if self.position is None or abs(expected - self.position) > STEP * self.rate:
            self.position = expected
        values = self._convert(frame)
        self.decoded += len(values)
        low, high = max(0, self.position), self.position + len(values)
        if self.limit is not None and high >= self.limit:
            high, self.full = self.limit, True
        if high > low:
            self._reserve(high, values.shape[1])
            self.samples[low:high] = values[low - self.position : high - self.position]
            self.filled = max(self.filled, high)
        self.position += len(values)
        self.end = max(self.end, self.position)

    def _convert(self, frame: av.AudioFrame) -> np.ndarray:
        """[S, C] float32 with the rate and channels of the first frame."""
        key = (frame.format.name, frame.layout.name, frame.sample_rate)
        channels = frame.layout.nb_channels
        if key != self.key:
            self.key, self.resampler = key, AudioResampler(format="flt", rate=self.rate)
            if self.decoded == 0:
                if not 1 <= channels <= MAX_CHANNELS:
                    problem = f"{self.what} has {channels} channels"
                    raise InputError(problem, f"1 to {MAX_CHANNELS} channels", "convert it to mono or stereo")
                self.channels = channels
        if key[0] == "fltp" and channels <= 2 and key[2] == self.rate:
            values = np.stack([_plane(frame, k, 1)[:, 0] for k in range(channels)], axis=1)
        else:  # packed: PyAV cannot read the planes of more than 7 channels
            pieces = [_plane(piece, 0, channels) for piece in self.resampler.resample(frame)]
            values = np.concatenate(pieces) if len(pieces) != 1 else pieces[0]
        if channels != self.channels:
            values = np.repeat(values.mean(axis=1, keepdims=True), self.channels, axis=1)
        return values

    def _reserve(self, length: int, channels: int) -> None:
        if length * channels > MAX_SAMPLES:
            longest = MAX_SAMPLES / channels / self.rate / 60
            problem = f"{self.what} is too long ({channels} channels at {self.rate} Hz)"
            raise InputError(
                problem,
                f"at most {longest:.0f} minutes of it for one video",
                'set the length of the video, or use a part of the recording ("from" and "to" of a clip)',
            )
        if length > len(self.samples):
            known = min(self.expected or 0, MAX_SAMPLES // channels)
            capacity = max(length, min(known, length + 30 * self.rate), len(self.samples) * 3 // 2)
            if self.samples.shape[1] != channels:
                self.samples = np.zeros((capacity, channels), np.float32)
            else:
                self.samples.resize((capacity, channels), refcheck=False)  # new samples are zero


def _plane(frame: av.AudioFrame, index: int, channels: int) -> np.ndarray:
    """Samples [S, channels] of a float32 plane."""
    return np.frombuffer(memoryview(frame.planes[index]), np.float32, frame.samples * channels).reshape(-1, channels)


def check_sample_rate(rate: int, what: str) -> int:
    """Return a sample rate in Hz, or raise InputError if no recording of speech has it."""
    if not MIN_RATE <= rate <= MAX_RATE:
        expected = f"{MIN_RATE} to {MAX_RATE} Hz"
        raise InputError(f"{what} has a sample rate of {rate} Hz", expected, "export it again, for example at 48000 Hz")
    return rate


def check_samples(waveform: Tensor, what: str) -> None:
    """Raise InputError for samples that are not finite, or beyond any level."""
    if waveform.numel() == 0:
        return
    low, high = (float(each) for each in torch.aminmax(waveform))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"{what} contains NaN or infinity", "finite samples", "export it again")
    if max(-low, high) > MAX_LEVEL:
        raise InputError(f"{what} has samples of {max(-low, high):.3g}", "samples in -1..1", "export it again")


def to_mono(waveform: Tensor, rate: int) -> Tensor:
    """Mix the channels of a waveform [C, S] to one [S] without cancelling any of them.

    The mean of all channels but the silent ones. Where two have opposite polarity (left = -right), one is inverted.

    Args:
        waveform: [C, S].
        rate: sample rate in Hz.
    """
    samples = waveform.float()
    if samples.shape[0] == 1 or samples.shape[1] == 0:
        return samples[0] if samples.shape[0] else samples.sum(dim=0)
    peaks = samples.amax(dim=1) - samples.amin(dim=1)
    active = [channel for channel, peak in zip(samples, peaks, strict=True) if peak > SILENCE * peaks.max()]
    if not active:
        return samples[0]
    block = max(1, round(BLOCK * rate))
    mixed = active[0].clone()
    for channel in active[1:]:
        signs = _polarity(mixed, channel, block)
        if (signs > 0).all() or (signs < 0).all():
            mixed += channel * float(signs[0])
            continue
        centers = (np.arange(len(signs)) + 0.5) * block
        for start in range(0, len(channel), 1 << 22):  # in parts, to bound memory
            stop = min(start + (1 << 22), len(channel))
            weights = np.interp(np.arange(start, stop), centers, signs).astype(np.float32)
            mixed[start:stop] += channel[start:stop] * torch.from_numpy(weights)
    return mixed / len(active)


def _polarity(one: Tensor, other: Tensor, block: int) -> np.ndarray:
    """-1 for each block of samples in which two channels have opposite polarity, else 1: [blocks]."""
    signs = []
    for start in range(0, len(one), block):
        a, b = one[start : start + block], other[start : start + block]
        power = float(a @ a) * float(b @ b)
        signs.append(-1.0 if power > 0 and float(a @ b) < OPPOSITE * math.sqrt(power) else 1.0)
    return np.array(signs)


def is_silent(waveform: Tensor, rate: int) -> bool:
    """Whether the mono mix of a waveform [C, S], which is what the model receives, has a peak below -60 dB."""
    if waveform.numel() == 0:
        return True
    mono = to_mono(waveform, rate)
    low, high = (float(each) for each in mono.aminmax())
    mean = float(mono.mean())
    return max(high - mean, mean - low) < SILENCE


def resample(waveform: Tensor, rate: int, target: int) -> Tensor:
    """Resample each channel of a waveform [C, S] from `rate` to `target` Hz: [C, round(S * target / rate)]."""
    if rate == target or waveform.shape[1] == 0:
        return waveform
    length = round(waveform.shape[1] * target / rate)
    result = torch.zeros(waveform.shape[0], length)
    for row, channel in zip(result.numpy(), waveform.float().cpu().numpy(), strict=True):
        resampler, done = AudioResampler(format="fltp", layout="mono", rate=target), 0
        for start in [*range(0, len(channel), 1 << 20), None]:
            frame = None
            if start is not None:
                piece = np.ascontiguousarray(channel[None, start : start + (1 << 20)])
                frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
                frame.sample_rate = rate
            for chunk in resampler.resample(frame):
                samples = chunk.to_ndarray()[0][: length - done]
                row[done : done + len(samples)] = samples
                done += len(samples)
    return result


def resample_mono(waveform: Tensor, rate: int, target: int) -> Tensor:
    """Mix the channels of a waveform [C, S] to one (`to_mono`) and resample it to `target` Hz: [S']."""
    return resample(to_mono(waveform, rate)[None], rate, target)[0]


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


def speech_signal(speech: PlacedSpeech, rate: int, seconds: float, lead: float = 0.0) -> Tensor:
    """The signal that a model receives: mono samples [S] at `rate` Hz on the time axis of the video.

    Args:
        speech: speech of a character.
        rate: sample rate in Hz.
        seconds: end of the signal; what comes later is not resampled.
        lead: seconds before the start of the video with which the signal starts.
    """
    own = speech.sample_rate
    first = max(0, math.floor((-speech.offset - lead) * own))
    last = max(first, math.ceil((seconds - speech.offset) * own))
    mono = resample_mono(speech.waveform[:, first:last], own, rate)
    return place(mono[None], rate, speech.offset + first / own + lead, speech.gain)[0]


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
        last = max(0, math.ceil((seconds - speech.offset) * speech.sample_rate) + speech.sample_rate)
        heard = resample(speech.waveform[:, :last], speech.sample_rate, rate)
        voice = place(heard, rate, speech.offset, speech.gain)[:, : mix.shape[1]].float()
        mix[: voice.shape[0] if voice.shape[0] > 1 else None, : voice.shape[1]] += voice
    return mix / max(1.0, float(mix.abs().max())) if mix.numel() else mix, rate
