"""The shipped toy model on the command line: the demo, audio assignment, human speech, a dialogue."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bya_core.evaluation.binding import correlations
from bya_core.io.loudness import loudness_track
from bya_core.io.media import read_audio, read_image, read_video
from bya_core.toy.mouth import mouth_opening
from bya_core.toy.segmentation import segment_characters
from bya_core.weights.registry import MODELS
from tests.fakes import RATE, write_wav
from tests.unit.routing.puppet_scene import VALIDATION
from training.puppets import make_clip
from training.puppets.looks import MOUTH_RGB

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
SAMPLES = Path(os.environ.get("BYA_SAMPLES_DIR", ROOT.parent / "shared" / "samples"))
RECORDINGS = sorted(SAMPLES.glob("*/mix.wav"))

needs_toy = pytest.mark.skipif(not MODELS["toy"].available, reason="the weights of the toy model are missing")


def generate(scene: Path, folder: Path, *options: str) -> dict[str, Any]:
    """Save talk.mp4 and masks.mp4 to `folder` and return the report."""
    outputs = ["-o", folder / "talk.mp4", "--overlay", folder / "masks.mp4", "--json", folder / "report.json"]
    command = [sys.executable, "-m", "bya_core", "generate", scene, *outputs, *options]
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "report.json").read_text())


def test_demo_inputs_are_small_and_complete():
    scene = json.loads((DEMO / "scene.json").read_text())
    assert len(scene["characters"]) == 2
    for character in scene["characters"]:
        assert read_image(DEMO / character["image"]).shape[0] == 3
        waveform, rate = read_audio(DEMO / character["speech"])
        assert waveform.abs().max() > 0.05 and rate > 0
    tracked = [path for path in DEMO.iterdir() if path.suffix in (".png", ".wav", ".json")]
    assert sum(path.stat().st_size for path in tracked) < 1_000_000


@needs_toy
def test_swapped_speech_is_assigned_automatically(tmp_path):
    scene = json.loads((DEMO / "scene.json").read_text())
    one, other = scene["characters"]
    one["speech"], other["speech"] = other["speech"], one["speech"]
    for character in scene["characters"]:
        character |= {key: str(DEMO / character[key]) for key in ("image", "speech")}
    scene |= {"first_frame": None, "length": 5, "audio_character_matrix": "auto"}
    (tmp_path / "scene.json").write_text(json.dumps(scene))
    report = generate(tmp_path / "scene.json", tmp_path, "--steps", "2")
    assert report["scene"]["audio_character_matrix"] == [[0, 1], [1, 0]]
    assert [character["speech_of"] for character in report["characters"]] == [["puppet B"], ["puppet A"]]
    assert any("matched to faces" in warning for warning in report["warnings"])


@needs_toy
def test_demo(tmp_path):
    """`make demo`, within 120 s and 4 GB."""
    report = generate(DEMO / "scene.json", tmp_path)
    assert report["seconds"]["total"] < 120
    assert report["peak_memory"]["ram_gb"] < 4
    assert len(report["characters"]) == 2
    frames = read_video(tmp_path / "talk.mp4")[0].numpy()
    height_width = (report["scene"]["size"][1], report["scene"]["size"][0])
    assert frames.shape == (report["scene"]["frames"], *height_width, 3)
    assert frames.std() > 20
    sound, rate = read_audio(tmp_path / "talk.mp4")
    assert sound.shape[1] / rate == pytest.approx(len(frames) / 25, abs=0.1)
    assert read_video(tmp_path / "masks.mp4")[0].numpy().shape[0] == len(frames)


@needs_toy
@pytest.mark.skipif(not RECORDINGS, reason=f"no recordings in {SAMPLES} (set BYA_SAMPLES_DIR)")
@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda path: path.parent.name)
def test_human_speech(recording, tmp_path, record_property):
    """A real recording as the speech of the first puppet; the second one listens."""
    scene = json.loads((DEMO / "scene.json").read_text())
    for character in scene["characters"]:
        shutil.copy(DEMO / character["image"], tmp_path)
        character["speech"] = None
    shutil.copy(recording, tmp_path / "mix.wav")
    scene["characters"][0]["speech"] = "mix.wav"
    if scene.get("first_frame"):
        shutil.copy(DEMO / scene["first_frame"], tmp_path)
    path = tmp_path / "scene.json"
    path.write_text(json.dumps(scene))
    generate(path, tmp_path)

    frames = read_video(tmp_path / "talk.mp4")[0].numpy()
    images = [tmp_path / character["image"] for character in scene["characters"]]
    portraits = np.stack([read_image(image).permute(1, 2, 0).numpy() for image in images])
    regions = segment_characters(frames, portraits, shared_rgb=MOUTH_RGB)
    opening = mouth_opening(frames, regions, MOUTH_RGB)
    waveform, rate = read_audio(recording)
    loudness = loudness_track(waveform.numpy(), rate, len(frames))[None]
    speaker, listener = correlations(opening, loudness)[:, 0].tolist()
    assert speaker > 0.2 and speaker > listener + 0.1, (speaker, listener)
    record_property("mouth_to_loudness", {"speaker": speaker, "listener": listener})
    sound, sound_rate = read_audio(tmp_path / "talk.mp4")
    assert (sound.shape[0], sound_rate) == (waveform.shape[0], rate)


@needs_toy
def test_dialogue(tmp_path):
    clip = make_clip(VALIDATION + 3, 2, 64, 96, 33, motion="still", talk="turns")
    whole = clip.speeches.sum(axis=0)
    speaking = [np.flatnonzero(np.abs(speech) > 0.02) / RATE for speech in clip.speeches]
    turns = [f"SPEAKER talk 1 {t.min():.3f} {np.ptp(t):.3f} <NA> <NA> S{n} <NA> <NA>" for n, t in enumerate(speaking)]
    write_wav(tmp_path / "talk.wav", whole)
    (tmp_path / "talk.rttm").write_text("\n".join(turns))
    Image.fromarray(clip.first_frame).save(tmp_path / "start.png")
    cast = []
    for n, portrait in enumerate(clip.portraits):
        Image.fromarray(portrait).save(tmp_path / f"{n}.png")
        cast.append({"name": f"puppet {n}", "image": f"{n}.png", "speaker": f"S{n}"})
    scene = {"prompt": clip.prompt, "characters": cast, "dialogue": "talk.wav", "timeline": "talk.rttm"}
    scene |= {"first_frame": "start.png", "length": 33, "steps": 8}
    (tmp_path / "scene.json").write_text(json.dumps(scene))
    generate(tmp_path / "scene.json", tmp_path)
    out = tmp_path / "talk.mp4"

    frames = read_video(out)[0].numpy()
    regions = segment_characters(frames, clip.portraits, shared_rgb=MOUTH_RGB)
    found = correlations(mouth_opening(frames, regions, MOUTH_RGB), clip.opening)
    own, other = np.diag(found), found[[0, 1], [1, 0]]
    assert own.min() > 0.5 and (own > other + 0.4).all(), found
    sound, rate = read_audio(out)
    assert sound.abs().max() == pytest.approx(np.abs(whole[: len(sound[0])]).max(), rel=0.1)
