"""The sound of a dubbed film: the old voices of some characters are replaced by the new ones."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bya_core.encoders.vad import LoudnessActivity, Span, merge_spans, speaking_spans
from bya_core.evaluation.lip_sync import RATE
from bya_core.evaluation.speakers import find_speakers
from bya_core.io.media import mix_speeches, resample_mono
from bya_core.pipelines.dub.people import People
from bya_core.scene.original_voices import OriginalVoices
from bya_core.scene.types import Scene, Speech

FADE = 0.02  # seconds
WHILE_SPEAKING = (
    "The original sound is muted while the new voices speak: a timeline of the film or its voices as separate "
    "recordings say where the old voices are."
)


def dubbed_sound(
    original: Speech | None,
    scene: Scene,
    people: People,
    dubbed: Sequence[int],
    seconds: float,
    voices: OriginalVoices | None = None,
) -> tuple[tuple[Tensor, int] | None, tuple[str, ...]]:
    """The sound of the dubbed film, and notices.

    The old voices are known from, in this order: separate recordings, a timeline, the lips of real people. Otherwise
    the original sound is muted while the new voices speak, and wherever somebody speaks if everybody has a new voice.

    Args:
        original: Sound of the film; None without.
        scene: The scene with the new voices.
        people: The characters in the film.
        dubbed: Indices of those with a new voice.
        seconds: Length of the film.
        voices: What is known of the voices in the film.
    """
    names, notices = {scene.names[n] for n in dubbed}, tuple[str, ...]()
    kept: list[Speech | None] = []
    if voices is not None and (voices.stems or voices.background is not None):
        kept = [*(speech for name, speech in voices.stems.items() if name not in names), voices.background]
        notices = _unknown(names, voices.stems, "separate recording")
    elif original is not None:
        if voices is not None and voices.turns:
            spans = [(turn.start, turn.end) for turn in voices.turns if turn.speaker in names]
            notices = _unknown(names, {turn.speaker for turn in voices.turns}, "turn")
        else:
            spans, notices = _old_voices(original, scene, people, dubbed)
        kept = [muted(original, spans)]
    return mix_speeches([*kept, *scene.speeches], seconds), notices


def _unknown(names: set[str], known: Container[str], what: str) -> tuple[str, ...]:
    """One notice for each character whose old voice is not known."""
    return tuple(
        f"The film has no {what} of {name}: an old voice may stay." for name in sorted(names) if name not in known
    )


def _old_voices(
    original: Speech, scene: Scene, people: People, dubbed: Sequence[int]
) -> tuple[list[Span], tuple[str, ...]]:
    """Spans in which the old voices of the dubbed characters are heard, and notices."""
    if people.tracks:
        waveform = resample_mono(original.waveform, original.sample_rate, RATE).numpy()
        length = len(people.tracks[0].boxes)
        everyone = [*scene.names, *(f"another face ({k + 1})" for k in range(len(people.tracks) - len(scene.names)))]
        found = find_speakers(people.tracks, waveform, length, scene.fps, everyone)
        names = {scene.names[n] for n in dubbed}
        turns = [(turn.start, turn.end) for turn in found.turns if turn.speaker in names]
        if turns or not found.speech.any():
            return turns, ()
    loud = LoudnessActivity()  # a recording of one voice has no other sounds
    spans = [span for speech in scene.speeches if speech is not None for span in speaking_spans(speech, loud)]
    if len(dubbed) == len(scene.names):
        spans += speaking_spans(original, None if people.tracks else loud)
    return merge_spans(spans), (WHILE_SPEAKING,)


def muted(speech: Speech, spans: Sequence[Span]) -> Speech:
    """A recording that starts with the video, with silence in `spans` (seconds) and short fades around them."""
    gain = torch.ones(speech.waveform.shape[1])
    fade = max(1, round(FADE * speech.sample_rate))
    for start, end in spans:
        first, last = round(start * speech.sample_rate), round(end * speech.sample_rate)
        around = torch.arange(len(gain))[max(0, first - fade) : max(0, last + fade)]
        outside = torch.maximum(first - around, around - last).clamp(min=0)
        gain[around] = torch.minimum(gain[around], outside / fade)
    return replace(speech, waveform=speech.waveform * gain)
