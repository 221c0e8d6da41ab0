"""Voice activity detection: spans of speech in a recording, and who speaks when in a scene.

`SileroActivity` is a small network (silero-vad, whose weights are part of the package) that distinguishes speech from
other sounds; `LoudnessActivity` has no dependencies and detects any loud sound.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.audio import SILENCE
from bya_core.io.loudness import loudness_track
from bya_core.io.media import resample_mono, to_mono
from bya_core.scene.types import Scene, Speech

log = logging.getLogger(__name__)

Span = tuple[float, float]
VoiceActivityName = Literal["auto", "silero", "loudness"]

RATE = 16_000
MAX_PAUSE = 0.2  # seconds; spans with a shorter pause between them are merged
MIN_DURATION = 0.1  # seconds
PADDING = 0.03  # seconds before and after each span


@runtime_checkable
class VoiceActivity(Protocol):
    """Detects speech in a recording.

    Attributes:
        name: Name for reports.
    """

    name: str

    def spans(self, waveform: Tensor, rate: int) -> list[Span]:
        """Start and end of all stretches of speech, in seconds and in order.

        Args:
            waveform: Mono samples [S].
            rate: Sample rate in Hz.
        """
        ...


class LoudnessActivity:
    """Detects speech by loudness; does not distinguish it from music or noise.

    The threshold is 26 dB below the loud parts (95th percentile) of the recording or 12 dB above its noise floor (10th
    percentile), whichever is higher, but at most 12 dB below the loud parts.
    """

    name = "loudness"
    fps = 100.0
    window = 0.03  # seconds

    def spans(self, waveform: Tensor, rate: int) -> list[Span]:
        """See `VoiceActivity`."""
        count = int(waveform.shape[0] / rate * self.fps)
        if count == 0:
            return []
        loudness = loudness_track(waveform.cpu().numpy(), rate, count, self.fps, self.window)
        loud, floor = np.percentile(loudness, 95), np.percentile(loudness, 10)
        threshold = max(SILENCE / 2, 0.05 * loud, min(4.0 * floor, 0.25 * loud))
        seconds = waveform.shape[0] / rate
        return [
            (max(0.0, start - PADDING), min(seconds, end + PADDING))
            for start, end in merge_spans(true_spans(loudness > threshold, self.fps))
            if end - start >= MIN_DURATION
        ]


class SileroActivity:
    """Detects speech with silero-vad, a network of 1 MB.

    Raises:
        ImportError, AttributeError, RuntimeError, OSError: If silero-vad is missing or cannot be loaded.
    """

    name = "silero"

    def __init__(self) -> None:
        threads = torch.get_num_threads()
        try:
            import silero_vad

            self._model: Any = silero_vad.load_silero_vad()
            self._timestamps: Any = silero_vad.get_speech_timestamps
        finally:  # importing silero_vad limits the process to one thread
            torch.set_num_threads(threads)

    def spans(self, waveform: Tensor, rate: int) -> list[Span]:
        """See `VoiceActivity`."""
        samples = resample_mono(waveform[None].float().cpu(), rate, RATE)
        if samples.shape[0] == 0:
            return []
        timestamps = self._timestamps(
            samples,
            self._model,
            sampling_rate=RATE,
            min_speech_duration_ms=round(1000 * MIN_DURATION),
            min_silence_duration_ms=round(1000 * MAX_PAUSE),
            speech_pad_ms=round(1000 * PADDING),
        )
        return [(span["start"] / RATE, span["end"] / RATE) for span in timestamps]


@lru_cache(maxsize=3)
def load_voice_activity(name: VoiceActivityName = "auto") -> VoiceActivity:
    """Load a voice activity detector.

    Args:
        name: "silero", "loudness", or "auto" for silero if it can be loaded and loudness otherwise.

    Raises:
        InputError: If the name is unknown, or "silero" cannot be loaded.
    """
    if name == "loudness":
        return LoudnessActivity()
    if name not in ("auto", "silero"):
        raise InputError(f"voice activity {name!r}", '"auto", "silero" or "loudness"', "choose one of them")
    if importlib.util.find_spec("silero_vad") is None:
        problem = "is not installed"
    else:
        try:
            return SileroActivity()
        except (ImportError, AttributeError, RuntimeError, OSError) as error:  # older versions need torchaudio
            problem = f"cannot be loaded ({error})"
    if name == "silero":
        raise InputError(f"silero-vad {problem}", "silero-vad 6.2.3 or newer", 'pip install "silero-vad>=6.2.3"')
    log.info("silero-vad %s: speech is detected by loudness", problem)
    return LoudnessActivity()


def speaking_spans(speech: Speech, activity: VoiceActivity | None = None) -> list[Span]:
    """Spans of speech in seconds of the video; parts before its start are dropped."""
    mono = to_mono(speech.waveform, speech.sample_rate)
    if not is_audible(speech):
        return []
    spans = (activity or load_voice_activity()).spans(mono, speech.sample_rate)
    shifted = [(max(0.0, start + speech.offset), end + speech.offset) for start, end in spans]
    return [(start, end) for start, end in shifted if end > start]


def first_spans(speech: Speech, seconds: float) -> list[Span]:
    """As `speaking_spans`, in the first seconds of a recording that the video uses."""
    first = max(0, round(-speech.offset * speech.sample_rate))
    stop = first + round(seconds * speech.sample_rate)
    return speaking_spans(replace(speech, waveform=speech.waveform[:, :stop]))


def spans_of(scene: Scene, activity: VoiceActivity | None = None) -> list[list[Span]]:
    """Spans in which each of the N characters speaks, in seconds of the video.

    A stream counts for a character if the audio-character matrix assigns it with a weight of at least 0.5. If the
    assignment is still open (`bind == "auto"`), resolve it first.
    """
    streams = [[] if speech is None else speaking_spans(speech, activity) for speech in scene.speeches]
    result = []
    for column in scene.matrix.T:
        spans = [span for stream, weight in zip(streams, column, strict=True) if weight >= 0.5 for span in stream]
        clipped = [(start, min(end, scene.seconds)) for start, end in spans if start < scene.seconds]
        result.append(merge_spans(clipped, max_pause=0.0))
    return result


def is_audible(speech: Speech | None) -> bool:
    """Whether a stream is present and not silent."""
    return speech is not None and not speech.silent


def merge_spans(spans: list[Span], max_pause: float = MAX_PAUSE) -> list[Span]:
    """Sort spans and merge those that overlap or are at most `max_pause` seconds apart."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start - merged[-1][1] <= max_pause:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def true_spans(values: np.ndarray, fps: float) -> list[Span]:
    """(start, end) in seconds of each run of true values [F]."""
    edges = np.flatnonzero(np.diff(values.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
    return [(start / fps, end / fps) for start, end in edges.tolist()]
