"""Puppets: determinism, ground truth and speed."""

from __future__ import annotations

import time

import numpy as np
import pytest
import soundfile

from bya_core.errors import InputError
from bya_core.scene.schema import read_scene_file
from training.puppets import MOUTH_RGB, make_clip
from training.puppets.__main__ import Arguments, main
from training.puppets.looks import draw_look
from training.puppets.recordings import load_recordings
from training.puppets.world import draw_portrait


def test_clips_depend_on_the_seed():
    one, again, other = make_clip(5, 2), make_clip(5, 2), make_clip(6, 2)
    assert np.array_equal(one.frames, again.frames) and np.array_equal(one.speeches, again.speeches)
    assert one.prompt == again.prompt and one.prompt != other.prompt
    assert np.abs(one.frames.astype(int) - other.frames).mean() > 5


@pytest.mark.parametrize(
    ("n", "height", "width", "frames"), [(1, 64, 96, 17), (2, 96, 64, 9), (3, 48, 160, 5), (4, 128, 192, 1)]
)
def test_any_number_size_and_length(n, height, width, frames):
    clip = make_clip(11, n, height, width, frames)
    assert clip.frames.shape == (frames, height, width, 3)
    assert clip.masks.shape == (n, frames, height, width)
    assert clip.opening.shape == clip.shape.shape == (n, frames)
    assert len(clip.portraits) == n == len(clip.looks)
    assert clip.masks.any((2, 3)).mean() > 0.9  # visible


def test_masks_do_not_overlap():
    for seed in range(4):
        clip = make_clip(seed, 3, motion="crossing")
        assert clip.masks.sum(0).max() <= 1


def test_crossing_characters_change_sides():
    clip = make_clip(3, 2, num_frames=75, motion="crossing")
    x = clip.mouth_centers[..., 0]
    assert np.sign(x[0, 0] - x[1, 0]) != np.sign(x[0, -1] - x[1, -1])


def _mouth_area(clip, k):
    """Pixels of the mouth color around the mouth of character k, per frame."""
    y, x = np.mgrid[0 : clip.frames.shape[1], 0 : clip.frames.shape[2]]
    similar = np.abs(clip.frames / 255.0 - np.array(MOUTH_RGB)).sum(-1) < 0.25
    cx, cy = clip.mouth_centers[k].T[:, :, None, None]
    return (similar & (np.hypot(x - cx, y - cy) < 24)).sum((1, 2)).astype(float)


def test_mouth_pixels_follow_the_opening_track():
    agreement = []
    for seed in range(6):
        clip = make_clip(seed, 1, 128, 192, 50, motion="still", talk="turns")
        if clip.opening[0].std() > 0.05:
            agreement.append(np.corrcoef(_mouth_area(clip, 0), clip.opening[0])[0, 1])
    assert len(agreement) >= 3 and min(agreement) > 0.9, agreement


def test_random_first_mouths_change_the_first_frame_only():
    clip, changed = make_clip(2_000_017, 3), make_clip(2_000_017, 3, random_first_mouths=True)
    assert np.array_equal(clip.frames[1:], changed.frames[1:]) and np.array_equal(clip.speeches, changed.speeches)
    assert not np.array_equal(clip.frames[0], changed.frames[0])
    assert np.array_equal(clip.masks, changed.masks)


def test_tracks_drive_the_mouth():
    opening = np.tile((np.arange(25) % 8 < 4).astype(np.float32), (1, 1))
    clip = make_clip(2, 1, 128, 192, 25, tracks=(opening, np.zeros((1, 16_000), np.float32)), motion="still")
    area = _mouth_area(clip, 0)
    assert area[opening[0] > 0].min() > 2 * area[opening[0] == 0].max()


def test_portraits_vary_but_identify_the_puppet():
    rng = np.random.default_rng(1)
    looks = [draw_look(rng) for _ in range(12)]
    first, second = (np.stack([draw_portrait(look, rng) for look in looks]).astype(float) for _ in range(2))
    assert np.abs(first - second).mean((1, 2, 3)).min() > 1  # pose and light differ

    def histograms(portraits):
        return np.stack([np.histogramdd(p.reshape(-1, 3), bins=6, range=[(0, 250)] * 3)[0].ravel() for p in portraits])

    a, b = histograms(first), histograms(second)
    nearest = np.abs(a[:, None] - b[None]).sum(-1).argmin(1)
    assert (nearest == np.arange(12)).mean() > 0.8


def test_prompt_describes_positions():
    clip = make_clip(8, 2)
    left = int(np.argmin(clip.mouth_centers[:, 0, 0]))
    before, after = clip.prompt.split(";")
    assert clip.looks[left].describe() in before and clip.looks[1 - left].describe() in after


def test_drawing_speed():
    """The fastest of many short rounds, as other processes slow some of them down."""
    make_clip(0, 2)
    best = 0.0
    for _ in range(60):
        start = time.process_time()
        for seed in range(4):
            make_clip(seed, 2)
        best = max(best, 4 / (time.process_time() - start))
        if best >= 8:
            break
    assert best >= 8, f"{best:.0f} clips/s"


def test_command_draws_a_puppet_with_a_recording(tmp_path):
    sound = np.zeros(16_000, np.float32)
    sound[4_000:9_000] = 0.3 * np.sin(np.arange(5_000) * 0.06)
    soundfile.write(tmp_path / "voice.wav", sound, 16_000)
    opening, speeches = load_recordings((tmp_path / "voice.wav",), 25)
    assert opening.shape == (1, 25) and speeches.shape == (1, 16_000)
    assert opening[0, 8:13].min() > 0.3 > 0.1 > opening[0, 18:].max()
    main(Arguments(output=tmp_path / "clip.mp4", recordings=(tmp_path / "voice.wav",), height=64, width=96, frames=25))
    assert (tmp_path / "clip.mp4").stat().st_size > 1_000
    with pytest.raises(InputError, match="recordings for 2"):
        main(Arguments(output=tmp_path / "clip.mp4", recordings=(tmp_path / "voice.wav",), characters=2))


def test_command_writes_a_scene_that_loads(tmp_path):
    main(Arguments(seed=1_000_007, scene=tmp_path / "scene", characters=3, height=64, width=96, frames=9))
    entries = read_scene_file(tmp_path / "scene" / "scene.json")
    assert [c.name for c in entries.characters] == ["puppet A", "puppet B", "puppet C"] and entries.length == 9
    assert all((tmp_path / "scene" / c.image).is_file() for c in entries.characters)
