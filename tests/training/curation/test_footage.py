"""Decoding on the common timeline."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.curation.hostile import video
from training.curation import footage
from training.curation.footage import timeline_frames
from training.curation.stage import UnusableFootage


@pytest.mark.parametrize("fps", [23.976, 25, 29.97, 50])
def test_timeline_frames(tmp_path, fps):
    """Frame k is the frame nearest to k / 25, also when decoding starts in the middle."""
    path = str(video(tmp_path / "x.mp4", frames=90, fps=fps))
    times = [frame.time for _, frame in timeline_frames(path, 0, 40)]
    assert np.abs(np.array(times) - np.arange(40) / 25).max() <= 0.5 / fps + 1e-3
    assert abs(np.mean(np.array(times) - np.arange(40) / 25)) < 3e-3  # neither late nor early on average
    middle = [frame.time for _, frame in timeline_frames(path, 23, 31)]
    np.testing.assert_allclose(middle, times[23:31], atol=1e-9)


def test_following_ranges_continue_the_decoder(tmp_path, monkeypatch):
    """Ranges in order of time decode a file once; others, and a file that has changed, are opened again."""
    path = video(tmp_path / "x.mp4", frames=90)
    whole = [frame.pixels for _, frame in timeline_frames(str(path), 0, 80)]
    footage.close_footage()
    opened = []
    decode = footage.decode_frames
    monkeypatch.setattr(footage, "decode_frames", lambda *args: opened.append(args) or decode(*args))
    for first, last in [(2, 30), (30, 31), (50, 70), (71, 80)]:
        found = dict(timeline_frames(str(path), first, last))
        assert list(found) == list(range(first, last))
        for k, frame in found.items():
            np.testing.assert_array_equal(frame.pixels, whole[k])
    assert len(opened) == 1
    assert [k for k, _ in timeline_frames(str(path), 60, 62)] == [60, 61]
    assert len(opened) == 2
    video(path, frames=80)
    list(timeline_frames(str(path), 62, 64))
    assert len(opened) == 3
    footage.close_footage()
    list(timeline_frames(str(path), 64, 65))
    assert len(opened) == 4


def test_end_of_the_footage_after_an_earlier_range(tmp_path):
    """The last picture is held for a second, also where an open decoder is continued."""
    path = str(video(tmp_path / "x.mp4", frames=50))
    for start in (10, 40, 48):
        list(timeline_frames(path, start, 45 if start < 45 else 50))
    assert [k for k, _ in timeline_frames(path, 48, 60)] == list(range(48, 60))
    list(timeline_frames(path, 40, 50))
    assert [k for k, _ in timeline_frames(path, 50, 55)] == list(range(50, 55))
    with pytest.raises(UnusableFootage, match=r"video ends at 1\.96 s"):
        list(timeline_frames(path, 45, 90))
