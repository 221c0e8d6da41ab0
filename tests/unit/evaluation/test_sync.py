"""Lip sync metrics against the reference definitions, and SyncNet against recorded values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bya_core.errors import InputError
from bya_core.evaluation.sync_metrics import CrossTalk, crosstalk, shifted_distances, sync_of
from bya_core.evaluation.syncnet import SyncEmbedder, SyncNet, mfcc, windows
from tests.parity.weight_rule import weight


def with_fixed_weights(network: torch.nn.Module, salt: str) -> torch.nn.Module:
    """The network with weights derived from the parameter names."""
    weights = {}
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            weights[name] = value
        elif name.endswith("running_var"):
            weights[name] = weight(name, tuple(value.shape), salt).abs() + 0.5
        else:
            weights[name] = weight(name, tuple(value.shape), salt)
    network.load_state_dict(weights)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return with_fixed_weights(SyncNet(), "sync")


def embeddings(seed: int, frames: int = 44, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(frames, width)).astype(np.float32)


def distances(lips: np.ndarray, voices: np.ndarray) -> np.ndarray:
    return np.stack([[shifted_distances(face, voice) for voice in voices] for face in lips])


@pytest.mark.parametrize("samples", [100, 400, 401, 640, 16_000, 31_360])
def test_mfcc_matches_python_speech_features(samples: int) -> None:
    library = pytest.importorskip("python_speech_features")
    wave = np.random.default_rng(samples).normal(0, 3000, samples).astype(np.int16)
    assert np.array_equal(mfcc(wave), library.mfcc(wave, 16_000))
    assert np.array_equal(mfcc(np.zeros(samples)), library.mfcc(np.zeros(samples), 16_000))


def test_syncnet_matches_the_reference(network: SyncNet) -> None:
    """Values of the published network definition with the same weights."""
    assert len(network.state_dict()) == 102 and sum(p.numel() for p in network.parameters()) == 13_631_616
    frames = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (2, 3, 5, 224, 224)).astype("float32"))
    cepstra = torch.from_numpy(np.random.default_rng(1).normal(0, 5, (2, 1, 13, 20)).astype("float32"))
    with torch.inference_mode():
        lips, speech = network.lips(frames), network.speech(cepstra)
    expected = torch.tensor([[-38.42635, 69.24467, -241.36218], [-80.59555, 137.72551, -213.14676]])
    torch.testing.assert_close(lips[:, :3], expected, rtol=1e-3, atol=0.1)
    expected = torch.tensor([[-3.96513, -3.02822, 1.26782], [-3.05267, -5.12131, 2.60657]])
    torch.testing.assert_close(speech[:, :3], expected, rtol=1e-3, atol=1e-3)


def test_windows_of_a_clip(network: SyncNet, tmp_path: Path) -> None:
    torch.save(network.state_dict(), tmp_path / "syncnet_v2.model")
    embedder = SyncEmbedder(tmp_path / "syncnet_v2.model", batch=3)
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (9, 224, 224, 3), dtype=np.uint8)
    wave = rng.normal(0, 0.1, 9 * 640)
    lips, voice = embedder.lips(crops), embedder.voice(wave, 9)
    assert lips.shape == voice.shape == (4, 1024)
    cepstra = mfcc(np.round(wave * 32768)).astype(np.float32)
    with torch.inference_mode():
        window = torch.from_numpy(crops[3:8, :, :, ::-1].copy()).permute(3, 0, 1, 2)[None].float()
        assert np.allclose(lips[3], network.lips(window)[0].numpy(), rtol=1e-4, atol=1e-2)
        columns = torch.from_numpy(cepstra[12:32].T.copy())[None, None]
        assert np.allclose(voice[3], network.speech(columns)[0].numpy(), rtol=1e-4, atol=1e-3)
    assert embedder.voice(wave[:300], 9).shape == (4, 1024), "short speech is padded with silence"
    assert windows(49) == 44
    with pytest.raises(InputError, match="longer clip"):
        windows(5)
    torch.save({"netfclip.0.weight": torch.zeros(1)}, tmp_path / "broken.model")
    with pytest.raises(InputError, match="SyncNet"):
        SyncEmbedder(tmp_path / "broken.model")


def test_distances_match_the_reference() -> None:
    lips, voice = embeddings(0), embeddings(1)
    padded = F.pad(torch.from_numpy(voice), (0, 0, 15, 15))
    rows = [F.pairwise_distance(torch.from_numpy(lips[[v]]).repeat(31, 1), padded[v : v + 31]) for v in range(44)]
    expected = torch.stack(rows)
    table = shifted_distances(lips, voice)
    assert np.allclose(table, expected.numpy(), atol=1e-5)
    score, curve = sync_of(table), expected.mean(0)
    assert score.distance == pytest.approx(float(curve.min()), abs=1e-5)
    assert score.confidence == pytest.approx(float(curve.median() - curve.min()), abs=1e-5)
    assert score.offset == 15 - int(curve.argmin())


@pytest.mark.parametrize("frames", [0, 5, -5])
def test_offset(frames: int) -> None:
    voice = embeddings(3, 60)
    lips = voice[8:52] + 0.1 * embeddings(4)
    sync = sync_of(shifted_distances(lips, voice[8 - frames : 52 - frames]))
    assert sync.offset == -frames and sync.confidence > 1.0


def test_crosstalk() -> None:
    voices = np.stack([embeddings(0), embeddings(1)])
    lips = voices + 0.2 * np.stack([embeddings(2), embeddings(3)])

    def judge(lips: np.ndarray, **options: np.ndarray) -> CrossTalk:
        return crosstalk(distances(lips, voices), [0, 1], **options)

    own, swapped = judge(lips), judge(lips[::-1])
    assert own.correct.all() and not own.failing and (own.margin > 1).all() and (np.diag(own.offset) == 0).all()
    assert not swapped.correct.any() and {(span.character, span.rival) for span in swapped.failing} == {(0, 1), (1, 0)}
    assert sum(span.end - span.start for span in swapped.failing) == pytest.approx(2 * 44 / 25, abs=0.3)
    half = lips.copy()
    half[:, 30:] = lips[::-1, 30:]
    spans = judge(half, width=np.int64(9)).failing
    assert spans and min(span.start for span in spans) > 0.9 and max(span.end for span in spans) == 44 / 25
    silent = np.zeros((2, 44), dtype=bool)
    assert not judge(lips[::-1], audible=silent).failing, "a silent voice cannot be followed"
    alone = crosstalk(distances(lips[:1], voices[:1]), [0])
    assert np.isnan(alone.margin).all() and alone.confidence.shape == (1, 1)


def test_unrelated_faces_are_at_chance() -> None:
    correct = [
        crosstalk(distances(*(np.stack([embeddings(k + s), embeddings(k + s + 1)]) for k in (0, 500))), [0, 1]).correct
        for s in range(0, 120, 4)
    ]
    assert 0.25 < np.mean(correct) < 0.75
