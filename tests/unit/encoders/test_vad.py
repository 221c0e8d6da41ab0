"""Voice activity detection on synthetic voices and sample recordings, and speaking spans of characters."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bya_core.encoders import vad as activity
from bya_core.encoders.vad import (
    LoudnessActivity,
    VoiceActivity,
    load_voice_activity,
    merge_spans,
    spans_of,
    speaking_spans,
)
from bya_core.errors import InputError
from bya_core.io.media import read_audio
from bya_core.scene.types import Character, Scene, Speech
from training.puppets.voice import VoiceSpec, synthesize

RATE = 16_000
ROOT = Path(__file__).resolve().parents[3]
SAMPLES = Path(os.environ.get("BYA_SAMPLES_DIR", ROOT.parent / "shared" / "samples"))
RECORDINGS = sorted(SAMPLES.glob("*/mix.wav"))
SILERO = importlib.util.find_spec("silero_vad") is not None
DETECTORS = ["loudness", pytest.param("silero", marks=pytest.mark.skipif(not SILERO, reason="no silero-vad"))]


def voice(spans, seconds: float = 3.0, noise: float = 0.0) -> torch.Tensor:
    rng = np.random.default_rng(5)
    sound = synthesize(VoiceSpec(pitch=180.0), spans, seconds, rng=rng).waveform
    return torch.from_numpy(sound + noise * rng.standard_normal(sound.size).astype(np.float32))


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_synthetic_voices(detector, noise):
    found = load_voice_activity(detector).spans(voice([(0.5, 1.2), (2.0, 2.8)], noise=noise), RATE)
    assert len(found) == 2
    np.testing.assert_allclose(found, [(0.5, 1.2), (2.0, 2.8)], atol=0.2)


@pytest.mark.parametrize("detector", DETECTORS)
def test_silence(detector):
    found = load_voice_activity(detector)
    assert isinstance(found, VoiceActivity)
    assert found.spans(torch.zeros(RATE), RATE) == [] and found.spans(torch.zeros(0), RATE) == []


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.skipif(not RECORDINGS, reason=f"no recordings in {SAMPLES} (set BYA_SAMPLES_DIR)")
def test_sample_recordings(detector):
    for path in RECORDINGS:
        waveform, rate = read_audio(path)
        spans = speaking_spans(Speech(waveform, rate), load_voice_activity(detector))
        seconds = waveform.shape[1] / rate
        assert 0.6 * seconds < sum(end - start for start, end in spans) <= seconds, path


@pytest.mark.skipif(not SILERO, reason="no silero-vad")
def test_silero_is_the_default_and_keeps_thread_settings():
    code = (
        "import torch, sys; torch.set_num_threads(3); from bya_core.encoders.vad import load_voice_activity; "
        "assert 'silero_vad' not in sys.modules; assert load_voice_activity().name == 'silero'; "
        "assert torch.get_num_threads() == 3 and 'torchaudio' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_loudness_is_the_fallback(monkeypatch):
    monkeypatch.setattr(activity.importlib.util, "find_spec", lambda name: None)
    load_voice_activity.cache_clear()
    try:
        assert load_voice_activity().name == "loudness"
        with pytest.raises(InputError, match="silero-vad is not installed"):
            load_voice_activity("silero")
    finally:
        load_voice_activity.cache_clear()
    with pytest.raises(InputError, match="voice activity 'ears'"):
        load_voice_activity("ears")  # type: ignore[arg-type]


def test_spans_are_relative_to_the_video():
    wave = voice([(0.5, 1.2), (2.0, 2.8)])[None]
    later = speaking_spans(Speech(wave, RATE, offset=1.0), LoudnessActivity())
    np.testing.assert_allclose(later, [(1.5, 2.2), (3.0, 3.8)], atol=0.1)
    earlier = speaking_spans(Speech(wave, RATE, offset=-0.8), LoudnessActivity())
    np.testing.assert_allclose(earlier, [(0.0, 0.4), (1.2, 2.0)], atol=0.1)
    assert speaking_spans(Speech(wave, RATE, offset=-3.0), LoudnessActivity()) == []
    assert speaking_spans(Speech(wave * 1e-4, RATE), LoudnessActivity()) == []


def test_spans_follow_the_audio_character_matrix():
    streams = [Speech(voice([(0.2, 0.8)])[None], RATE), None, Speech(voice([(0.6, 2.9)])[None], RATE)]
    characters = [Character(name, torch.rand(3, 8, 8)) for name in ("Anna", "Ben", "Cleo")]
    matrix = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    scene = Scene("talk", characters, streams, 64, 96, 49, audio_character_matrix=matrix)
    silent, both, one = spans_of(scene, LoudnessActivity())
    assert silent == []
    np.testing.assert_allclose(both, [(0.2, scene.seconds)], atol=0.1)
    np.testing.assert_allclose(one, [(0.6, scene.seconds)], atol=0.1)
    assert both[0][1] == one[0][1] == scene.seconds, "truncated at the end of the video"


def test_merge_spans():
    assert merge_spans([(2.0, 3.0), (0.0, 1.0), (1.1, 1.5)]) == [(0.0, 1.5), (2.0, 3.0)]
    assert merge_spans([(0.0, 2.0), (0.5, 1.0)], 0.0) == [(0.0, 2.0)]
