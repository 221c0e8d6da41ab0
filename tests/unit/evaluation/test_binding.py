"""Binding of mouths to speech, and mask metrics, on cases with known results."""

from __future__ import annotations

import numpy as np
import pytest

from bya_core.evaluation import binding, mask_metrics
from bya_core.toy.mouth import in_view


def box(left: int, right: int, frames: int = 3) -> np.ndarray:
    mask = np.zeros((frames, 8, 12), dtype=bool)
    mask[:, :, left:right] = True
    return mask


def tracks(count: int, seed: int = 0, frames: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).random((count, frames))


def test_iou() -> None:
    assert mask_metrics.iou(box(0, 4), box(2, 6)) == pytest.approx(2 / 6)
    assert mask_metrics.mean_iou(box(0, 4).astype(float), box(0, 4)) == 1.0
    assert np.isnan(mask_metrics.iou(box(0, 0), box(0, 0))).all()
    pair = np.stack([box(0, 0), box(0, 4)])
    assert mask_metrics.mean_iou(pair, pair) == 1.0, "empty masks are ignored"
    assert np.isnan(mask_metrics.mean_iou(box(0, 0), box(0, 0)))


def test_to_labels() -> None:
    soft = np.array([[[0.6, 0.4, 0.3]], [[0.3, 0.5, 0.2]]])
    assert mask_metrics.to_labels(soft).tolist() == [[[True, False, False]], [[False, True, False]]]


def test_swap_rate() -> None:
    truth = np.stack([box(0, 4), box(6, 10)])
    half = truth.copy()
    half[:, 0] = truth[::-1, 0]
    rates = [mask_metrics.swap_rate(masks, truth) for masks in (truth, truth[::-1], half)]
    assert rates == pytest.approx([0, 1, 1 / 3])


def test_flicker_and_change() -> None:
    still = np.stack([box(0, 4)])
    jumping = still.copy()
    jumping[0, 1] = box(4, 8)[0]
    assert [mask_metrics.flicker(masks) for masks in (still, jumping, still[:, :1])] == pytest.approx([0, 1, 0])
    soft = np.zeros((2, 3, 2, 2))
    soft[0, 1], soft[1, :, 0, 0] = 0.5, [0.0, 0.4, 1.0]
    assert mask_metrics.change(soft) == pytest.approx([0.5, (0.4 + 0.6) / 2 / 4])
    assert (mask_metrics.change(soft[:, :1]) == 0).all()


def test_correlations() -> None:
    speech = tracks(3)
    assert np.allclose(np.diag(binding.correlations(3.0 * speech + 2.0, speech)), 1.0)
    late = np.roll(speech, 2, axis=1)
    assert np.diag(binding.correlations(late, speech)).max() < 0.7
    assert np.allclose(np.diag(binding.correlations(late, speech, max_lag=2)), 1.0)
    assert not binding.correlations(np.ones((2, 40)), speech).any()


def test_lagged_finds_the_delay() -> None:
    speech = tracks(2, frames=60)
    late = np.roll(speech, 5, axis=1)
    table = binding.lagged(late, speech, 8)
    assert table.shape == (2, 2, 17) and (np.diagonal(table.argmax(axis=2)) == 8 + 5).all()
    assert np.allclose(table.max(axis=2), binding.correlations(late, speech, max_lag=8))


def test_local_correlations() -> None:
    speech = tracks(2, frames=60)
    mouths = speech.copy()
    mouths[:, 30:] = speech[::-1, 30:]  # swapped in the second half
    local = binding.local_correlations(mouths, speech, 15)
    assert local.shape == (2, 2, 60)
    assert (local[0, 0, :20] > 0.99).all() and (local[0, 1, 40:] > 0.99).all() and abs(local[0, 0, 45:].mean()) < 0.6
    assert local[0, 1, 20] == pytest.approx(np.corrcoef(mouths[0, 13:28], speech[1, 13:28])[0, 1])
    assert not binding.local_correlations(mouths[:, :2], speech[:, :2], 15, max_lag=2).any(), "too short"


def test_frames_with_hidden_mouths_are_ignored() -> None:
    speech = tracks(2)
    hidden = np.zeros((2, 40), bool)
    hidden[0, 10:25] = True
    opening = np.where(hidden, speech[::-1], speech)
    regions = np.zeros((2, 40, 4, 4), bool)
    regions[~hidden] = True
    regions[hidden, :1] = True  # a quarter of the character is visible
    visible = in_view(regions)
    assert np.array_equal(visible, ~hidden)
    assert np.diag(binding.bind(opening, speech, visible=visible).correlation) == pytest.approx(1.0)
    assert binding.bind(opening, speech).correlation[0, 0] < 0.9
    regions[0, 5:] = False
    assert in_view(regions)[0].all(), "with too few visible frames, all are used"


def test_bind_own_swapped_and_random() -> None:
    speech = tracks(2)
    own = binding.bind(speech, speech)
    assert own.correct.all() and own.judged.all()
    assert not binding.bind(speech[::-1], speech).correct.any()
    assert binding.bind(speech[::-1], speech, target=np.array([1, 0])).correct.all()
    score = binding.score(binding.bind(tracks(2, seed), tracks(2, 1000 + seed)) for seed in range(400))
    assert score.chance == 0.5 and score.judged == 800 and score.accuracy < 0.56
    assert np.isnan(binding.score([]).accuracy)


def test_silent_and_single_streams_are_not_judged() -> None:
    speech = tracks(2)
    speech[1] = 0.0
    result = binding.bind(speech, speech)
    assert result.judged.tolist() == [True, False] and result.correct[0]
    assert not binding.bind(np.zeros((2, 40)), speech).correct[0], "a still mouth follows no stream"
    assert not binding.bind(speech[:1], speech[:1]).judged.any()
    assert not binding.bind(speech, speech, np.array([-1, -1])).judged.any()


def test_stillness() -> None:
    speech = tracks(2)
    speech[1] = 0.0
    assert binding.stillness(speech, speech) == pytest.approx(1.0)
    assert binding.stillness(np.stack([speech[0], speech[0]]), speech) == pytest.approx(0.0)
    assert binding.stillness(speech, speech, np.array([1, 0])) < -10
    assert np.isnan(binding.stillness(tracks(2), tracks(2)))


def test_targets_of() -> None:
    assert binding.targets_of(np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])).tolist() == [1, 0, -1]
