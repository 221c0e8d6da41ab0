"""Decoding on the common timeline."""

from __future__ import annotations

import numpy as np
import pytest

from tests.training.curation.hostile import video
from training.curation.footage import timeline_frames


@pytest.mark.parametrize("fps", [23.976, 25, 29.97, 50])
def test_timeline_frames(tmp_path, fps):
    """Frame k is the frame nearest to k / 25, also when decoding starts in the middle."""
    path = str(video(tmp_path / "x.mp4", frames=90, fps=fps))
    times = [frame.time for _, frame in timeline_frames(path, 0, 40)]
    assert np.abs(np.array(times) - np.arange(40) / 25).max() <= 0.5 / fps + 1e-3
    assert abs(np.mean(np.array(times) - np.arange(40) / 25)) < 3e-3  # neither late nor early on average
    middle = [frame.time for _, frame in timeline_frames(path, 23, 31)]
    np.testing.assert_allclose(middle, times[23:31], atol=1e-9)
