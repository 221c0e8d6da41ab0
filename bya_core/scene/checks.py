"""What a person should know about the voices of a scene before a long run: silent, equal, swapped, too long."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch

from bya_core.scene.timeline import Turn
from bya_core.scene.types import Speech

HOP = 0.02  # seconds of one loudness value
QUIET = 0.05  # share of a recording's own loudest value (its 95th percentile) below which nobody speaks (-26 dB)
CLEARLY = 0.3  # difference of two shares of time that is no accident


def stream_notices(names: Sequence[str], speeches: Sequence[Speech | None], files: Sequence[str | None]) -> list[str]:
    """Silent and equal recordings; recordings named after each other's characters.

    Args:
        names: of the characters.
        speeches: theirs.
        files: name of each recording, None where it is no single one.
    """
    notices: list[str] = []
    for i, (name, speech) in enumerate(zip(names, speeches, strict=True)):
        if speech is None:
            continue
        if speech.silent:
            told = f" ({files[i]})" if files[i] else ""
            notices.append(f"The speech of {name}{told} is silent: the mouth will stay shut.")
            continue
        for other, earlier in zip(names[:i], speeches[:i], strict=True):
            if earlier is not None and torch.equal(earlier.waveform, speech.waveform):
                notices.append(f"{other} and {name} have the same recording: both will say the same.")
    for i, j in combinations(range(len(names)), 2):
        one, other = (files[i] or "").casefold(), (files[j] or "").casefold()
        first, second = names[i].casefold(), names[j].casefold()
        if second in one and first in other and first not in one and second not in other:
            notices.append(f"The recordings look swapped: {names[i]} has {files[i]}, {names[j]} has {files[j]}.")
    return notices


def length_notices(names: Sequence[str], speeches: Sequence[Speech | None], seconds: float, why: str) -> list[str]:
    """Speech that goes on after the end of the video.

    Args:
        seconds: of the video.
        why: it is no longer, such as "as asked for".
    """
    return [
        f"The speech of {name} lasts {speech.end:.2f} s, the video {seconds:.2f} s ({why}): "
        f"the last {speech.end - seconds:.2f} s of speech are cut."
        for name, speech in zip(names, speeches, strict=True)
        if speech is not None and speech.end > seconds + 0.02
    ]


def turn_notices(names: Sequence[str], speeches: Sequence[Speech | None], turns: Sequence[Turn]) -> list[str]:
    """A timeline beside recordings of their own: recordings that look swapped, or silent when it is their turn.

    Args:
        turns: with the names of characters.
    """
    heard = np.array([[_heard_in(speech, name, turns) for name in names] for speech in speeches])  # [M, N]
    notices, swapped = [], set()
    for i, j in combinations(range(len(names)), 2):
        # NaN (no recording, or no turn of its own) compares as false
        if heard[i, j] > heard[i, i] + CLEARLY and heard[j, i] > heard[j, j] + CLEARLY:
            swapped |= {i, j}
            notices.append(
                f"The recordings of {names[i]} and {names[j]} look swapped: each speaks in the turns of the other."
            )
    for i, name in enumerate(names):
        if heard[i, i] < CLEARLY and i not in swapped:
            notices.append(
                f"The timeline lets {name} speak, but {name}'s recording is silent in "
                f"{100 * (1 - heard[i, i]):.0f} % of that time."
            )
        if speeches[i] is None and any(turn.speaker == name for turn in turns):
            notices.append(f"The timeline lets {name} speak, but {name} has no recording and listens.")
    return notices


def _heard_in(speech: Speech | None, name: str, turns: Sequence[Turn]) -> float:
    """Share of the time in which only `name` has the turn, that this speech is to be heard."""
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
