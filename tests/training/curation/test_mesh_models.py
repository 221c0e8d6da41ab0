"""Models without a download, on real people."""

from __future__ import annotations

import numpy as np
import pytest

from bya_core.encoders.face.mesh import FaceMesh
from bya_core.encoders.face.tracking import track_faces
from tests.clips import taking_turns
from training.curation.mesh_models import LipSpeakers, LipSyncScorer, MeshSegmenter
from training.curation.models import SpeechMixture


@pytest.fixture(scope="module")
def people():
    """Two people who take turns: frames, speeches [2,S], boxes [2,F,4] and meshes [2,F,468,2]."""
    frames, speeches = taking_turns(("bbaf2n", "lbbc2a"))
    tracks = track_faces(frames, FaceMesh())
    return frames, speeches, np.stack([t.boxes for t in tracks]), np.stack([t.points[..., :2] for t in tracks])


def test_turns_of_a_mixed_recording(people):
    _, speeches, _, points = people
    mixture = SpeechMixture(speeches.sum(axis=0), np.zeros(0), "", 0.0, points)
    streams = LipSpeakers().extract(mixture)
    for n in range(2):
        energy = (streams[n] ** 2).sum()
        assert energy > 0.6 * (speeches[n] ** 2).sum()  # most of the own speech
        assert (streams[n] * speeches[n]).sum() > 0.95 * energy  # and nothing else


@pytest.mark.parametrize("sound", ["silence", "music"])
def test_nobody_speaks(people, sound):
    pytest.importorskip("silero_vad")
    _, _, _, points = people
    time = np.arange(points.shape[1] * 640) / 16_000
    chord = sum(np.sin(2 * np.pi * pitch * time) for pitch in (196.0, 246.9, 293.7)) * 0.1
    mix = (chord if sound == "music" else 0 * time).astype(np.float32)
    assert not LipSpeakers().extract(SpeechMixture(mix, np.zeros(0), "", 0.0, points)).any()


def test_own_voice_fits_better(people):
    _, speeches, _, points = people
    table = [[sync.confidence for sync in row] for row in LipSyncScorer().scores_of_meshes(points, speeches)]
    assert table[0][0] > table[0][1] + 0.1 and table[1][1] > table[1][0] + 0.1
    assert table[0][0] > LipSyncScorer.min_confidence and table[1][1] > LipSyncScorer.min_confidence


def test_masks_cover_their_person_only(people):
    frames, _, boxes, points = people
    masks = MeshSegmenter().segment_faces(frames[:5], boxes[:, :5], points[:, :5])
    assert masks.shape == (2, 5, 480, 720) and not masks.all(axis=0).any()
    for n in range(2):
        x0, y0, x1, y1 = boxes[n, 0].round().astype(int)
        assert masks[n, 0, y0 + 10 : y1 - 10, (x0 + x1) // 2].all()
        assert masks[n, 0, 470, 360 * n : 360 * n + 360].mean() > 0.5  # shoulders
        assert not masks[n, 0, :, 360 * (1 - n) + 60 : 360 * (1 - n) + 300].any()
        assert not masks[n, 0, :30].any()  # background above the heads


def test_hidden_face_has_a_mask(people):
    frames, _, boxes, points = people
    hidden = points[:, :2].copy()
    hidden[0, 1] = np.nan
    masks = MeshSegmenter().segment_faces(frames[:2], boxes[:, :2], hidden)
    assert masks[0, 1].sum() > 0.7 * masks[0, 0].sum()
