"""Real people, as far as no weights are needed: a photo that moves and a recording, up to the distance of faces."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from training.curation.faces import Faces, FaceSettings
from training.curation.footage import RATE, read_sound
from training.curation.probe import Probe, ProbeSettings
from training.curation.segments import Distance, DistanceSettings, Segments, SegmentSettings
from training.curation.shots import Shots, ShotSettings
from training.curation.sources import fingerprinted, list_sources
from training.curation.stage import Resources
from training.curation.store import Store

SAMPLES = Path(__file__).resolve().parents[4] / "shared" / "samples"
FRONTAL = {"001": (0.555, 0.415), "014": (0.325, 0.28)}  # the middle of the face that looks into the camera
FRAMES = 53


def film(sample: str, path: Path) -> None:
    """The photo, which sinks by two pixels a second, with the recording."""
    from bya_core.io.media import read_audio, resample

    photo = np.asarray(Image.open(SAMPLES / sample / "first_frame.jpg").convert("RGB").resize((720, 480)))
    wave, rate = read_audio(SAMPLES / sample / "mix.wav")
    wave = resample(wave[:1], rate, RATE).numpy()[:, : FRAMES * RATE // 25]
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25, options={"crf": "16"})
        video.width, video.height, video.pix_fmt = 720, 480, "yuv420p"
        sound = out.add_stream("aac", rate=RATE, layout="mono")
        for k in range(FRAMES):
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.roll(photo, k // 12, axis=0), format="rgb24")))
        out.mux(video.encode(None))
        heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave, np.float32), format="fltp", layout="mono")
        heard.sample_rate, heard.pts = RATE, 0
        out.mux(sound.encode(heard))
        out.mux(sound.encode(None))


@pytest.mark.parametrize("sample", FRONTAL)
def test_real_people_are_followed_and_heard(sample, tmp_path):
    if not (SAMPLES / sample / "mix.wav").is_file():
        pytest.skip("the sample photos and recordings are not here")
    pytest.importorskip("skimage")
    (tmp_path / "in").mkdir()
    film(sample, tmp_path / "in" / "talk.mp4")
    (source,) = list_sources(tmp_path / "in")
    (probed,) = Probe(ProbeSettings(), Resources())(fingerprinted(source, Store(tmp_path / "store")))
    assert probed.rejected is None and probed.data["width"] == 720 and probed.data["fps"] == pytest.approx(25, abs=0.1)
    (shot,) = Shots(ShotSettings(), Resources())(probed)
    assert shot.frames == FRAMES
    (seen,) = Faces(FaceSettings(every=12, least_score=0.0), Resources())(shot)
    assert seen.rejected is None
    rows = seen.array("tracks")
    x, y = FRONTAL[sample][0] * 720, FRONTAL[sample][1] * 480
    mine = [n for n in np.unique(rows[:, 0]) if all(inside(row[2:6], x, y) for row in rows[rows[:, 0] == n])]
    assert len(mine) == 1 and (rows[:, 0] == mine[0]).sum() >= 4  # followed by one track from end to end
    many = len(np.unique(rows[:, 0]))
    clips = Segments(SegmentSettings(characters=many), Resources())(seen)
    if clips[0].rejected is None:
        assert (
            clips[0].frames == 49 and Distance(DistanceSettings(least=0.0), Resources())(clips[0])[0].rejected is None
        )
    sound = read_sound(str(tmp_path / "in" / "talk.mp4"), 0.4, 1.0)
    truth = recording(sample)[round(0.4 * RATE) :][:RATE]
    assert np.corrcoef(sound, truth)[0, 1] > 0.9  # in time, to the sample


def inside(box: np.ndarray, x: float, y: float) -> bool:
    return bool(box[0] < x < box[2] and box[1] < y < box[3])


def recording(sample: str) -> np.ndarray:
    from bya_core.io.media import read_audio, resample

    wave, rate = read_audio(SAMPLES / sample / "mix.wav")
    return resample(wave[:1], rate, RATE)[0].numpy()
