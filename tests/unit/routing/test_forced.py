"""Masks that a person gives: any resolution, blended, for a part of the run, character by character."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bya_core.config import ProbeConfig, RouterConfig
from bya_core.errors import InputError
from bya_core.evaluation.binding import correlations
from bya_core.grid import TokenGrid
from bya_core.io.loudness import loudness_track
from bya_core.masks import MaskControl
from bya_core.pipelines.generate import prepare, sample
from bya_core.progress import ProgressTracker
from bya_core.routing import Routing
from bya_core.routing.intra import probe
from bya_core.routing.route import route
from bya_core.scene.mask_files import resize_masks
from bya_core.toy.mouth import mouth_opening
from bya_core.weights.loader import load_bundle
from bya_core.weights.registry import MODELS
from tests.fakes import fake_bundle
from tests.unit.routing.calls import counted
from tests.unit.routing.puppet_scene import VALIDATION, puppet_scene, two_puppets
from training.puppets import MOUTH_RGB
from training.puppets.world import SAMPLE_RATE

GRID = TokenGrid(3, 4, 6)  # of 9 frames, 64 x 96 pixels
ALWAYS = torch.tensor([[0.0, 1.0]] * 2)


def left_right(height: int, width: int) -> torch.Tensor:
    """[2, height, width]: one on the left, one on the right."""
    masks = torch.zeros(2, height, width)
    masks[0, :, : width // 2], masks[1, :, width // 2 :] = 1, 1
    return masks


# --- bringing masks onto the tokens


@pytest.mark.parametrize("size", [(4, 6), (64, 96), (480, 720), (50, 70), (2, 2)])
@pytest.mark.parametrize("frames", [None, 1, 3, 9])
def test_any_resolution_still_or_per_frame(size, frames):
    masks = left_right(*size)
    if frames is not None:
        masks = masks[:, None].expand(2, frames, *size)
    assert torch.allclose(resize_masks(masks, GRID, 2), left_right(4, 6)[:, None].expand(2, 3, 4, 6))


def test_a_token_has_the_share_of_its_area():
    masks = torch.zeros(1, 64, 96)
    masks[0, :16, :4] = 1  # a quarter of the first token
    tokens = resize_masks(masks, GRID, 1)
    assert torch.allclose(tokens[0, :, 0, 0], torch.full((3,), 0.25)) and tokens.sum() == pytest.approx(0.75)


def test_frames_go_where_they_belong():
    """Video frame 0 is latent frame 0, frames 1 to 4 are latent frame 1."""
    masks = torch.zeros(1, 9, 64, 96)
    masks[:, 1:3] = 1
    assert resize_masks(masks, GRID, 1)[0, :, 0, 0].tolist() == [0.0, 0.5, 0.0]
    masks = torch.zeros(1, 3, 64, 96)
    masks[:, 2] = 1
    assert resize_masks(masks, GRID, 1)[0, :, 0, 0].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        (torch.zeros(3, 64, 96), "expected 2 along the first axis, for 2 characters"),
        (torch.zeros(2, 5, 64, 96), "with 5 frames; expected 1 frame, 3 .latent. or 9 .video."),
        (torch.zeros(64, 96), "shape 64 x 96"),
        (torch.zeros(2, 0, 64, 96), "shape 2 x 0 x 64 x 96"),
        (torch.full((2, 64, 96), 255.0), "values outside 0..1"),
        (torch.full((2, 64, 96), torch.nan), "values outside 0..1"),
    ],
)
def test_masks_that_do_not_fit(masks, words):
    with pytest.raises(InputError, match=words):
        resize_masks(masks, GRID, 2)


# --- what a routing makes of them


@pytest.fixture
def found() -> Routing:
    return Routing.of("intra", torch.rand(2, *GRID.shape), torch.eye(2), strength=0.0)


def acting(routing: Routing, router: torch.Tensor, conditions, step: int = 0, total: int = 10) -> torch.Tensor:
    """Masks that act where the intra router predicts `router`, as the transformer mixes them."""
    from bya_core.masks import blend_masks

    forced = routing.apply_to(conditions).mask_override(step, total)
    if forced["mask_override"] is None:
        return router
    return blend_masks(router[None], forced["mask_override"], forced["mask_override_strength"])[0]


@pytest.fixture(scope="module")
def fake():
    return fake_bundle()


@pytest.fixture(scope="module")
def prepared(fake):
    scene = puppet_scene(fake, two_puppets(), 8)
    return prepare(replace(scene, routing=RouterConfig(probe=ProbeConfig(steps=2))), fake)


def test_blend_and_span_act_per_character(found, prepared):
    given, router = torch.rand_like(found.masks), torch.rand_like(found.masks)
    blend, span = torch.tensor([0.25, 1.0]), torch.tensor([[0.0, 1.0], [0.3, 0.6]])
    routing = found.override(MaskControl(given, blend, *span.unbind(1)))
    for step in range(10):
        masks = acting(routing, router, prepared.conditions, step)
        assert torch.allclose(masks[0], 0.75 * router[0] + 0.25 * given[0])
        assert torch.allclose(masks[1], given[1] if 3 <= step < 6 else router[1]), step


def test_blend_of_nothing_leaves_the_router_alone(found, prepared):
    routing = found.override(MaskControl(torch.rand_like(found.masks), torch.tensor(0.0)))
    assert torch.equal(routing.masks, found.masks) and not (routing.control.strength > 0).any()
    assert routing.apply_to(prepared.conditions).mask_control is None


@pytest.mark.parametrize("first", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("second", [0.0, 0.6, 1.0])
def test_overrides_add_up(found, prepared, first, second):
    """A second one draws what acted before towards its masks, whoever decided that."""
    one, two, router = (torch.rand_like(found.masks) for _ in range(3))
    routing = found.override(MaskControl(one, torch.tensor(first))).override(MaskControl(two, torch.tensor(second)))
    before = (1 - first) * router + first * one
    expected = (1 - second) * before + second * two
    assert torch.allclose(acting(routing, router, prepared.conditions), expected, atol=1e-6)


def test_over_forced_masks_of_a_router(found):
    forced, given = found.with_masks(found.masks), torch.rand_like(found.masks)
    routing = forced.override(MaskControl(given, torch.tensor([0.5, 0.0])))
    assert torch.allclose(routing.masks[0], (found.masks[0] + given[0]) / 2)
    assert torch.equal(routing.masks[1], found.masks[1]) and (routing.control.strength == 1).all()


def test_held_still(found):
    still = found.static()
    assert torch.equal(still.masks[:, 0], found.masks.amax(1)) and torch.equal(still.masks[:, 0], still.masks[:, 2])
    assert (still.control.strength == 1).all()


@pytest.mark.parametrize(
    ("masks", "blend", "span", "words"),
    [
        (torch.zeros(2, 3, 4, 5), torch.ones(2), ALWAYS, "masks of shape"),
        (torch.full((2, 3, 4, 6), 2.0), torch.ones(2), ALWAYS, "masks with values outside"),
        (torch.zeros(2, 3, 4, 6), torch.ones(3), ALWAYS, "mask strength of shape"),
        (torch.zeros(2, 3, 4, 6), torch.full((2,), -0.1), ALWAYS, "mask strength with values outside"),
        (torch.zeros(2, 3, 4, 6), torch.ones(2), ALWAYS.flip(1), "start_percent < end_percent"),
    ],
)
def test_overrides_that_do_not_fit(found, masks, blend, span, words):
    with pytest.raises(InputError, match=words):
        found.override(MaskControl(masks, blend, *span.unbind(1)))


# --- in a scene


def test_given_masks_act_from_the_first_step_even_where_the_router_is_watched(fake, prepared):
    masks = resize_masks(left_right(64, 96), prepared.grid, 2)
    scene = replace(prepared.scene, mask_control=MaskControl(masks, torch.tensor([1.0, 0.0])))
    with counted(fake.transformer) as calls:
        found = route(replace(prepared, scene=scene), fake)
        sample(prepared, found, fake)
    assert len(calls) == 8
    for given in calls.given:
        forced = given["mask_override"]
        assert torch.equal(forced[0, 0], masks[0]) and given["mask_override_strength"][0, :, 0, 0, 0].tolist() == [
            1.0,
            0.0,
        ]
    assert torch.equal(found.masks[0], masks[0]) and not torch.equal(found.masks[1], masks[1])


def test_manual_masks_alone(fake, prepared):
    masks = resize_masks(left_right(64, 96), prepared.grid, 2)
    scene = replace(prepared.scene, routing=RouterConfig(mode="manual"), mask_control=MaskControl(masks))
    with counted(fake.transformer) as calls:
        found = route(replace(prepared, scene=scene), fake)
    assert len(calls) == 0 and found.state is None and (found.control.strength == 1).all() and found.origin == "manual"
    video = sample(prepared, found, fake)
    assert torch.equal(video.masks, masks)


def test_masks_for_a_run_that_has_begun_can_start_over(fake, prepared):
    found = probe(prepared, fake, ProgressTracker())
    edited = found.with_masks(found.masks.flip(0))
    with counted(fake.transformer) as calls:
        going_on = sample(prepared, edited, fake)
        assert len(calls) == 6
        calls.clear()
        anew = sample(prepared, edited.from_noise(), fake)
        assert len(calls) == 8 and all(given["mask_override"] is not None for given in calls.given)
    assert not torch.equal(going_on.frames, anew.frames)


# --- what forced masks do to a video of the shipped model

needs_toy = pytest.mark.skipif(not MODELS["toy"].available, reason="the toy model's weights are not here")


class Exchanged:
    """Two people talking, made with the true masks, with those of left and right exchanged, and so only at the end."""

    def __init__(self) -> None:
        bundle = load_bundle("toy")
        self.clip = two_puppets(VALIDATION + 5, 17)
        prepared = prepare(puppet_scene(bundle, self.clip, 6, first_frame=False), bundle)
        own = prepared.grid.pixels_to_tokens(torch.from_numpy(self.clip.masks))
        true = Routing.of("manual", own, torch.eye(2), strength=1.0)
        left_alone = Routing.of("manual", own, torch.eye(2), strength=0.0)

        def made(routing: Routing) -> np.ndarray:
            return sample(prepared, routing, bundle).frames.numpy()

        self.own, self.swapped = made(true), made(true.with_masks(own.flip(0)))
        self.router = made(left_alone)
        self.late = made(left_alone.override(MaskControl(own.flip(0), start_percent=torch.tensor(0.8))))
        self.early = made(left_alone.override(MaskControl(own.flip(0))))

    def mouths(self, frames: np.ndarray) -> np.ndarray:
        """Correlation of the mouth at each place with each voice, [2, 2]."""
        clip = self.clip
        loud = np.stack([loudness_track(speech, SAMPLE_RATE, frames.shape[0], 25) for speech in clip.speeches])
        return correlations(mouth_opening(frames, clip.masks, MOUTH_RGB), loud)

    def looks(self, frames: np.ndarray) -> np.ndarray:
        """Distance of the mean colour at each place from that of each portrait, [2, 2]."""
        seen = np.stack([frames[mask].mean(0) for mask in self.clip.masks])
        meant = np.stack([portrait[(portrait < 240).any(-1)].mean(0) for portrait in self.clip.portraits])
        return np.linalg.norm(seen[:, None] - meant[None], axis=-1)


@pytest.fixture(scope="module")
def exchanged() -> Exchanged:
    return Exchanged()


@needs_toy
def test_exchanged_masks_exchange_voices(exchanged):
    own, swapped = exchanged.mouths(exchanged.own), exchanged.mouths(exchanged.swapped)
    for place in (0, 1):
        assert own[place, place] > own[place, 1 - place] + 0.4
        assert swapped[place, 1 - place] > swapped[place, place] + 0.4


@needs_toy
def test_exchanged_masks_exchange_faces(exchanged):
    own, swapped = exchanged.looks(exchanged.own), exchanged.looks(exchanged.swapped)
    for place in (0, 1):
        assert own[place, place] < own[place, 1 - place] / 2
        assert swapped[place, 1 - place] < swapped[place, place] / 2


@needs_toy
def test_masks_forced_late_change_less(exchanged):
    router = exchanged.router.astype(float)
    late, early = (np.abs(frames - router).mean() for frames in (exchanged.late, exchanged.early))
    assert 0 < late < early / 2
