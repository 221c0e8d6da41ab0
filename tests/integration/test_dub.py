"""Dubbing with the toy model: drawn films with known truth, and where real people are found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bya_core.errors import InputError
from bya_core.evaluation.binding import bind
from bya_core.io.loudness import loudness_track
from bya_core.pipelines.dub.dub import Dub, dub_film, prepare_dub
from bya_core.pipelines.dub.film import film_of
from bya_core.pipelines.load import load_model
from bya_core.scene.types import Character, Scene, Speech
from bya_core.toy.mouth import in_view, mouth_opening
from bya_core.weights.bundle import ModelBundle
from tests.clips import SAMPLE_RATE, read_clip, side_by_side
from tests.unit.routing.puppet_scene import VALIDATION, needs_toy, picture
from training.puppets import PuppetClip, make_clip
from training.puppets.looks import MOUTH_RGB

FRAMES = 33


@pytest.fixture(scope="module")
def toy() -> ModelBundle:
    return load_model("toy")


def drawn(model: ModelBundle, clip: PuppetClip, voice: np.ndarray, order: tuple[int, ...], steps: int) -> Scene:
    """The characters of a clip in another order, the first of them with a new voice."""
    return Scene(
        prompt=clip.prompt,
        characters=[Character(f"puppet {n}", picture(clip.portraits[n])) for n in order],
        speeches=[Speech(torch.from_numpy(voice)[None], SAMPLE_RATE), *[None] * (len(order) - 1)],
        height=64,
        width=96,
        num_frames=9,
        sampling=replace(model.sampling, steps=steps, seed=1),
    )


@needs_toy
@pytest.mark.slow
def test_new_voice_moves_the_mouth_of_its_character_and_nothing_else(toy: ModelBundle) -> None:
    clip = make_clip(VALIDATION + 31, 2, 64, 96, 49, motion="moving", talk="overlap")
    voice = make_clip(VALIDATION + 32, 2, 64, 96, 49, talk="overlap", draw_video=False).speeches[0]
    film = film_of(torch.from_numpy(clip.frames), 25.0, (torch.from_numpy(clip.mix)[None], SAMPLE_RATE))
    made = dub_film(film, drawn(toy, clip, voice, (1, 0), 24), toy).load()
    frames, weights = made.frames.numpy(), made.weights.numpy()
    assert np.array_equal(frames[weights == 0], clip.frames[weights == 0])
    assert np.array_equal(frames[clip.masks[0]], clip.frames[clip.masks[0]]), "who keeps the voice keeps the mouth"
    own = clip.masks[1:]
    streams = np.stack([loudness_track(each, SAMPLE_RATE, 49, 25) for each in (voice, *clip.speeches)])
    binding = bind(mouth_opening(frames, own, MOUTH_RGB), streams, np.array([0]), visible=in_view(own))
    assert binding.correct[0] and binding.correlation[0, 0] > 0.6


@needs_toy
def test_drawn_characters_are_found_by_their_pictures(toy: ModelBundle) -> None:
    clip = make_clip(VALIDATION + 33, 3, 64, 96, 17, motion="still", talk="overlap")
    film = film_of(torch.from_numpy(clip.frames), 25.0)
    for n in range(3):
        order = (n, *(other for other in range(3) if other != n))
        dub = prepare_dub(film, drawn(toy, clip, clip.speeches[n], order, 2), toy)
        for f in range(0, 17, 4):
            x, y = clip.mouth_centers[n, f].astype(int)
            region = dub.regions.alpha(f)
            assert region[y, x] == 1, f"the mouth of character {n} in frame {f}"
            assert not region[clip.masks[[other for other in range(3) if other != n], f].any(axis=0)].all()


@needs_toy
def test_drawn_stranger_is_an_error(toy: ModelBundle) -> None:
    clip = make_clip(VALIDATION + 34, 1, 64, 96, 9, motion="still")
    other = make_clip(VALIDATION + 35, 1, 64, 96, 9, draw_video=False)
    scene = drawn(toy, replace(clip, portraits=other.portraits), clip.speeches[0], (0,), 2)
    with pytest.raises(InputError, match="puppet 0 cannot be recognized"):
        prepare_dub(film_of(torch.from_numpy(clip.frames), 25.0), scene, toy)


def real(name: str, voice: np.ndarray, model: ModelBundle) -> Scene:
    """A scene with one person, whose picture is the last frame of a clip."""
    person = Character(name, picture(read_clip(name)[0][-1]))
    speech = Speech(torch.from_numpy(voice.copy())[None], SAMPLE_RATE)
    sampling = replace(model.sampling, steps=2)
    return Scene("two people", [person], [speech], 64, 96, 9, sampling=sampling, force=True)


@needs_toy
@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("brbk7n", 0), ("lrwp9a", 1)])
def test_real_person_is_found_and_the_rest_of_the_film_is_identical(toy: ModelBundle, name: str, side: int) -> None:
    """The toy model cannot generate faces: only who is found, and what stays as it is."""
    frames = torch.from_numpy(side_by_side(("brbk7n", "lrwp9a"))[0][:FRAMES].copy())
    done = dub_film(film_of(frames, 25.0), real(name, read_clip("lbax4n")[1], toy), toy)
    made = done.load()
    weights = made.weights.numpy()
    assert np.array_equal(made.frames.numpy()[weights == 0], frames.numpy()[weights == 0])
    columns = np.nonzero(weights.max(axis=0))[1]
    assert 360 * side <= columns.min() and columns.max() < 360 * (side + 1)
    assert mouth_is_inside(done.dub), "the mouth of the mesh is in the region"
    assert 0.001 < float((weights > 0).mean()) < 0.1


def mouth_is_inside(dub: Dub) -> bool:
    track = dub.regions.people.tracks[0]
    for f in np.flatnonzero(track.visible):
        x, y = (track.points[f, [13, 14], :2].mean(axis=0)).round().astype(int)
        if f < len(dub.film.copy) and dub.regions.alpha(int(f))[y, x] < 1:
            return False
    return True


@needs_toy
@pytest.mark.slow
def test_real_stranger_is_an_error(toy: ModelBundle) -> None:
    frames = torch.from_numpy(side_by_side(("brbk7n", "lrwp9a"))[0][:FRAMES].copy())
    with pytest.raises(InputError, match="bbaf2n cannot be recognized"):
        prepare_dub(film_of(frames, 25.0), real("bbaf2n", read_clip("lbax4n")[1], toy), toy)
