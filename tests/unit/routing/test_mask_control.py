"""Mask control: resizing, strength and range per character, and its effect on videos of the toy model."""

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
from bya_core.masks import MaskControl, blend_masks
from bya_core.pipelines.generate import prepare, sample
from bya_core.progress import ProgressTracker
from bya_core.routing import Routing
from bya_core.routing.intra import probe
from bya_core.routing.route import route
from bya_core.scene.mask_files import resize_masks
from bya_core.toy.mouth import mouth_opening
from bya_core.weights.loader import load_bundle
from tests.fakes import fake_bundle
from tests.unit.routing.calls import record_calls
from tests.unit.routing.puppet_scene import VALIDATION, needs_toy, puppet_scene, two_puppets
from training.puppets import MOUTH_RGB
from training.puppets.world import SAMPLE_RATE

GRID = TokenGrid(3, 4, 6)  # of 9 frames, 64 x 96 pixels


def left_right(height: int, width: int) -> torch.Tensor:
    """Masks of the left and right half [2, height, width]."""
    masks = torch.zeros(2, height, width)
    masks[0, :, : width // 2], masks[1, :, width // 2 :] = 1, 1
    return masks


@pytest.mark.parametrize("size", [(4, 6), (64, 96), (480, 720), (50, 70), (2, 2)])
@pytest.mark.parametrize("frames", [None, 1, 3, 9])
def test_resize_masks(size, frames):
    masks = left_right(*size)
    if frames is not None:
        masks = masks[:, None].expand(2, frames, *size)
    assert torch.allclose(resize_masks(masks, GRID, 2), left_right(4, 6)[:, None].expand(2, 3, 4, 6))


def test_resize_masks_averages_area_and_frames():
    masks = torch.zeros(1, 64, 96)
    masks[0, :16, :4] = 1  # a quarter of the first token
    tokens = resize_masks(masks, GRID, 1)
    assert torch.allclose(tokens[0, :, 0, 0], torch.full((3,), 0.25)) and tokens.sum() == pytest.approx(0.75)
    video = torch.zeros(1, 9, 64, 96)
    video[:, 1:3] = 1  # two of the four video frames of latent frame 1
    assert resize_masks(video, GRID, 1)[0, :, 0, 0].tolist() == [0.0, 0.5, 0.0]
    latent = torch.eye(3)[2].view(1, 3, 1, 1).expand(1, 3, 64, 96)  # the last of three latent frames
    assert resize_masks(latent, GRID, 1)[0, :, 0, 0].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "masks",
    [
        torch.zeros(3, 64, 96),  # one mask too many
        torch.zeros(2, 5, 64, 96),  # neither 3 latent nor 9 video frames
        torch.zeros(64, 96),
        torch.zeros(2, 0, 64, 96),
        torch.full((2, 64, 96), 255.0),
        torch.full((2, 64, 96), torch.nan),
    ],
)
def test_invalid_masks_raise(masks):
    with pytest.raises(InputError, match="^the masks"):
        resize_masks(masks, GRID, 2)


@pytest.fixture
def predicted() -> Routing:
    return Routing.of("intra", torch.rand(2, *GRID.shape), torch.eye(2), strength=0.0)


def used_masks(routing: Routing, router: torch.Tensor, conditions, step: int = 0, total: int = 10) -> torch.Tensor:
    """Masks that the transformer uses where its router predicts `router`."""
    override = routing.apply_to(conditions).mask_override(step, total)
    if override["mask_override"] is None:
        return router
    return blend_masks(router[None], override["mask_override"], override["mask_override_strength"])[0]


@pytest.fixture(scope="module")
def fake():
    return fake_bundle()


@pytest.fixture(scope="module")
def prepared(fake):
    scene = puppet_scene(fake, two_puppets(), 8)
    return prepare(replace(scene, routing=RouterConfig(probe=ProbeConfig(steps=2))), fake)


def test_strength_and_range_per_character(predicted, prepared):
    given, router = torch.rand_like(predicted.masks), torch.rand_like(predicted.masks)
    strength, start, end = torch.tensor([0.25, 1.0]), torch.tensor([0.0, 0.3]), torch.tensor([1.0, 0.6])
    routing = predicted.override(MaskControl(given, strength, start, end))
    for step in range(10):
        masks = used_masks(routing, router, prepared.conditions, step)
        assert torch.allclose(masks[0], 0.75 * router[0] + 0.25 * given[0])
        assert torch.allclose(masks[1], given[1] if 3 <= step < 6 else router[1]), step


def test_strength_zero_changes_nothing(predicted, prepared):
    routing = predicted.override(MaskControl(torch.rand_like(predicted.masks), torch.tensor(0.0)))
    assert torch.equal(routing.masks, predicted.masks) and not routing.control.is_active
    assert routing.apply_to(prepared.conditions).mask_control is None


