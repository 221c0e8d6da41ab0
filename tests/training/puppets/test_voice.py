"""Synthetic voices and their mouths."""

from __future__ import annotations

import time

import numpy as np
import pytest

from bya_core.errors import InputError
from bya_core.io.loudness import loudness_track
from training.puppets.voice import (
    SAMPLE_RATE,
    VoiceSpec,
    conversation,
    formants,
    opening_from_recording,
    random_voice,
    synthesize,
    voice_for,
)

SECONDS = 4.0
FRAMES = 100


def say(seed: int = 0, voice: VoiceSpec | None = None, spans=((0.0, SECONDS),), seconds: float = SECONDS):
    rng = np.random.default_rng(seed)
    return synthesize(voice or random_voice(rng), list(spans), seconds, rng=rng)


@pytest.mark.parametrize("seed", range(8))
def test_loudness_follows_the_mouth(seed):
    spoken = say(seed)
    loud = loudness_track(spoken.waveform, SAMPLE_RATE, FRAMES)
    assert np.corrcoef(loud, spoken.opening)[0, 1] > 0.9


def test_loudness_follows_the_mouth_for_extreme_voices():
    for numbers in np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, -1).T:
        spoken = say(3, voice_for(numbers))
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


def test_variation_survives_four_frames_of_compression():
    kept = []
    for seed in range(10):
        opening = say(seed).opening[: FRAMES // 4 * 4]
        kept.append(opening.reshape(-1, 4).mean(1).std() / opening.std())
    assert np.mean(kept) > 0.65


def test_silence_is_silent():
    spoken = say(2, spans=((1.0, 2.0),))
    assert not spoken.waveform[: int(0.99 * SAMPLE_RATE)].any()
    assert not spoken.waveform[int(2.01 * SAMPLE_RATE) :].any()
    assert not spoken.opening[:25].any() and not spoken.opening[51:].any()
    assert spoken.opening[26:49].max() > 0.3
    assert (spoken.shape[:25] == 0.5).all()
    nothing = say(2, spans=())
    assert not nothing.waveform.any() and not nothing.opening.any()


def test_same_seed_same_sound():
    one, two, other = say(5), say(5), say(6)
    assert np.array_equal(one.waveform, two.waveform) and np.array_equal(one.opening, two.opening)
    assert not np.array_equal(one.waveform, other.waveform)


def test_pitch():
    for pitch in (80.0, 150.0, 320.0):
        wave = say(0, VoiceSpec(pitch=pitch, breathiness=0.05)).waveform.astype(np.float64)
        spectrum = np.abs(np.fft.rfft(wave, n=2 * wave.size)) ** 2
        self_likeness = np.fft.irfft(spectrum)[: SAMPLE_RATE // 40]
        low, high = int(SAMPLE_RATE / 400), SAMPLE_RATE // 60
        found = SAMPLE_RATE / (low + np.argmax(self_likeness[low:high]))
        assert found == pytest.approx(pitch, rel=0.12)


def test_voice_for_look_is_fixed():
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
    synthesize(VoiceSpec(), [(0.0, 1.0)], 1.0)
    best = min(_time_one(seed) for seed in range(5))
    assert best / SECONDS < 0.004 * 4  # 4 ms per second of sound; four times that on a busy machine


def _time_one(seed: int) -> float:
    start = time.perf_counter()
    say(seed)
    return time.perf_counter() - start


def test_short_clips_of_running_speech():
    spoken = synthesize(VoiceSpec(), [(-0.5, 2.0)], 0.68, rng=np.random.default_rng(1), num_frames=17)
    assert spoken.opening.shape == (17,) and spoken.waveform.shape == (10880,)
    assert spoken.opening.max() > 0.3


@pytest.mark.parametrize("mode", ["turns", "overlap", "one", "silent", "mixed"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_conversations(mode, count):
    rng = np.random.default_rng(count)
    spans = conversation(count, 5.0, rng, mode)
    assert len(spans) == count
    assert all(begin < end for mine in spans for begin, end in mine)
    for mine in spans:
        assert all(mine[k][1] <= mine[k + 1][0] for k in range(len(mine) - 1)) or mode == "turns"
    everything = sorted(span for mine in spans for span in mine)
    if mode == "turns":
        assert all(a[1] <= b[0] for a, b in zip(everything, everything[1:], strict=False))
        assert all(spans)
    if mode == "one":
        assert sum(map(bool, spans)) == 1
    if mode == "silent":
        assert not everything
    if mode == "overlap":
        assert all(spans)


def test_unknown_mode_is_an_error():
    with pytest.raises(InputError, match="conversation"):
        conversation(2, 1.0, np.random.default_rng(0), "shouting")  # type: ignore[arg-type]


def test_opening_from_recording():
    spoken = say(4, spans=((0.5, 2.5),))
    opening = opening_from_recording(np.stack([spoken.waveform, spoken.waveform]), SAMPLE_RATE)
    assert opening.shape == (FRAMES,) and opening.min() >= 0 and opening.max() <= 1
    assert np.corrcoef(opening, spoken.opening)[0, 1] > 0.9
    assert not opening[75:].any()
    assert not opening_from_recording(np.zeros(16000), SAMPLE_RATE, 25).any()
