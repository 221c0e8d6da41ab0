"""Dubbing a film in windows with a small model; where the people are is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bya_core.config import DubConfig, WindowConfig
from bya_core.errors import Cancelled, InputError
from bya_core.pipelines.dub.dub import Dub, dub_film, generate_dub, prepare_dub
from bya_core.pipelines.dub.film import Film, film_of
from bya_core.progress import Progress
from bya_core.scene.types import Character, Scene, Speech
from bya_core.weights.bundle import ModelBundle
from tests.fakes import RATE, tone

Maker = Callable[..., Dub]


def noise(frames: int, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), dtype=np.uint8))


def scene(**changes: object) -> Scene:
    images = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    voice = Speech(torch.from_numpy(tone(0.5)).float()[None], RATE)
    people = [Character("Ada", images[0]), Character("Bo", images[1])]
    return replace(
        Scene("two people", people, [voice, None], 64, 96, 9, windows=WindowConfig(9, 5)),  # type: ignore[arg-type]
        **changes,  # type: ignore[arg-type]
    )


@pytest.fixture
def make(bundle: ModelBundle, found_people: None) -> Maker:
    def prepare(film: Film | None = None, config: DubConfig | None = None, **changes: object) -> Dub:
        model = replace(bundle, sampling=replace(bundle.sampling, steps=2))
        return prepare_dub(film or film_of(noise(21), 25.0), scene(sampling=model.sampling, **changes), model, config)

    return prepare


def test_only_the_region_changes(make: Maker, bundle: ModelBundle, tmp_path: Path) -> None:
    film = noise(19)
    done = generate_dub(make(film_of(film, 25.0)), bundle, tmp_path)
    frames, weights = np.stack(list(done.frames)), np.stack(list(done.weights))
    assert frames.shape == film.shape and done.dub.scene.num_frames == 21, "padded for the model, cut for the film"
    assert np.array_equal(frames[weights == 0], film.numpy()[weights == 0])
    assert (frames[weights == 1] != film.numpy()[weights == 1]).any(axis=-1).mean() > 0.9
    assert weights[:, :, :48].any() and not weights[:, :, 48:].any(), "Bo keeps his voice"


@pytest.mark.parametrize(("fps", "size", "count"), [(30.0, (96, 144), 20), (12.5, (64, 96), 9), (50.0, (70, 90), 33)])
def test_any_frame_rate_and_size(
    make: Maker, bundle: ModelBundle, tmp_path: Path, fps: float, size: tuple[int, int], count: int
) -> None:
    film = noise(count, *size)
    done = generate_dub(make(film_of(film, fps)), bundle, tmp_path)
    frames, weights = np.stack(list(done.frames)), np.stack(list(done.weights))
    assert frames.shape == film.shape
    assert np.array_equal(frames[weights == 0], film.numpy()[weights == 0]) and (weights == 1).any()


def test_interrupted_run_resumes_with_the_next_window(make: Maker, bundle: ModelBundle, tmp_path: Path) -> None:
    whole = np.stack(list(generate_dub(make(), bundle, tmp_path / "whole").frames))

    def stop(progress: Progress) -> bool:
        return not progress.stage.startswith("Window 2")

    with pytest.raises(Cancelled):
        generate_dub(make(), bundle, tmp_path / "part", stop)
    assert len(list((tmp_path / "part").glob("window_*"))) == 1
    resumed = generate_dub(make(), bundle, tmp_path / "part")
    assert [row["generated"] for row in resumed.video.windows][0] is False  # type: ignore[union-attr]
    assert np.array_equal(np.stack(list(resumed.frames)), whole)


def test_one_window_again_keeps_the_others(make: Maker, bundle: ModelBundle, tmp_path: Path) -> None:
    before = np.stack(list(generate_dub(make(windows=WindowConfig(9, 1)), bundle, tmp_path).frames))
    again = generate_dub(make(windows=WindowConfig(9, 1)), bundle, tmp_path, regenerate=2, regenerate_seed=77)
    after = np.stack(list(again.frames))
    start, stop = again.video.windows[1]["frames"]  # type: ignore[union-attr]
    changed = np.flatnonzero((before != after).any(axis=(1, 2, 3)))
    assert changed.size and changed.min() >= start and changed.max() < stop


def test_other_settings_do_not_use_the_windows(make: Maker, bundle: ModelBundle, tmp_path: Path) -> None:
    generate_dub(make(), bundle, tmp_path)
    with pytest.raises(InputError, match="belongs to another scene"):
        generate_dub(make(config=DubConfig(region="head")), bundle, tmp_path)


def test_lower_strength_stays_closer_to_the_film(make: Maker, bundle: ModelBundle, tmp_path: Path) -> None:
    film, steps = noise(9), {"sampling": replace(bundle.sampling, steps=10)}
    distances = []
    for strength in (1.0, 0.2):
        own = replace(make(film_of(film, 25.0), DubConfig(strength=strength)).scene, **steps)
        dub = replace(make(film_of(film, 25.0), DubConfig(strength=strength)), scene=own)
        done = generate_dub(dub, bundle, tmp_path / str(strength))
        known = done.dub.scene.footage
        assert known is not None
        inside = known.region.numpy()
        made = np.stack([frame.numpy() for frame in done.video.frames]).astype(float)
        distances.append(np.abs(made - film.numpy())[inside].mean())
    assert distances[1] < distances[0]


def test_given_masks_are_needed_for_their_region(make: Maker) -> None:
    with pytest.raises(InputError, match='region "given" without masks'):
        make(config=DubConfig(region="given"))


def test_somebody_needs_a_new_voice(make: Maker) -> None:
    with pytest.raises(InputError, match="no character speaks"):
        make(speeches=[None, None])


def test_in_memory(bundle: ModelBundle, found_people: None) -> None:
    film = noise(9)
    done = dub_film(film_of(film, 25.0), scene(sampling=bundle.sampling), bundle)
    frames, overlay = np.stack(list(done.frames)), np.stack(list(done.overlay))
    weights = np.stack(list(done.weights))
    assert frames.shape == overlay.shape == film.shape
    assert np.array_equal(overlay[weights == 0], frames[weights == 0])
    assert (overlay[weights == 1] != frames[weights == 1]).any()
