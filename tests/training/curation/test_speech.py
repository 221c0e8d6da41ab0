"""Lip sync filter and audio-character matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.curation.models import ModelChoice
from training.curation.record import Record
from training.curation.speech import Matrix, MatrixSettings, SyncFilter, SyncSettings


def compute_matrix(table, speeches, speaking):
    data = {"sync_table": table, "speaking": speaking, "context": [0, 50]}
    record = Record("film", "film", "clip", start=0, end=50, data=data)
    return Matrix(MatrixSettings())(record.with_arrays(speeches=speeches.astype(np.float32)))[0]


@pytest.mark.parametrize(
    ("table", "matrix"),
    [
        ([[8.0, 1.0], [0.5, 7.0]], [[1, 0], [0, 1]]),
        ([[1.0, 8.0], [7.0, 0.5]], [[0, 1], [1, 0]]),
        ([[4.0, 4.2], [4.1, 4.0]], [[1, 0], [0, 1]]),  # not better by the margin
    ],
)
def test_matrix_assigns_speeches_to_the_best_matching_faces(table, matrix):
    speeches = np.random.default_rng(0).standard_normal((2, 32_000))
    record = compute_matrix(table, speeches, [True, True])
    assert record.data["matrix"] == matrix and record.data["reassigned"] == (matrix[0][1] == 1)


def test_matrix_of_silent_and_duplicate_speeches():
    speech = np.random.default_rng(0).standard_normal(32_000)
    silent = compute_matrix([[None, None], [1.0, 6.0]], np.stack([0 * speech, speech]), [False, True])
    assert silent.data["matrix"] == [[1, 0], [0, 1]]
    duplicate = compute_matrix([[3.0, 8.0], [3.0, 8.5]], np.stack([speech, 0.9 * speech]), [True, True])
    assert duplicate.data["speaking"] == [False, True] and duplicate.data["duplicates"] == [[0, 1]]
    assert not duplicate.array("speeches")[0].any()


def test_syncnet(tmp_path, clip):
    from bya_core.evaluation.syncnet import SyncNet

    torch.manual_seed(0)
    torch.save(SyncNet().eval().state_dict(), tmp_path / "syncnet_v2.model")
    choice = ModelChoice("syncnet", {"weights": str(tmp_path / "syncnet_v2.model")})
    (result,) = SyncFilter(SyncSettings(choice, min_confidence=-1.0, max_side=240))(clip)
    table = np.array(result.data["sync_table"])
    assert table.shape == (2, 2) and np.isfinite(table).all() and (table >= 0).all()
    assert result.data["sync_mean"] == pytest.approx(table.diagonal().mean(), abs=1e-3)
    (rejected,) = SyncFilter(SyncSettings(choice, min_confidence=1e3, max_side=240))(clip)
    assert "lip sync too low" in rejected.rejected
