"""The footage of the benchmark of real people: who is shown and heard when."""

from __future__ import annotations

import numpy as np

from benchmarks.real_footage import FPS, RATE, Person, interview, together


def person(shade: int, frames: int) -> Person:
    """Frames that get brighter and a constant sound."""
    pixels = np.full((frames, 4, 2, 3), shade, np.uint8) + np.arange(frames, dtype=np.uint8)[:, None, None, None]
    return Person(pixels, np.full(frames * RATE // FPS, shade, np.int16))


def test_everybody_speaks_at_once_and_repeats() -> None:
    frames, voices = together([person(10, 5), person(100, 7)], 0.4)
    assert frames.shape == (10, 4, 4, 3) and [len(each) for each in voices] == [6400, 6400]
    assert frames[[0, 4, 5, 9], 0, 0, 0].tolist() == [10, 14, 10, 14] and frames[[6, 7], 0, 3, 0].tolist() == [106, 100]


def test_listeners_keep_still_in_an_interview() -> None:
    frames, wave = interview([person(10, 5), person(100, 5)], 0.6)
    assert frames.shape == (15, 4, 4, 3)
    assert frames[:, 0, 0, 0].tolist() == [*range(10, 15), *[14] * 5, *range(10, 15)]
    assert frames[:, 0, 3, 0].tolist() == [*[104] * 5, *range(100, 105), *[104] * 5]
    assert wave.reshape(3, -1).min(axis=1).tolist() == [10, 100, 10]
