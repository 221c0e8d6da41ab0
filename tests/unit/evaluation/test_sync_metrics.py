"""Lip sync scores against the reference definition, cepstra against their library, networks against pinned figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bya_core.errors import InputError
from bya_core.evaluation import face_tracks as face_track
from bya_core.evaluation import sync_metrics as sync
from bya_core.evaluation.syncnet import SyncEmbedder, SyncNet, mfcc, windows
from tests.parity.weight_rule import weight


def ruled(network: torch.nn.Module, salt: str) -> torch.nn.Module:
    """A network with weights drawn by rule from their names."""
    table = {}
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            table[name] = value
        elif name.endswith("running_var"):
            table[name] = weight(name, tuple(value.shape), salt).abs() + 0.5
        else:
            table[name] = weight(name, tuple(value.shape), salt)
    network.load_state_dict(table)
    return network.eval()


@pytest.mark.parametrize("samples", [100, 400, 401, 640, 16_000, 31_360])
def test_cepstra_equal_those_of_the_library(samples):
    library = pytest.importorskip("python_speech_features")
    wave = np.random.default_rng(samples).normal(0, 3000, samples).astype(np.int16)
    assert np.array_equal(mfcc(wave), library.mfcc(wave, 16_000))
    assert np.array_equal(mfcc(np.zeros(samples)), library.mfcc(np.zeros(samples), 16_000))


def test_network_gives_what_the_reference_gives():
    """Figures of the published network definition with the same weights, made once beside it (difference 0)."""
    network = ruled(SyncNet(), "sync")
    assert len(network.state_dict()) == 102 and sum(p.numel() for p in network.parameters()) == 13_631_616
    lips = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (2, 3, 5, 224, 224)).astype("float32"))
    heard = torch.from_numpy(np.random.default_rng(1).normal(0, 5, (2, 1, 13, 20)).astype("float32"))
    with torch.inference_mode():
        seen, spoken = network.lips(lips), network.speech(heard)
    lip_figures = torch.tensor([[-38.42635, 69.24467, -241.36218], [-80.59555, 137.72551, -213.14676]])
    torch.testing.assert_close(seen[:, :3], lip_figures, rtol=1e-3, atol=0.1)
    speech_figures = torch.tensor([[-3.96513, -3.02822, 1.26782], [-3.05267, -5.12131, 2.60657]])
    torch.testing.assert_close(spoken[:, :3], speech_figures, rtol=1e-3, atol=1e-3)


def test_windows_of_a_clip_are_those_of_the_reference(tmp_path):
    network = ruled(SyncNet(), "sync")
    torch.save(network.state_dict(), tmp_path / "syncnet_v2.model")
    embedder = SyncEmbedder(tmp_path / "syncnet_v2.model", batch=3)
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (9, 224, 224, 3), dtype=np.uint8)
    wave = rng.normal(0, 0.1, 9 * 640)
    seen, heard = embedder.lips(crops), embedder.voice(wave, 9)
    assert seen.shape == heard.shape == (4, 1024)
    cepstra = mfcc(np.round(wave * 32768)).astype(np.float32)
    with torch.inference_mode():
        window = torch.from_numpy(crops[3:8, :, :, ::-1].copy()).permute(3, 0, 1, 2)[None].float()
        assert np.allclose(seen[3], network.lips(window)[0].numpy(), rtol=1e-4, atol=1e-2)
        column = torch.from_numpy(cepstra[12:32].T.copy())[None, None]
        assert np.allclose(heard[3], network.speech(column)[0].numpy(), rtol=1e-4, atol=1e-3)
    assert embedder.voice(wave[:300], 9).shape == (4, 1024), "speech that ends early is silence from there on"
    assert windows(49) == 44
    with pytest.raises(InputError, match="longer clip"):
        windows(5)
    with pytest.raises(InputError, match="SyncNet"):
        torch.save({"netfclip.0.weight": torch.zeros(1)}, tmp_path / "broken.model")
        SyncEmbedder(tmp_path / "broken.model")


def pair(seed: int, frames: int = 44, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(frames, width)).astype(np.float32)


def test_distances_are_those_of_the_reference():
    lips, voice = pair(0), pair(1)
    padded = torch.nn.functional.pad(torch.from_numpy(voice), (0, 0, 15, 15))
    expected = torch.stack(
        [
            torch.nn.functional.pairwise_distance(torch.from_numpy(lips[[v]]).repeat(31, 1), padded[v : v + 31])
            for v in range(44)
        ]
    )
    found = sync.shifted_distances(lips, voice)
    assert np.allclose(found, expected.numpy(), atol=1e-5)
    score, curve = sync.sync_of(found), expected.mean(0)
    assert score.distance == pytest.approx(float(curve.min()), abs=1e-5)
    assert score.confidence == pytest.approx(float(curve.median() - curve.min()), abs=1e-5)
    assert score.offset == 15 - int(curve.argmin())


@pytest.mark.parametrize("frames", [5, -5])
def test_200_milliseconds_are_5_frames(frames):
    voice = pair(3, 60)
    lips = voice[8:52] + 0.1 * pair(4)
    late = voice[8 - frames : 52 - frames]  # what is heard now was seen `frames` ago
    assert sync.sync_of(sync.shifted_distances(lips, voice[8:52])).offset == 0
    assert sync.sync_of(sync.shifted_distances(lips, late)).offset == -frames
    assert sync.sync_of(sync.shifted_distances(lips, late)).confidence > 1.0


def test_crosstalk_of_right_swapped_and_chance():
    voices = np.stack([pair(0), pair(1)])
    lips = voices + 0.2 * np.stack([pair(2), pair(3)])

    def judged(lips: np.ndarray, **more: np.ndarray) -> sync.CrossTalk:
        table = np.stack([[sync.shifted_distances(one, voice) for voice in voices] for one in lips])
        return sync.crosstalk(table, [0, 1], **more)

    right = judged(lips)
    assert right.right.all() and not right.failing and (right.margin > 1).all() and (np.diag(right.offset) == 0).all()
    swapped = judged(lips[::-1])
    assert not swapped.right.any() and {(span.character, span.rival) for span in swapped.failing} == {(0, 1), (1, 0)}
    assert sum(span.end - span.start for span in swapped.failing) == pytest.approx(2 * 44 / 25, abs=0.3)
    half = lips.copy()
    half[:, 30:] = lips[::-1, 30:]
    spans = judged(half, width=np.int64(9)).failing
    assert spans and min(span.start for span in spans) > 0.9 and max(span.end for span in spans) == 44 / 25
    silent = np.zeros((2, 44), dtype=bool)
    assert not judged(lips[::-1], audible=silent).failing, "a voice that is not heard cannot be lost"
    wins = [
        sync.crosstalk(
            np.stack([[sync.shifted_distances(pair(s + n), pair(500 + s + m)) for m in range(2)] for n in range(2)]),
            [0, 1],
        ).right.mean()
        for s in range(0, 120, 4)
    ]
    assert 0.25 < np.mean(wins) < 0.75, "faces without a voice are right half of the time"
    alone = sync.crosstalk(np.stack([[sync.shifted_distances(lips[0], voices[0])]]), [0])
    assert np.isnan(alone.margin).all() and alone.confidence.shape == (1, 1)


def test_crops_follow_the_reference():
    frames = np.full((15, 60, 80, 3), 50, dtype=np.uint8)
    frames[:, 20:40, 30:46] = 200
    track = np.tile([30.0, 20.0, 46.0, 40.0], (15, 1))
    track[7] += 9.0  # one frame of a detector's error is smoothed away
    made = face_track.crops(frames, track, size=36)
    assert made.shape == (15, 36, 36, 3) and np.array_equal(made[7], made[6])
    # half side 10: 28 wide about x = 38, from y = 20 to 48; the face is 16 wide and 20 high in it
    scale = 36 / 28
    bright = made[6, :, :, 0] > 125
    assert abs(bright.any(axis=0).sum() - 16 * scale) <= 1 and abs(bright.any(axis=1).sum() - 20 * scale) <= 1
    assert bright[0].any() and not bright[-1].any()
    edge = face_track.crops(frames, np.tile([0.0, 0.0, 20.0, 20.0], (15, 1)), size=36)
    assert edge[6, 20, 0, 0] == 110, "grey outside the picture"


def test_faces_go_to_the_masks_they_are_in():
    from bya_core.encoders.face.detection import Face

    masks = np.zeros((2, 3, 20, 40), dtype=bool)
    masks[0, :, :, :18], masks[1, :, :, 22:] = True, True
    left, right = Face((3.0, 4.0, 11.0, 14.0), 0.9), Face((25.0, 4.0, 33.0, 14.0), 0.8)
    found = face_track.tracks([[right, left], [left], []], masks)
    assert np.array_equal(found[0, 0], left.box) and np.array_equal(found[1, 0], right.box)
    assert np.isfinite(found[0, 1]).all() and np.isnan(found[1, 1:]).all()
    assert np.array_equal(face_track.filled(found[0], gap=1)[2], left.box)
    with pytest.raises(InputError, match="missing for 2 frames"):
        face_track.filled(found[1], gap=1)
    pictures = face_track.face_pictures(np.full((3, 20, 40, 3), 7, np.uint8), found[1], size=16)
    assert (pictures[0] == 7).all() and (pictures[1] == 110).all()
