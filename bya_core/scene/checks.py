"""Warnings about a scene before a long run: silent, equal, swapped or cut speech, unused prompts, long windows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
import torch

from bya_core.errors import InputError
from bya_core.scene.timeline import Turn
from bya_core.scene.types import Scene, SceneDefaults, Speech, prompt_at
from bya_core.scene.windows import plan_windows

HOP = 0.02  # seconds per loudness value
QUIET = 0.05  # fraction of the 95th percentile of the loudness below which a recording is silent (-26 dB)
SIGNIFICANT = 0.3  # difference between two fractions of time that is not a coincidence


def stream_notices(names: Sequence[str], speeches: Sequence[Speech | None], files: Sequence[str | None]) -> list[str]:
    """Silent or equal recordings, and recordings named after other characters.

    Args:
        names: Names of the characters.
        speeches: Speech of each character.
        files: File name of each recording; None if it is not a single file.
    """
    notices: list[str] = []
    for i, (name, speech) in enumerate(zip(names, speeches, strict=True)):
        if speech is None:
            continue
        if speech.silent:
            file = f" ({files[i]})" if files[i] else ""
            notices.append(f"The speech of {name}{file} is silent; {name} is treated as a listener.")
            continue
        for other, earlier in zip(names[:i], speeches[:i], strict=True):
            if earlier is not None and torch.equal(earlier.waveform, speech.waveform):
                notices.append(f"{other} and {name} have the same recording.")
    for i, j in combinations(range(len(names)), 2):
        one, other = (files[i] or "").casefold(), (files[j] or "").casefold()
        first, second = names[i].casefold(), names[j].casefold()
        if second in one and first in other and first not in one and second not in other:
            notices.append(f"The recordings may be swapped: {names[i]} has {files[i]}, {names[j]} has {files[j]}.")
    return notices


def scene_notices(scene: Scene, defaults: SceneDefaults) -> Iterator[str]:
    """Cut speech, windows longer than the training clips, and timed prompts that no window uses.

    Raises:
        InputError: Invalid window lengths.
    """
    for name, speech in zip(scene.names, scene.speeches, strict=False):
        if speech is not None and speech.end > scene.seconds + 0.02:
            yield (
                f"The speech of {name} ends at {speech.end:.2f} s, the video at {scene.seconds:.2f} s: "
                f"the last {speech.end - scene.seconds:.2f} s of speech are cut."
            )
    frames, fps, trained = scene.windows.frames or defaults.max_frames, scene.fps, defaults.max_frames
    if min(frames, scene.num_frames) > trained:
        yield f"A window of {frames} frames, the model was trained with {trained}: expect reduced quality."
    windows = plan_windows(scene.num_frames, frames, scene.windows.overlap, defaults.time_factor)
    used = {prompt_at(scene, window.start / fps, window.stop / fps) for window in windows}
    for span in scene.prompts:
        prompt = f"The prompt from {span.start:g} to {span.end:g} s"
        if span.start >= scene.seconds:
            yield f"{prompt} starts after the end of the video ({scene.seconds:.2f} s)."
        elif span.prompt not in used:
            where = "the video, which is one window" if len(windows) == 1 else f"each of the {len(windows)} windows"
            yield f"{prompt} is not used: it covers less than half of {where}."


def turn_notices(names: Sequence[str], speeches: Sequence[Speech | None], turns: Sequence[Turn]) -> list[str]:
    """Contradictions between separate recordings and a timeline.

    Args:
        names: Names of the characters.
        speeches: Speech of each character.
        turns: Turns with character names (`assign_turns`).
    """
    active = np.array([[_activity(speech, name, turns) for name in names] for speech in speeches])  # [M, N]
    notices, swapped = [], set()
    for i, j in combinations(range(len(names)), 2):
        # comparisons with NaN (no recording, or no exclusive turn) are false
        if active[i, j] > active[i, i] + SIGNIFICANT and active[j, i] > active[j, j] + SIGNIFICANT:
            swapped |= {i, j}
            notices.append(
                f"The recordings of {names[i]} and {names[j]} may be swapped: each is active in the turns of the other."
            )
    for i, name in enumerate(names):
        if active[i, i] < SIGNIFICANT and i not in swapped:
            silent = 100 * (1 - active[i, i])
            notices.append(f"The recording of {name} is silent in {silent:.0f} % of {name}'s turns in the timeline.")
        if speeches[i] is None and any(turn.speaker == name for turn in turns):
            notices.append(f"{name} has turns in the timeline but no recording, and is treated as a listener.")
    return notices


def speech_frames(speeches: Sequence[Speech | None], fps: float, time_factor: int) -> int:
    """Number of video frames that hold all speech: a multiple of `time_factor`, plus 1.

    Raises:
        InputError: No character has speech.
    """
    longest = max((speech.end for speech in speeches if speech is not None), default=0.0)
    if longest <= 0:
        raise InputError("no length and no speech", "at least one speech", "set the length in frames")
    needed = max(1, math.ceil(longest * fps - 1e-3))  # a thousandth of a frame is a rounding error
    return math.ceil((needed - 1) / time_factor) * time_factor + 1


def _activity(speech: Speech | None, name: str, turns: Sequence[Turn]) -> float:
    """Fraction of the exclusive turns of `name` in which a speech is not silent; NaN if there are none."""
    if speech is None:
        return float("nan")
    loud = loudness(speech)
    last = max(turn.end for turn in turns)
    loud = np.pad(loud, (0, max(0, int(last / HOP) + 1 - len(loud))))
    times = (np.arange(len(loud)) + 0.5) * HOP
    own, others = np.zeros(len(loud), bool), np.zeros(len(loud), bool)
    for turn in turns:
        (own if turn.speaker == name else others)[(times >= turn.start) & (times < turn.end)] = True
    own &= ~others
    if not own.any() or not loud.any():
        return float("nan")
    return float((loud[own] > QUIET * np.percentile(loud[loud > 0], 95)).mean())


def loudness(speech: Speech, hop: float = HOP) -> np.ndarray:
    """Root mean square in steps of `hop` seconds of the video, from its start to the end of the speech: [K]."""
    mono = speech.waveform.float().mean(dim=0).numpy() * 10 ** (speech.gain / 20)
    step = hop * speech.sample_rate
    first = speech.offset * speech.sample_rate
    count = max(0, int(np.ceil(speech.end / hop)))
    power = np.concatenate([[0.0], np.cumsum(np.square(mono, dtype=np.float64))])
    edges = np.clip(np.round(np.arange(count + 1) * step - first), 0, len(mono)).astype(int)
    return np.sqrt(np.diff(power[edges]) / step)
