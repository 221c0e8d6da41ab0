"""Real photos and recordings, up to the stages that need weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bya_core.io import media
from training.curation.faces import Faces, FaceSettings
from training.curation.footage import SAMPLE_RATE, read_audio
from training.curation.probe import Probe, ProbeSettings
from training.curation.record import hash_source, list_sources
from training.curation.segments import Distance, DistanceSettings, Segments, SegmentSettings
from training.curation.shots import Shots, ShotSettings
from training.curation.store import Store

SAMPLES = Path(__file__).resolve().parents[4] / "shared" / "samples"
FRONTAL = {"001": (0.555, 0.415), "014": (0.325, 0.28)}  # center of the frontal face
FRAMES = 53


def write_sample(sample: str, path: Path) -> None:
    """Write the photo, moving down by two pixels per second, with the recording."""
    photo = np.asarray(Image.open(SAMPLES / sample / "first_frame.jpg").convert("RGB").resize((720, 480)))
    waveform = torch.from_numpy(recording(sample)[None, : FRAMES * SAMPLE_RATE // 25])
    media.write_video(path, (np.roll(photo, k // 12, axis=0) for k in range(FRAMES)), 25, (waveform, SAMPLE_RATE))


@pytest.mark.parametrize("sample", FRONTAL)
def test_tracking_and_audio_of_real_footage(sample, tmp_path):
    if not (SAMPLES / sample / "mix.wav").is_file():
        pytest.skip("the sample photos and recordings are not available")
    pytest.importorskip("skimage")
    (tmp_path / "in").mkdir()
    write_sample(sample, tmp_path / "in" / "talk.mp4")
    (source,) = list_sources(tmp_path / "in")
    (probed,) = Probe(ProbeSettings())(hash_source(source, Store(tmp_path / "store")))
    assert probed.rejected is None and probed.data["width"] == 720 and probed.data["fps"] == pytest.approx(25, abs=0.1)
    (shot,) = Shots(ShotSettings())(probed)
    assert shot.num_frames == FRAMES
    (detected,) = Faces(FaceSettings(stride=12, min_score=0.0))(shot)
    assert detected.rejected is None
    rows = detected.array("tracks")
    x, y = FRONTAL[sample][0] * 720, FRONTAL[sample][1] * 480
    inside = (rows[:, 2] < x) & (x < rows[:, 4]) & (rows[:, 3] < y) & (y < rows[:, 5])
    tracks = [n for n in np.unique(rows[:, 0]) if inside[rows[:, 0] == n].all()]
    assert len(tracks) == 1 and (rows[:, 0] == tracks[0]).sum() >= 4
    count = len(np.unique(rows[:, 0]))
    clips = Segments(SegmentSettings(characters=count))(detected)
    if clips[0].rejected is None:
        (clip,) = Distance(DistanceSettings(min_ratio=0.0))(clips[0])
        assert clip.num_frames == 49 and clip.rejected is None
    waveform = read_audio(str(tmp_path / "in" / "talk.mp4"), 0.4, 1.0)
    expected = recording(sample)[round(0.4 * SAMPLE_RATE) :][:SAMPLE_RATE]
    assert np.corrcoef(waveform, expected)[0, 1] > 0.9  # aligned


def recording(sample: str) -> np.ndarray:
    wave, rate = media.read_audio(SAMPLES / sample / "mix.wav")
    return media.resample(wave[:1], rate, SAMPLE_RATE)[0].numpy()
