"""When somebody speaks: spans of speech in a recording, and who speaks and who listens in a scene.

Two finders behind one Protocol. `SileroActivity` is a small network (silero-vad, its weights come with the package)
that knows speech from other sounds; `LoudnessActivity` needs nothing and takes for speech whatever is loud.
"""

from __future__ import annotations

import importlib.util
import logging
from functools import lru_cache
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.loudness import loudness_track
from bya_core.io.media import resample_mono
from bya_core.scene.types import SILENCE, Scene, Speech

log = logging.getLogger(__name__)

Span = tuple[float, float]
Finder = Literal["auto", "silero", "loudness"]

RATE = 16_000
LONGEST_PAUSE = 0.2  # seconds between two words of one span
SHORTEST = 0.1  # seconds; a shorter sound is a click
PAD = 0.03  # seconds added before and after each span


@runtime_checkable
class VoiceActivity(Protocol):
    """Finds speech in a recording.

    Attributes:
        name: which one it is, for reports.
    """

    name: str

    def spans(self, waveform: Tensor, rate: int) -> list[Span]:
        """[S] mono at `rate` Hz -> (start, end) of each stretch of speech, in seconds of the recording, in order."""
        ...


class LoudnessActivity:
    """Speech is what is loud: it cannot tell speech from music or noise.

    A moment counts from 26 dB below the loud parts (95th percentile) of the recording, or from 12 dB above its noise
    floor (10th percentile) where that is more, but never demands more than 12 dB below the loud parts.
    """

    name = "loudness"
    fps = 100.0  # moments a second
    window = 0.03  # seconds

    def spans(self, waveform: Tensor, rate: int) -> list[Span]:
        count = int(waveform.shape[0] / rate * self.fps)
        if count == 0:
            return []
        loudness = loudness_track(waveform.cpu().numpy(), rate, count, self.fps, self.window)
        loud, floor = np.percentile(loudness, 95), np.percentile(loudness, 10)
        threshold = max(SILENCE / 2, 0.05 * loud, min(4.0 * floor, 0.25 * loud))
        edges = np.flatnonzero(np.diff(np.concatenate([[False], loudness > threshold, [False]]).astype(int)))
        found = [(start / self.fps, end / self.fps) for start, end in edges.reshape(-1, 2).tolist()]
        kept = [(start, end) for start, end in joined(found) if end - start >= SHORTEST]
        return _padded(kept, waveform.shape[0] / rate)


class SileroActivity:
    """silero-vad: a network of 1 MB that tells speech from other sounds.

    Raises:
        ImportError, AttributeError, RuntimeError, OSError: silero-vad is not there, or does not work here.
    """

    name = "silero"

    def __init__(self) -> None:
        threads = torch.get_num_threads()
        try:
            import silero_vad

            self._model: Any = silero_vad.load_silero_vad()
            self._find: Any = silero_vad.get_speech_timestamps
        finally:  # importing it sets the whole process to one thread
            torch.set_num_threads(threads)

    def spans(self, waveform: Tensor, rate: int) -> list[Span]:
        heard = resample_mono(waveform[None].float().cpu(), rate, RATE)
        if heard.shape[0] == 0:
            return []
        found = self._find(
            heard,
            self._model,
            sampling_rate=RATE,
            min_speech_duration_ms=round(1000 * SHORTEST),
            min_silence_duration_ms=round(1000 * LONGEST_PAUSE),
            speech_pad_ms=round(1000 * PAD),
        )
        return [(span["start"] / RATE, span["end"] / RATE) for span in found]


@lru_cache(maxsize=3)
def load_voice_activity(finder: Finder = "auto") -> VoiceActivity:
    """The finder of that name; "auto" = silero where it is installed and loads, else loudness (see `.name`).

    Raises:
        InputError: an unknown name, or "silero" where it cannot be used.
    """
    if finder == "loudness":
        return LoudnessActivity()
    if finder not in ("auto", "silero"):
        raise InputError(f"voice activity {finder!r}", '"auto", "silero" or "loudness"', "choose one of them")
    if importlib.util.find_spec("silero_vad") is None:
        problem = "is not installed"
    else:
        try:
            return SileroActivity()
        except (ImportError, AttributeError, RuntimeError, OSError) as error:  # an older one needs torchaudio
            problem = f"cannot be loaded ({error})"
    if finder == "silero":
        raise InputError(f"silero-vad {problem}", "silero-vad 6.2.3 or newer", 'pip install "silero-vad>=6.2.3"')
    log.info("silero-vad %s: speech is found by its loudness", problem)
    return LoudnessActivity()


def speaking_spans(speech: Speech, activity: VoiceActivity | None = None) -> list[Span]:
    """When a voice speaks, in seconds of the video; what lies before its start is left out."""
    mono = speech.waveform.float().mean(dim=0)
    if not is_audible(speech):
        return []
    found = (activity or load_voice_activity()).spans(mono, speech.sample_rate)
    moved = [(max(0.0, start + speech.offset), end + speech.offset) for start, end in found]
    return [(start, end) for start, end in moved if end > start]


def spans_of(scene: Scene, activity: VoiceActivity | None = None) -> list[list[Span]]:
    """When each of the N characters speaks, in seconds of the video; in between a character listens.

    The audio-character matrix decides whose voice counts: any stream that moves a character by at least one half. Where
    voices are still to be matched to faces (`bind == "auto"`), bind first.
    """
    voices = [[] if speech is None else speaking_spans(speech, activity) for speech in scene.speeches]
    spoken = []
    for column in scene.matrix.T:
        mine = [span for voice, weight in zip(voices, column, strict=True) if weight >= 0.5 for span in voice]
        cut = [(start, min(end, scene.seconds)) for start, end in mine if start < scene.seconds]
        spoken.append(joined(cut, longest_pause=0.0))
    return spoken


def is_audible(speech: Speech | None) -> bool:
    """Whether there is anything to hear in it."""
    return speech is not None and not speech.silent


def joined(spans: list[Span], longest_pause: float = LONGEST_PAUSE) -> list[Span]:
    """Sorted spans, those joined that overlap or have at most `longest_pause` seconds between them."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start - merged[-1][1] <= longest_pause:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def _padded(spans: list[Span], seconds: float) -> list[Span]:
    return [(max(0.0, start - PAD), min(seconds, end + PAD)) for start, end in spans]
