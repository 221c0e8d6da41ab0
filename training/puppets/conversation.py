"""Random conversations: who speaks when."""

from __future__ import annotations

from typing import Literal

import numpy as np

from bya_core.errors import InputError
from training.puppets.voice import Span

Mode = Literal["turns", "overlap", "one", "silent", "mixed"]


def conversation(
    count: int, duration: float, rng: np.random.Generator, mode: Mode = "mixed", pad: float = 1.0
) -> list[list[Span]]:
    """Random speaking turns: a list of spans (seconds) for each character.

    Args:
        count: number of characters.
        duration: length of the clip in seconds.
        rng: random generator.
        mode: "turns" = one after the other in a fixed order with short pauses; "overlap" = independent phrases of all
            characters; "one" = one speaks, the others listen; "silent" = no speech; "mixed" = one of the first three.
        pad: the conversation extends about this long before and after the clip, so that clips can start with open
            mouths.
    """
    if mode == "mixed":
        mode = ("turns", "overlap", "one")[rng.choice(3, p=[0.3, 0.5, 0.2])]
    spans: list[list[Span]] = [[] for _ in range(count)]
    first, last = -pad * float(rng.uniform(0.2, 1.0)), duration + pad
    if mode == "turns":
        longest = float(np.clip(duration * 0.7, 0.6, 2.0))
        time, order = first, rng.permutation(count)
        turn = 0
        while time < last:
            length = float(rng.uniform(0.5, 1.0)) * longest
            spans[order[turn % count]].append((time, time + length))
            time += length + float(rng.uniform(0.04, 0.25))
            turn += 1
    elif mode == "overlap":
        for turns in spans:
            time = -pad * float(rng.uniform(0.2, 1.0))
            while time < last:
                length = float(rng.uniform(0.8, 2.5))
                turns.append((time, time + length))
                time += length + float(rng.uniform(0.1, 0.4))
    elif mode == "one":
        spans[int(rng.integers(count))].append((first, last))
    elif mode != "silent":
        raise InputError(f"a conversation mode {mode!r}", "turns, overlap, one, silent or mixed", "choose one of them")
    return spans
