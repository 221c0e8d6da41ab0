"""Metrics on cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from bya_core.errors import InputError
from bya_core.evaluation import binding, identity
from bya_core.evaluation import mask_metrics as masks
from bya_core.io import color as colour
from bya_core.io import loudness
from bya_core.toy import mouth
from bya_core.toy.segmentation import foreground, segment_characters


def box(left: int, right: int, frames: int = 3) -> np.ndarray:
    mask = np.zeros((frames, 8, 12), dtype=bool)
    mask[:, :, left:right] = True
    return mask


def test_iou_of_halves():
    assert masks.iou(box(0, 4), box(2, 6)) == pytest.approx(2 / 6)
    assert masks.mean_iou(box(0, 4).astype(float), box(0, 4)) == 1.0
    assert np.isnan(masks.iou(box(0, 0), box(0, 0))).all()
    assert masks.mean_iou(np.stack([box(0, 0), box(0, 4)]), np.stack([box(0, 0), box(0, 4)])) == 1.0
    assert np.isnan(masks.mean_iou(box(0, 0), box(0, 0)))


def test_labels_have_one_owner_and_room_for_nobody():
    soft = np.array([[[0.6, 0.4, 0.3]], [[0.3, 0.5, 0.2]]])
    assert masks.to_labels(soft).tolist() == [[[True, False, False]], [[False, True, False]]]


def test_swapped_masks_are_seen():
    truth = np.stack([box(0, 4), box(6, 10)])
    assert masks.swap_rate(truth, truth) == 0.0
    assert masks.swap_rate(truth[::-1], truth) == 1.0
    half = truth.copy()
    half[:, 0] = truth[::-1, 0]
    assert masks.swap_rate(half, truth) == pytest.approx(1 / 3)


def test_flicker():
    still = np.stack([box(0, 4)])
    assert masks.flicker(still) == 0.0
    jumping = still.copy()
    jumping[0, 1] = box(4, 8)[0]
    assert masks.flicker(jumping) == pytest.approx(1.0)
    assert masks.flicker(still[:, :1]) == 0.0


def tracks(count: int, seed: int = 0, frames: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).random((count, frames))


def test_correlation_knows_itself_and_its_lag():
    speech = tracks(3)
    assert np.allclose(np.diag(binding.correlations(3.0 * speech + 2.0, speech)), 1.0)
    late = np.roll(speech, 2, axis=1)
    assert np.diag(binding.correlations(late, speech)).max() < 0.7
    assert np.allclose(np.diag(binding.correlations(late, speech, max_lag=2)), 1.0)
    assert not binding.correlations(np.ones((2, 40)), speech).any()


def test_a_hidden_mouth_says_nothing():
    speech = tracks(2)
    hidden = np.zeros((2, 40), bool)
    hidden[0, 10:25] = True
    opening = np.where(hidden, speech[::-1], speech)  # while hidden, what is seen belongs to the other one
    shown = np.zeros((2, 40, 4, 4), bool)
    shown[~hidden] = True
    shown[hidden, :1] = True  # a quarter of the body looks out
    seen = mouth.in_view(shown)
    assert np.array_equal(seen, ~hidden)
    found = binding.bind(opening, speech, visible=seen).correlation
    assert found[0, 0] == pytest.approx(1.0) and found[1, 1] == pytest.approx(1.0)
    assert binding.bind(opening, speech).correlation[0, 0] < 0.9
    shown[0, 5:] = False  # almost always away: all frames count, so there is no way out
    assert mouth.in_view(shown)[0].all()


def test_lags_and_moments():
    speech = tracks(2, frames=60)
    every = binding.lagged(np.roll(speech, 5, axis=1), speech, 8)
    assert every.shape == (2, 2, 17) and (np.diagonal(every.argmax(axis=2)) == 8 + 5).all(), "5 frames late"
    assert np.allclose(every.max(axis=2), binding.correlations(np.roll(speech, 5, axis=1), speech, max_lag=8))
    mouths = speech.copy()
    mouths[:, 30:] = speech[::-1, 30:]  # bound at first, swapped from the middle on
    local = binding.local_correlations(mouths, speech, 15)
    assert local.shape == (2, 2, 60)
    assert (local[0, 0, :20] > 0.99).all() and (local[0, 1, 40:] > 0.99).all() and abs(local[0, 0, 45:].mean()) < 0.6
    window = np.corrcoef(mouths[0, 13:28], speech[1, 13:28])[0, 1]
    assert local[0, 1, 20] == pytest.approx(window)
    assert not binding.local_correlations(mouths[:, :2], speech[:, :2], 15, max_lag=2).any(), "too short"


def test_binding_right_swapped_and_at_chance():
    speech = tracks(2)
    right = binding.bind(speech, speech)
    assert right.correct.all() and right.judged.all()
    swapped = binding.bind(speech[::-1], speech)
    assert not swapped.correct.any()
    assert binding.bind(speech[::-1], speech, target=np.array([1, 0])).correct.all()
    guesses = binding.score(binding.bind(tracks(2, seed), tracks(2, 1000 + seed)) for seed in range(400))
    assert guesses.chance == 0.5 and guesses.judged == 800
    assert guesses.accuracy < 0.56


def test_silence_and_soliloquies_are_not_judged():
    speech = tracks(2)
    speech[1] = 0.0
    result = binding.bind(speech, speech)
    assert result.judged.tolist() == [True, False] and result.correct[0]
    still_mouth = binding.bind(np.zeros((2, 40)), speech)
    assert not still_mouth.correct[0]
    assert not binding.bind(speech[:1], speech[:1]).judged.any()
    assert np.isnan(binding.score([]).accuracy)
    assert not binding.bind(speech, speech, np.array([-1, -1])).judged.any()


def test_stillness_of_listeners():
    speech = tracks(2)
    speech[1] = 0.0
    assert binding.stillness(speech, speech) == pytest.approx(1.0)
    assert binding.stillness(np.stack([speech[0], speech[0]]), speech) == pytest.approx(0.0)
    assert binding.stillness(speech, speech, np.array([1, 0])) < -10
    assert np.isnan(binding.stillness(tracks(2), tracks(2)))


def test_targets_of_a_matrix():
    matrix = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert binding.targets_of(matrix).tolist() == [1, 0, -1]


def test_mouth_opening_counts_its_colour_in_its_own_region():
    inside = (0.2, 0.01, 0.07)
    frames = np.full((3, 8, 12, 3), 0.8, dtype=np.float32)
    frames[1, 2:4, 1:3] = inside
    frames[2, 2:6, 1:3] = inside
    frames[2, 2:6, 9:11] = np.array(inside) + np.array([0.15, 0.0, 0.0])
    opening = mouth.mouth_opening(frames, np.stack([box(0, 6), box(6, 12)]), inside)
    assert opening[0] == pytest.approx([0.0, 4 / 48, 8 / 48])
    assert opening[1] == pytest.approx([0.0, 0.0, 4 / 48], rel=0.01)


def test_loudness():
    wave = np.zeros(16000)
    wave[8000:] = 1.0
    track = loudness.loudness_track(wave, 16000, 25)
    assert track[:12] == pytest.approx(np.zeros(12)) and track[14:] == pytest.approx(np.ones(11))
    assert loudness.loudness_track(np.stack([wave, -wave]), 16000, 25).max() == 0.0
    assert loudness.loudness_track(wave, 16000, 50)[30:].max() == 0.0


def test_lab_of_known_colours():
    known = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 0, 255]], dtype=np.uint8)
    expected = [[100, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    assert np.allclose(colour.lab(known), expected, atol=0.3)


def test_histograms_sum_to_one_and_weights_count():
    colours = colour.lab(np.random.default_rng(0).random((50, 3)))
    assert colour.histogram(colours).sum() == pytest.approx(1.0)
    weights = np.zeros(50)
    weights[7] = 1.0
    one = colour.histogram(colours, weights)
    assert one.argmax() == colour.lab_bins(colours[7])


def test_nearest_identity():
    rng = np.random.default_rng(1)
    people = rng.random((8, 1, 1, 3)) * np.ones((8, 6, 6, 3))
    everywhere = np.ones((6, 6), dtype=bool)
    references = np.stack([colour.color_descriptor(p, everywhere) for p in people])
    for k in range(8):
        seen = colour.color_descriptor(np.clip(people[k] + rng.normal(0, 0.02, (6, 6, 3)), 0, 1), everywhere)
        assert identity.nearest(colour.histogram_similarity(seen, references)) == k
    vectors = rng.normal(size=(8, 16))
    assert identity.nearest(identity.cosine_similarity(3.0 * vectors[5] + 0.1, vectors)) == 5


def two_people() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frames, portraits and masks of two plain figures whose hair has the same colour."""
    skins, hair, wall = ([0.9, 0.6, 0.5], [0.3, 0.7, 0.4]), [0.35, 0.2, 0.1], [0.5, 0.6, 0.8]
    frames = np.tile(np.array(wall), (5, 64, 96, 1))
    truth = np.zeros((2, 5, 64, 96), dtype=bool)
    portraits = np.ones((2, 48, 48, 3))
    for n, skin in enumerate(skins):
        for f in range(5):
            left = 8 + 48 * n + 2 * f
            frames[f, 20:64, left : left + 24] = skin
            frames[f, 12:26, left : left + 24] = hair
            truth[n, f, 12:64, left : left + 24] = True
        portraits[n, 16:48, 12:36] = np.array(skin) * 0.9
        portraits[n, 8:20, 12:36] = np.array(hair) * 0.9
    noise = np.random.default_rng(0).normal(0, 0.02, frames.shape)
    return np.clip(frames + noise, 0, 1), portraits, truth


def test_people_are_found_by_their_colours():
    frames, portraits, truth = two_people()
    found = segment_characters(frames, portraits)
    assert masks.mean_iou(found, truth) > 0.9
    assert not (found[0] & found[1]).any()
    known = segment_characters((frames * 255).astype(np.uint8), portraits, first_masks=truth[:, 0])
    assert masks.mean_iou(known, truth) > 0.9


def test_foreground_keeps_white_eyes():
    _, portraits, _ = two_people()
    portraits[0, 24:28, 20:24] = 1.0
    assert foreground(portraits[0])[26, 22] and not foreground(portraits[0])[2, 2]


def test_wrong_shapes_are_told():
    with pytest.raises(InputError, match="portraits"):
        segment_characters(np.zeros((8, 8, 3)), np.zeros((2, 8, 8, 3)))
