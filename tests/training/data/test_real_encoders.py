"""Clips through the released encoder classes (T5, wav2vec2, CogVideoX VAE) with small random weights."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from tests.unit.weights.test_official import folder, text  # noqa: F401 - fixtures
from training.data.dataset import open_data
from training.data.encode import load_encoders


def test_released_encoders_work_without_the_transformer(
    folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "bya_core.weights.official.load_released", lambda *_: pytest.fail("the transformer is not needed")
    )
    puppets = "puppets:n=2,clips=2,seed=2000000,frames=9"
    data = open_data(puppets, folder, cache=tmp_path / "features", canvas="released")
    first = list(islice(data.batches(1, 0), 2))
    assert first[0]["text"].shape == (1, 226, 32) and first[0]["speech"].shape == (1, 2, 9, 12, 48)
    assert first[0]["latents"].shape[:3] == (1, 2, 16) and first[0]["canvas"].shape == first[0]["first_frame"].shape
    cached = open_data(puppets, load_encoders(folder), cache=tmp_path / "features", canvas="released")
    for a, b in zip(first, cached.batches(1, 0), strict=False):
        assert all(torch.equal(a[name], b[name]) for name in a)
    # lazily loaded weights do not change the version, and cached text does not need T5
    assert not [name for name in cached.cache.counts if name.endswith("miss")]
    assert cached.encoder.encoders.text._model is None
    other = open_data(puppets, folder, cache=tmp_path / "features", canvas="row")
    next(other.batches(1, 0))
    assert [name for name in other.cache.counts if name.endswith("miss")] == ["canvas miss"]
