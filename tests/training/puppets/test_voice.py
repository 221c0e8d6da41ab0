"""Synthetic voices and their mouths."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from bya_core.errors import InputError
from bya_core.io.loudness import loudness_track
from training.puppets.conversation import conversation
from training.puppets.recordings import opening_from_recording
from training.puppets.voice import SAMPLE_RATE, VoiceSpec, formants, random_voice, synthesize, voice_for

SECONDS = 4.0
FRAMES = 100


def say(seed: int = 0, voice: VoiceSpec | None = None, spans=((0.0, SECONDS),), seconds: float = SECONDS):
    rng = np.random.default_rng(seed)
    return synthesize(voice or random_voice(rng), list(spans), seconds, rng=rng)


@pytest.mark.parametrize("traits", [None, *itertools.product((0, 1), repeat=3)])
def test_loudness_follows_the_mouth(traits):
    for seed in range(8) if traits is None else [3]:
        spoken = say(seed, None if traits is None else voice_for(np.array(traits)))
        loud = loudness_track(spoken.waveform, SAMPLE_RATE, FRAMES)
        assert np.corrcoef(loud, spoken.opening)[0, 1] > 0.9
        assert np.abs(spoken.waveform).max() < 1.0
        assert 0.04 < np.sqrt(np.mean(spoken.waveform**2)) < 0.2


def test_mouth_opens_and_closes_with_every_syllable():
    spoken = say(1, VoiceSpec(rate=3.0))
    inner = spoken.opening[1:-1]
    peaks = (inner > spoken.opening[:-2]) & (inner >= spoken.opening[2:]) & (inner > 0.3)
    assert 10 <= peaks.sum() <= 14
    assert spoken.opening.min() < 0.05 and spoken.opening.max() > 0.8
    assert np.abs(np.diff(spoken.opening)).max() < 0.5


def test_mouth_movement_survives_4x_temporal_compression():
    openings = [say(seed).opening for seed in range(10)]
    assert np.mean([o.reshape(-1, 4).mean(1).std() / o.std() for o in openings]) > 0.65


def test_silence_is_silent():
    spoken = say(2, spans=((1.0, 2.0),))
    assert not spoken.waveform[: int(0.99 * SAMPLE_RATE)].any()
    assert not spoken.waveform[int(2.01 * SAMPLE_RATE) :].any()
    assert not spoken.opening[:25].any() and not spoken.opening[51:].any()
    assert spoken.opening[26:49].max() > 0.3
    assert (spoken.shape[:25] == 0.5).all()
    silent = say(2, spans=())
    assert not silent.waveform.any() and not silent.opening.any()


def test_synthesis_is_deterministic():
    one, two, other = say(5), say(5), say(6)
    assert np.array_equal(one.waveform, two.waveform) and np.array_equal(one.opening, two.opening)
    assert not np.array_equal(one.waveform, other.waveform)


def test_pitch_of_the_audio():
    for pitch in (80.0, 150.0, 320.0):
        wave = say(0, VoiceSpec(pitch=pitch, breathiness=0.05)).waveform.astype(np.float64)
        spectrum = np.abs(np.fft.rfft(wave, n=2 * wave.size)) ** 2
        autocorrelation = np.fft.irfft(spectrum)[: SAMPLE_RATE // 40]
        low, high = int(SAMPLE_RATE / 400), SAMPLE_RATE // 60
        found = SAMPLE_RATE / (low + np.argmax(autocorrelation[low:high]))
        assert found == pytest.approx(pitch, rel=0.12)


def test_voice_for_traits():
    low, high = voice_for(np.zeros(3)), voice_for(np.ones(5))
    assert (low.pitch, low.formant_scale, low.breathiness) == (80.0, 0.8, 0.05)
    assert high.pitch == pytest.approx(320.0) and high.formant_scale == pytest.approx(1.3)
    assert voice_for(np.array([0.3, 0.4, 0.5])) == voice_for(np.array([0.3, 0.4, 0.5, 0.9]))
    with pytest.raises(InputError):
        voice_for(np.zeros(2))


def test_round_and_spread_vowels_differ():
    frequency, _ = formants(np.array([0.5, 0.5, 1.0]), np.array([0.0, 1.0, 0.0]), 1.0)
    assert frequency[0, 1] > 1.5 * frequency[1, 1]
    assert frequency[2, 0] > frequency[0, 0]


def test_synthesis_speed():
    say(0)
    times = []
    for seed in range(5):
        start = time.process_time()
        say(seed)
        times.append(time.process_time() - start)
    assert min(times) / SECONDS < 0.1  # typically 4 ms per second of audio


def test_excerpt_of_longer_speech():
    spoken = synthesize(VoiceSpec(), [(-0.5, 2.0)], 0.68, rng=np.random.default_rng(1), num_frames=17)
    assert spoken.opening.shape == (17,) and spoken.waveform.shape == (10880,)
    assert spoken.opening.max() > 0.3


@pytest.mark.parametrize("mode", ["turns", "overlap", "one", "silent", "mixed"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_conversations(mode, count):
    rng = np.random.default_rng(count)
    spans = conversation(count, 5.0, rng, mode)
    assert len(spans) == count and all(begin < end for turns in spans for begin, end in turns)
    for turns in spans:
        assert mode == "turns" or all(a[1] <= b[0] for a, b in itertools.pairwise(turns))
    merged = sorted(itertools.chain(*spans))
    if mode == "turns":
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(merged))
    speakers = {"turns": count, "overlap": count, "one": 1, "silent": 0}
    assert mode == "mixed" or sum(map(bool, spans)) == speakers[mode]


def test_unknown_conversation_mode_raises():
    with pytest.raises(InputError, match="conversation"):
        conversation(2, 1.0, np.random.default_rng(0), "shouting")  # type: ignore[arg-type]


def test_opening_from_recording():
    spoken = say(4, spans=((0.5, 2.5),))
    opening = opening_from_recording(np.stack([spoken.waveform, spoken.waveform]), SAMPLE_RATE)
    assert opening.shape == (FRAMES,) and opening.min() >= 0 and opening.max() <= 1
    assert np.corrcoef(opening, spoken.opening)[0, 1] > 0.9
    assert not opening[75:].any()
    assert not opening_from_recording(np.zeros(16000), SAMPLE_RATE, 25).any()
