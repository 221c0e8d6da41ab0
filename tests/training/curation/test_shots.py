"""Shot boundaries of real footage."""

from __future__ import annotations

import numpy as np
import pytest

from tests.clips import read_clip, write_clip
from training.curation.record import Record
from training.curation.shots import Shots, ShotSettings


def shots_of(path, seconds: float) -> list[tuple[int, int]]:
    record = Record(str(path), path.name, end=round(seconds * 25))
    return [(shot.start, shot.end) for shot in Shots(ShotSettings(min_seconds=0.5))(record)]


def film(lengths, step: int = 3) -> np.ndarray:
    """Shots of several people, one after the other, at a third of the size."""
    names = ("bbaf2n", "lbbc2a", "brbk7n", "lrwp9a")
    return np.concatenate(
        [read_clip(name)[0][:length, ::step, ::step] for name, length in zip(names, lengths, strict=False)]
    )


@pytest.mark.parametrize("fps", [23.976, 25, 29.97, 30])
def test_cuts_are_exact(tmp_path, fps):
    """Frame k of the time line belongs to the shot whose picture it shows."""
    lengths = [31, 47, 52]
    path = write_clip(tmp_path / "film.mp4", film(lengths), None, fps=fps)
    shots = shots_of(path, sum(lengths) / fps)
    assert len(shots) == 3 and [shots[0][1], shots[1][1]] == [shots[1][0], shots[2][0]]  # nothing is lost
    cuts = np.cumsum(lengths)[:2] / fps
    for (_, end), cut in zip(shots, cuts, strict=False):
        shown = np.round(np.arange(end - 1, end + 1) / 25 * fps) / fps  # nearest pictures before and after the cut
        assert shown[0] < cut - 0.1 / fps < shown[1]


def test_cuts_of_a_variable_frame_rate(tmp_path):
    lengths = [40, 45]
    steps = np.random.default_rng(0).uniform(0.02, 0.05, sum(lengths))
    times = np.cumsum(steps) - steps[0]
    path = write_clip(tmp_path / "film.mp4", film(lengths), None, times=times.tolist())
    shots = shots_of(path, times[-1])
    assert len(shots) == 2 and shots[0][1] == shots[1][0]
    assert times[39] < shots[0][1] / 25 <= times[40] + 0.04


def test_black_frames_separate_shots(tmp_path):
    black = np.zeros((20, 160, 120, 3), np.uint8)
    frames = np.concatenate([film([40]), black, film([0, 40])])
    shots = shots_of(write_clip(tmp_path / "film.mp4", frames, None), 4.0)
    assert [shot for shot in shots if shot[1] - shot[0] > 25] == [(0, 40), (60, 100)]
