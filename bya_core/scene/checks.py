"""Warnings about a scene before a long run: silent, equal, swapped or cut speech, unused prompts, long windows."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from bya_core.errors import InputError
from bya_core.io.media import to_mono
from bya_core.scene.notices import first_few, listed
from bya_core.scene.timeline import Turn
from bya_core.scene.types import Scene, SceneDefaults, Speech, prompt_at
from bya_core.scene.windows import plan_windows

MAX_FRAMES = 100_000  # of a video
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
    silent: list[str] = []
    swapped: list[str] = []
    equal: defaultdict[bytes, list[str]] = defaultdict(list)
    for i, (name, speech) in enumerate(zip(names, speeches, strict=True)):
        if speech is None:
            continue
        if speech.silent:
            file = f" ({files[i]})" if files[i] else ""
            silent.append(f"The speech of {name}{file} is silent; {name} is treated as a listener.")
        else:
            waveform = speech.waveform.detach().cpu().float().contiguous().numpy()
            equal[hashlib.sha256(waveform.data).digest() + repr(waveform.shape).encode()].append(name)
    same = [f"{listed(group)} have the same recording." for group in equal.values() if len(group) > 1]
    for i, j in combinations(range(len(names)), 2):
        one, other = (files[i] or "").casefold(), (files[j] or "").casefold()
        first, second = names[i].casefold(), names[j].casefold()
        if second in one and first in other and first not in one and second not in other:
            swapped.append(f"The recordings may be swapped: {names[i]} has {files[i]}, {names[j]} has {files[j]}.")
    return [*first_few(silent), *first_few(same), *first_few(swapped)]


def scene_notices(scene: Scene, defaults: SceneDefaults) -> Iterator[str]:
    """Cut speech, windows longer than the training clips, and timed prompts that no window uses.

    Raises:
        InputError: Invalid window lengths.
    """
    yield from first_few(
        f"The speech of {name} ends at {speech.end:.2f} s, the video at {scene.seconds:.2f} s: "
        f"the last {speech.end - scene.seconds:.2f} s of speech are cut."
        for name, speech in zip(scene.names, scene.speeches, strict=False)
        if speech is not None and speech.end > scene.seconds + 0.02
    )
    frames, fps, trained = scene.windows.frames or defaults.max_frames, scene.fps, defaults.max_frames
    if min(frames, scene.num_frames) > trained:
        yield f"A window of {frames} frames, the model was trained with {trained}: expect reduced quality."
    windows = plan_windows(scene.num_frames, frames, scene.windows.overlap, defaults.time_factor)
    used = {prompt_at(scene, window.start / fps, window.stop / fps) for window in windows}
    yield from first_few(_unused_prompts(scene, used, len(windows)))


def _unused_prompts(scene: Scene, used: set[str], windows: int) -> Iterator[str]:
    """Timed prompts that are not among the used ones."""
    for span in scene.prompts:
        prompt = f"The prompt from {span.start:g} to {span.end:g} s"
        if span.start >= scene.seconds:
            yield f"{prompt} starts after the end of the video ({scene.seconds:.2f} s)."
        elif span.prompt not in used:
            where = "the video, which is one window" if windows == 1 else f"each of the {windows} windows"
            yield f"{prompt} is not used: it covers less than half of {where}."


def turn_notices(names: Sequence[str], speeches: Sequence[Speech | None], turns: Sequence[Turn]) -> list[str]:
    """Contradictions between separate recordings and a timeline.

    Args:
        names: Names of the characters.
        speeches: Speech of each character.
        turns: Turns with character names (`assign_turns`).
    """
    active = _activities(speeches, names, turns)  # [M, N]
    exchanged, silent, missing, swapped = list[str](), list[str](), list[str](), set[int]()
    for i, j in combinations(range(len(names)), 2):
        # comparisons with NaN (no recording, or no exclusive turn) are false
        if active[i, j] > active[i, i] + SIGNIFICANT and active[j, i] > active[j, j] + SIGNIFICANT:
            swapped |= {i, j}
            exchanged.append(
                f"The recordings of {names[i]} and {names[j]} may be swapped: each is active in the turns of the other."
            )
    for i, name in enumerate(names):
        if active[i, i] < SIGNIFICANT and i not in swapped:
            share = 100 * (1 - active[i, i])
            silent.append(f"The recording of {name} is silent in {share:.0f} % of {name}'s turns in the timeline.")
        if speeches[i] is None and any(turn.speaker == name for turn in turns):
            missing.append(f"{name} has turns in the timeline but no recording, and is treated as a listener.")
    return [*first_few(exchanged), *first_few(silent), *first_few(missing)]


def speech_frames(speeches: Sequence[Speech | None], fps: float, time_factor: int) -> int:
    """Number of video frames that hold all speech: a multiple of `time_factor`, plus 1.

    Raises:
        InputError: No character has speech.
    """
    longest = max((speech.end for speech in speeches if speech is not None), default=0.0)
    if longest <= 0:
        raise InputError("no length and no speech", "at least one speech", "set the length in frames")
    needed = max(1, math.ceil(longest * fps - 1e-3))  # a thousandth of a frame is a rounding error
    if needed > MAX_FRAMES:
        problem = f"speech until {longest:.0f} s, which is {needed} frames"
        raise InputError(problem, f"at most {MAX_FRAMES} frames", "set the length in frames, or use less of the speech")
    return math.ceil((needed - 1) / time_factor) * time_factor + 1


def _activities(speeches: Sequence[Speech | None], names: Sequence[str], turns: Sequence[Turn]) -> np.ndarray:
    """Fraction of the exclusive turns of each name in which a speech is not silent: [M, N]; NaN if unknown."""
    louds = [None if speech is None else loudness(speech) for speech in speeches]
    count = max([int(max(turn.end for turn in turns) / HOP) + 1, *(len(loud) for loud in louds if loud is not None)])
    speaking = {name: np.zeros(count, bool) for name in names}
    for turn in turns:
        first, stop = (math.ceil(time / HOP - 0.5) for time in (turn.start, turn.end))  # times are in the middle
        speaking[turn.speaker][max(0, first) : max(0, stop)] = True
    speakers = sum((own.astype(np.uint8) for own in speaking.values()), np.zeros(count, np.uint8))
    exclusive = [np.flatnonzero(speaking[name] & (speakers == 1)) for name in names]
    active = np.full((len(speeches), len(names)), np.nan)
    for m, loud in enumerate(louds):
        if loud is None or not loud.any():
            continue
        heard = np.pad(loud, (0, count - len(loud))) > QUIET * np.percentile(loud[loud > 0], 95)
        active[m] = [heard[own].mean() if len(own) else np.nan for own in exclusive]
    return active


def loudness(speech: Speech, hop: float = HOP) -> np.ndarray:
    """Root mean square in steps of `hop` seconds of the video, from its start to the end of the speech: [K]."""
    mono = to_mono(speech.waveform, speech.sample_rate).numpy() * 10 ** (speech.gain / 20)
    step = hop * speech.sample_rate
    first = speech.offset * speech.sample_rate
    count = max(0, int(np.ceil((speech.end - speech.unread) / hop)))
    power = np.concatenate([[0.0], np.cumsum(np.square(mono, dtype=np.float64))])
    edges = np.clip(np.round(np.arange(count + 1) * step - first), 0, len(mono)).astype(int)
    return np.sqrt(np.diff(power[edges]) / step)