@pytest.mark.parametrize("first", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("second", [0.0, 0.6, 1.0])
def test_overrides_are_combined(predicted, prepared, first, second):
    one, two, router = (torch.rand_like(predicted.masks) for _ in range(3))
    routing = predicted.override(MaskControl(one, torch.tensor(first))).override(MaskControl(two, torch.tensor(second)))
    before = (1 - first) * router + first * one
    expected = (1 - second) * before + second * two
    assert torch.allclose(used_masks(routing, router, prepared.conditions), expected, atol=1e-6)


def test_override_of_acting_masks(predicted):
    given = torch.rand_like(predicted.masks)
    acting = predicted.with_masks(predicted.masks)
    routing = acting.override(MaskControl(given, torch.tensor([0.5, 0.0])))
    assert torch.allclose(routing.masks[0], (predicted.masks[0] + given[0]) / 2)
    assert torch.equal(routing.masks[1], predicted.masks[1]) and (routing.control.strength == 1).all()


def test_static(predicted):
    masks = predicted.static().masks
    assert torch.equal(masks[:, 0], predicted.masks.amax(1)) and torch.equal(masks[:, 0], masks[:, 2])
    assert (predicted.static().control.strength == 1).all()


def test_override_of_other_shape_raises(predicted):
    with pytest.raises(InputError, match="masks of shape"):
        predicted.override(MaskControl(torch.zeros(2, 3, 4, 5)))


def test_mask_control_acts_from_the_first_step_of_the_probe(fake, prepared):
    masks = resize_masks(left_right(64, 96), prepared.grid, 2)
    scene = replace(prepared.scene, mask_control=MaskControl(masks, torch.tensor([1.0, 0.0])))
    with record_calls(fake.transformer) as calls:
        routing = route(replace(prepared, scene=scene), fake)
        sample(prepared, routing, fake)
    assert len(calls) == 8
    for call in calls.kwargs:
        assert torch.equal(call["mask_override"][0, 0], masks[0])
        assert call["mask_override_strength"][0, :, 0, 0, 0].tolist() == [1.0, 0.0]
    assert torch.equal(routing.masks[0], masks[0]) and not torch.equal(routing.masks[1], masks[1])


def test_manual_mode(fake, prepared):
    masks = resize_masks(left_right(64, 96), prepared.grid, 2)
    scene = replace(prepared.scene, routing=RouterConfig(mode="manual"), mask_control=MaskControl(masks))
    with record_calls(fake.transformer) as calls:
        routing = route(replace(prepared, scene=scene), fake)
    assert len(calls) == 0 and routing.state is None and routing.origin == "manual"
    assert (routing.control.strength == 1).all() and torch.equal(sample(prepared, routing, fake).masks, masks)


def test_edited_masks_resume_or_start_from_noise(fake, prepared):
    routing = probe(prepared, fake, ProgressTracker())
    edited = routing.with_masks(routing.masks.flip(0))
    with record_calls(fake.transformer) as calls:
        resumed = sample(prepared, edited, fake)
        assert len(calls) == 6
        calls.clear()
        restarted = sample(prepared, edited.from_noise(), fake)
        assert len(calls) == 8 and all(call["mask_override"] is not None for call in calls.kwargs)
    assert not torch.equal(resumed.frames, restarted.frames)


class Swapped:
    """Videos with the true masks, with both masks swapped, with the router's, and swapped from 80 % of the run on."""

    def __init__(self) -> None:
        bundle = load_bundle("toy")
        self.clip = two_puppets(VALIDATION + 5, 17)
        prepared = prepare(puppet_scene(bundle, self.clip, 6, first_frame=False), bundle)
        masks = prepared.grid.pixels_to_tokens(torch.from_numpy(self.clip.masks))
        intra = Routing.of("intra", masks, torch.eye(2), strength=0.0)

        def video(routing: Routing) -> np.ndarray:
            return sample(prepared, routing, bundle).frames.numpy()

        self.true, self.swapped = video(intra.with_masks(masks)), video(intra.with_masks(masks.flip(0)))
        self.router = video(intra)
        self.late = video(intra.override(MaskControl(masks.flip(0), start_percent=torch.tensor(0.8))))

    def mouths(self, frames: np.ndarray) -> np.ndarray:
        """Correlation of the mouth in each mask with each speech stream, [2, 2]."""
        clip = self.clip
        loudness = np.stack([loudness_track(speech, SAMPLE_RATE, frames.shape[0], 25) for speech in clip.speeches])
        return correlations(mouth_opening(frames, clip.masks, MOUTH_RGB), loudness)

    def color_distances(self, frames: np.ndarray) -> np.ndarray:
        """Distance of the mean color in each mask from that of each portrait, [2, 2]."""
        seen = np.stack([frames[mask].mean(0) for mask in self.clip.masks])
        expected = np.stack([portrait[(portrait < 240).any(-1)].mean(0) for portrait in self.clip.portraits])
        return np.linalg.norm(seen[:, None] - expected[None], axis=-1)


@pytest.fixture(scope="module")
def videos() -> Swapped:
    return Swapped()


@needs_toy
def test_swapped_masks_swap_speech_and_faces(videos):
    true, swapped = videos.mouths(videos.true), videos.mouths(videos.swapped)
    true_colors, swapped_colors = videos.color_distances(videos.true), videos.color_distances(videos.swapped)
    for n in (0, 1):
        assert true[n, n] > true[n, 1 - n] + 0.4 and swapped[n, 1 - n] > swapped[n, n] + 0.4
        assert true_colors[n, n] < true_colors[n, 1 - n] / 2 and swapped_colors[n, 1 - n] < swapped_colors[n, n] / 2


@needs_toy
def test_late_masks_change_less(videos):
    late, whole = (np.abs(frames - videos.router.astype(float)).mean() for frames in (videos.late, videos.swapped))
    assert 0 < late < whole / 2
