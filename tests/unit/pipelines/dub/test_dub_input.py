"""The film that is dubbed: its frames as they are, its copy at 25 frames per second, and masks of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import bya_core.pipelines.dub.film as film_module
from bya_core.errors import InputError
from bya_core.io.audio import Recording
from bya_core.io.media import read_video, write_video
from bya_core.pipelines.dub.film import MAX_SIDE, film_of, masks_of, open_film
from tests.fakes import RATE


def numbered(count: int, height: int = 16, width: int = 24) -> torch.Tensor:
    """Frame k is k everywhere."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, height, width, 3)


@pytest.mark.parametrize(("fps", "count", "copied"), [(25.0, 12, 12), (30.0, 24, 20), (12.5, 6, 12), (50.0, 21, 10)])
def test_film_of_a_file_is_that_in_memory(tmp_path: Path, fps: float, count: int, copied: int) -> None:
    path, frames = tmp_path / "film.mp4", (numbered(count) * 8).contiguous()
    write_video(path, frames, fps, (torch.full((1, RATE), 0.1), RATE), lossless=True)
    film = open_film(path)
    assert (film.num_frames, film.fps, film.size, len(film.copy)) == (count, fps, (16, 24), copied)
    assert not film.notices and film.sound is not None
    decoded = np.stack(list(film.frames()))
    assert np.array_equal(decoded, read_video(path)[0].numpy())
    other = film_of(frames, fps)
    assert other.num_frames == count and len(other.copy) == copied and other.seconds == film.seconds
    assert [int(f[0, 0, 0]) for f in film.copy] == pytest.approx([int(f[0, 0, 0]) for f in other.copy], abs=8)


def test_film_without_sound(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", numbered(5).contiguous(), 25.0)
    assert open_film(tmp_path / "film.mp4").sound is None


def test_film_of_less_than_a_frame_per_second(tmp_path: Path) -> None:
    write_video(tmp_path / "film.mp4", numbered(3).contiguous(), 0.5)
    film = open_film(tmp_path / "film.mp4")
    assert (film.num_frames, film.fps, film.size, len(film.copy)) == (3, 0.5, (16, 24), 150)


def test_notices_of_the_sound_are_those_of_the_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "film.mp4", numbered(5).contiguous(), 25.0, (torch.full((1, RATE), 0.1), RATE))
    cut = Recording(torch.zeros(1, RATE), RATE, 0.0, 9.0, ("the end is missing",))
    monkeypatch.setattr(film_module, "read_recording", lambda *_, **__: cut)
    assert "the end is missing" in open_film(tmp_path / "film.mp4").notices


def test_copy_of_a_large_film_is_reduced() -> None:
    film = film_of(torch.zeros(1, 1080, 1920, 3, dtype=torch.uint8), 25.0)
    assert tuple(film.copy.shape[1:3]) == (540, MAX_SIDE) and film.scale == 2 and film.size == (1080, 1920)


@pytest.mark.parametrize(("frames", "fps"), [(numbered(0), 25.0), (numbered(3), 0.0), (numbered(3), 1000.0)])
def test_impossible_films(frames: torch.Tensor, fps: float) -> None:
    with pytest.raises(InputError):
        film_of(frames, fps)


def test_masks_follow_the_frames_of_the_film() -> None:
    film = film_of(numbered(20), 50.0)
    masks = torch.zeros(2, 20, 4, 6)
    masks[0, :, 0, 0] = (torch.arange(20) % 4 < 2).float()
    masks[1, :, 1, 1] = 1
    found = masks_of(masks.reshape(40, 4, 6), 2, film)
    assert found.shape == (2, 10, 4, 6)
    assert found[0, :, 0, 0].tolist() == [True, False] * 5 and found[1, :, 1, 1].all()


def test_one_mask_per_character_holds_in_all_frames() -> None:
    found = masks_of(torch.eye(4)[:2].reshape(2, 2, 2), 2, film_of(numbered(7), 25.0))
    assert found.shape == (2, 7, 2, 2) and (found == found[:, :1]).all()


def test_another_number_of_masks_is_an_error() -> None:
    with pytest.raises(InputError, match="5 masks for 2 characters"):
        masks_of(torch.zeros(5, 2, 2), 2, film_of(numbered(7), 25.0))
