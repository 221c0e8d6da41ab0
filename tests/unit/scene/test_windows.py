"""Window planning and joining."""

from __future__ import annotations

import pytest
import torch

from bya_core.config import WindowConfig
from bya_core.errors import InputError
from bya_core.scene.windows import WindowJoiner, crossfade, plan_windows


@pytest.mark.parametrize("num_frames", [1, 17, 49, 53, 57, 89, 93, 129, 501, 1501, 15_001])
@pytest.mark.parametrize(("frames", "overlap"), [(49, 9), (49, 1), (17, 5), (17, 13), (9, 5)])
def test_windows_cover_all_frames_with_similar_lengths(num_frames, frames, overlap):
    windows = plan_windows(num_frames, frames, overlap)
    assert windows[0].start == 0 and windows[-1].stop == num_frames
    lengths = [window.frames for window in windows]
    assert max(lengths) <= frames and max(lengths) - min(lengths) <= 4
    for window in windows:
        assert window.start % 4 == 0 and (window.frames - 1) % 4 == 0
    for before, after in zip(windows, windows[1:], strict=False):
        assert before.stop - after.start == overlap == before.tail == after.lead
    fewest = 1 if num_frames <= frames else -(-(num_frames - overlap) // (frames - overlap))
    assert len(windows) == fewest


def test_latent_frames_align_with_the_video():
    windows = plan_windows(93, 49, 9)
    covered = [set(range(window.latent.start, window.latent.stop)) for window in windows]
    assert set().union(*covered) == set(range(24))
    for one, next_one, window in zip(covered, covered[1:], windows, strict=False):
        assert len(one & next_one) == window.latent_tail == 3


def test_default_overlap():
    assert [plan_windows(401, frames)[0].tail for frames in (9, 17, 49, 81)] == [1, 5, 9, 9]


def test_invalid_lengths_raise():
    with pytest.raises(InputError, match="use 49"):
        plan_windows(101, 50, 9)
    with pytest.raises(InputError, match="use 9"):
        plan_windows(101, 49, 8)
    with pytest.raises(InputError, match="shorter than the window"):
        plan_windows(101, 9, 9)
    with pytest.raises(InputError, match="overlap"):
        WindowConfig(frames=9, overlap=9)


@pytest.mark.parametrize(("frames", "overlap"), [(17, 5), (17, 13), (9, 1)])
def test_joining_windows_restores_the_video(frames, overlap):
    video = torch.randint(0, 256, (101, 2, 3, 3), dtype=torch.uint8)
    joiner = WindowJoiner()
    windows = plan_windows(101, frames, overlap)
    parts = [joiner.add(video[w.start : w.stop], w.lead, w.tail) for w in windows]
    assert torch.equal(torch.cat(parts), video)


def test_crossfade_is_linear():
    mixed = crossfade(torch.zeros(4, 2), torch.full((4, 2), 10.0))
    assert torch.allclose(mixed[:, 0], torch.tensor([2.0, 4.0, 6.0, 8.0]))
    assert crossfade(torch.zeros(3, dtype=torch.uint8), torch.full((3,), 255, dtype=torch.uint8)).dtype == torch.uint8
