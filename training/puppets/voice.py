"""Voices of the puppets: formant synthesis in numpy with the corresponding mouth movement.

A voice speaks syllables. In each, the mouth opens and closes (`opening`) around one vowel with spread or round lips
(`shape`). The audio is synthesized from these two tracks: loudness and the first formant rise with the opening, the
second formant falls with roundness. So the audio determines the mouth, by the same rule for all voices.

Source-filter model: a pulse train plus breath noise, filtered per frame (short-time Fourier transform, overlap-add) by
four resonances; consonants are short bursts of high-frequency noise while the mouth is closed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from bya_core.errors import InputError

SAMPLE_RATE = 16_000
PITCH_RANGE = (80.0, 320.0)
FORMANT_RANGE = (0.8, 1.3)
BREATH_RANGE = (0.05, 0.6)
RATE_RANGE = (2.4, 3.2)  # latent frames have a rate of 6.25 Hz, which limits how fast mouths may move
NEUTRAL_SHAPE = 0.5

Span = tuple[float, float]
"""Start and end in seconds."""

_WINDOW, _HOP, _FFT = 400, 200, 512  # samples: 25 ms, 12.5 ms, and padding for the filter response
_LEVEL = 0.16  # RMS of a fully open vowel
_SHORTEST = 0.12  # seconds; shorter spans stay silent


@dataclass(frozen=True)
class VoiceSpec:
    """Parameters of a voice.

    Args:
        pitch: mean fundamental frequency, Hz.
        formant_scale: factor on all formants (above 1 = short vocal tract).
        breathiness: fraction of noise in the vowels, 0..1.
        rate: syllables per second.
    """

    pitch: float = 150.0
    formant_scale: float = 1.0
    breathiness: float = 0.2
    rate: float = 3.0


@dataclass(frozen=True)
class Spoken:
    """Audio and mouth movement.

    `waveform` float32 [samples]; `opening` float32 [F] in 0..1 (exactly 0 in silence); `shape` float32 [F] in 0..1 (0 =
    spread lips as in "ee", 1 = round as in "oo", 0.5 in silence). Frame k is at time k / fps.
    """

    waveform: np.ndarray
    opening: np.ndarray
    shape: np.ndarray


@dataclass(frozen=True)
class Syllables:
    """An utterance, each [K]: start and length in seconds, peak opening and lip roundness 0..1."""

    start: np.ndarray
    length: np.ndarray
    peak: np.ndarray
    roundness: np.ndarray
    accent: np.ndarray  # pitch accent in octaves
    burst: np.ndarray  # loudness of the consonant before the vowel, 0..1


def voice_for(traits: np.ndarray) -> VoiceSpec:
    """The voice for the traits of a puppet (see `Look.voice_traits`).

    Args:
        traits: at least 3 numbers a, b, c in 0..1: a sets the pitch (80 ... 320 Hz, linear in octaves), b the formant
            scale (0.8 ... 1.3), c the breathiness (0.05 ... 0.6), and the fractional part of a + 2 b + 4 c the rate
            (2.4 ... 3.2 syllables per second).
    """
    numbers = np.clip(np.asarray(traits, dtype=np.float64).ravel(), 0.0, 1.0)
    if numbers.size < 3:
        raise InputError(f"{numbers.size} voice traits", "at least 3", "add the missing ones")
    a, b, c = (float(v) for v in numbers[:3])
    return VoiceSpec(
        pitch=PITCH_RANGE[0] * (PITCH_RANGE[1] / PITCH_RANGE[0]) ** a,
        formant_scale=_interpolate(FORMANT_RANGE, b),
        breathiness=_interpolate(BREATH_RANGE, c),
        rate=_interpolate(RATE_RANGE, (a + 2.0 * b + 4.0 * c) % 1.0),
    )


def random_voice(rng: np.random.Generator) -> VoiceSpec:
    """A random voice."""
    return voice_for(rng.random(3))


def synthesize(
    voice: VoiceSpec,
    spans: list[Span],
    duration: float,
    fps: float = 25.0,
    rng: np.random.Generator | None = None,
    num_frames: int | None = None,
) -> Spoken:
    """Synthesize speech in the given spans and silence elsewhere.

    Args:
        voice: parameters of the voice.
        spans: (start, end) in seconds; may start before 0 and end after `duration`, as in an excerpt of longer speech.
        duration: length in seconds.
        fps: frame rate of the mouth tracks.
        rng: random generator of the syllables.
        num_frames: F; default: `round(duration * fps)`.
    """
    rng = rng or np.random.default_rng(0)
    syllables = draw_syllables(voice, spans, rng)
    frames = num_frames if num_frames is not None else round(duration * fps)
    opening, shape, _ = mouth_track(syllables, np.arange(frames) / fps)
    waveform = _synthesize(voice, syllables, round(duration * SAMPLE_RATE), rng)
    return Spoken(waveform, opening.astype(np.float32), shape.astype(np.float32))


def draw_syllables(voice: VoiceSpec, spans: list[Span], rng: np.random.Generator) -> Syllables:
    """Fill every span with syllables of random length (+-25 %) and opening (0.4..1)."""
    starts, lengths = [np.zeros(0)], [np.zeros(0)]
    for begin, end in spans:
        if end - begin < _SHORTEST:
            continue
        count = max(1, round((end - begin) * voice.rate))
        share = rng.uniform(0.75, 1.25, count)
        share *= (end - begin) / share.sum()
        starts.append(begin + np.cumsum(share) - share)
        lengths.append(share)
    start, length = np.concatenate(starts), np.concatenate(lengths)
    count = start.size
    return Syllables(
        start=start,
        length=length,
        peak=rng.uniform(0.4, 1.0, count),
        roundness=np.clip(rng.beta(0.7, 0.7, count), 0.0, 1.0),
        accent=rng.normal(0.0, 0.08, count),
        burst=rng.uniform(0.0, 1.0, count),
    )


def mouth_track(syllables: Syllables, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Opening, shape and index of the syllable (-1 = silence) at `times` [P], each [P]."""
    opening = np.zeros(times.shape)
    shape = np.full(times.shape, NEUTRAL_SHAPE)
    if syllables.start.size == 0:
        return opening, shape, np.full(times.shape, -1)
    index = np.searchsorted(syllables.start, times, side="right") - 1
    known = np.maximum(index, 0)
    phase = (times - syllables.start[known]) / syllables.length[known]
    speaking = (index >= 0) & (phase < 1.0)
    known, phase = known[speaking], phase[speaking]
    bell = np.sin(np.pi * phase**0.85) ** 2  # opens slightly faster than it closes
    opening[speaking] = syllables.peak[known] * bell
    # lips reach the shape of the vowel at its center and are neutral when the mouth is closed
    shape[speaking] = NEUTRAL_SHAPE + (syllables.roundness[known] - NEUTRAL_SHAPE) * np.sqrt(bell)
    return opening, shape, np.where(speaking, index, -1)


def formants(opening: np.ndarray, shape: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Formant frequencies and bandwidths in Hz, each [P, 4], for opening and shape [P]."""
    spread_f2, open_f2, round_f2 = 2250.0, 1350.0, 780.0
    lips = spread_f2 * (round_f2 / spread_f2) ** shape
    second = lips ** (1.0 - 0.35 * opening) * open_f2 ** (0.35 * opening)
    third = np.maximum(2900.0 - 600.0 * shape, second + 350.0)
    frequency = np.stack([270.0 + 530.0 * opening, second, third, np.full_like(second, 3700.0)], axis=-1)
    bandwidth = np.array([70.0, 90.0, 130.0, 200.0]) + np.zeros_like(frequency)
    return np.minimum(frequency * scale, 7400.0), bandwidth


def _interpolate(ends: tuple[float, float], share: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * share


def _synthesize(voice: VoiceSpec, syllables: Syllables, samples: int, rng: np.random.Generator) -> np.ndarray:
    """Audio of the syllables, float32 [samples]; exactly 0 outside of syllables."""
    coarse = np.arange(0, samples + _HOP, _HOP // 4) / SAMPLE_RATE  # mouths move slowly: 3 ms steps are sufficient
    opening, shape, index = mouth_track(syllables, coarse)
    if not (index >= 0).any():
        return np.zeros(samples, dtype=np.float32)
    accent = np.where(index >= 0, syllables.accent[index], 0.0)
    octaves = accent + 0.10 * (opening - 0.4)
    pulses = _pulses(voice.pitch * 2.0 ** np.interp(np.arange(samples) / SAMPLE_RATE, coarse, octaves))
    noise = rng.standard_normal(samples).astype(np.float32)
    source = pulses * np.float32(np.sqrt(1.0 - voice.breathiness**2)) + noise * np.float32(voice.breathiness)

    centers = np.minimum(np.arange(-(-samples // _HOP) + 1) * _HOP, samples) / SAMPLE_RATE
    response = _vowel_response(*mouth_track(syllables, centers)[:2], voice.formant_scale)
    vowel = _equalize_loudness(_filter_frames(source, response))

    # consonants: noise that fades out while the mouth opens, at most a sixth of the vowel
    phase = np.where(index >= 0, (coarse - syllables.start[index]) / syllables.length[index], 1.0)
    fade = np.clip(1.0 - phase / 0.22, 0.0, 1.0) * np.minimum(phase / 0.06, 1.0)
    hiss = np.where(index >= 0, syllables.burst[index], 0.0) * fade
    fine = np.arange(samples) / SAMPLE_RATE
    out = vowel * np.interp(fine, coarse, opening) + 0.14 * _high(noise) * np.interp(fine, coarse, hiss)
    # interpolation extends one coarse step into silence: remove that
    _, _, inside = mouth_track(syllables, coarse[:-1] + (coarse[1] - coarse[0]) / 2)
    keep = np.repeat((inside >= 0) | (index[:-1] >= 0), _HOP // 4)[:samples]
    return np.where(keep, _LEVEL * out, 0.0).astype(np.float32)


def _pulses(pitch: np.ndarray) -> np.ndarray:
    """Pulse train of unit power with frequency `pitch` [samples] in Hz."""
    phase = np.cumsum(pitch) / SAMPLE_RATE
    at = np.flatnonzero(np.diff(np.floor(phase)) > 0)
    out = np.zeros(pitch.size + 1, dtype=np.float32)
    after = (phase[at + 1] % 1.0) * SAMPLE_RATE / pitch[at + 1]  # delay in samples: 0..1
    height = np.sqrt(SAMPLE_RATE / pitch[at + 1])
    out[at] = height * after
    out[at + 1] += height * (1.0 - after)
    return out[:-1]


def _filter_frames(source: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Filter `source` [samples] with one response [frames, bins] per frame, by overlap-add."""
    frames = response.shape[0]
    padded = np.zeros((frames + 1) * _HOP, dtype=np.float32)
    padded[_HOP : _HOP + source.size] = source
    pieces = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP][:frames]
    done = np.fft.irfft(np.fft.rfft(pieces * _hann(), n=_FFT, axis=-1) * response, n=_FFT, axis=-1)
    out = np.zeros((frames + 3, _HOP))
    out[:frames] += done[:, :_HOP]
    out[1 : frames + 1] += done[:, _HOP : 2 * _HOP]
    out[2 : frames + 2, : _FFT - 2 * _HOP] += done[:, 2 * _HOP :]
    return out.ravel()[_HOP : _HOP + source.size]


def _equalize_loudness(sound: np.ndarray) -> np.ndarray:
    """Remove slow loudness changes, which harmonics that cross a formant cause without a mouth opening."""
    hops = -(-sound.size // _HOP)
    energy = np.zeros(hops * _HOP)
    energy[: sound.size] = sound**2
    around = np.pad(energy.reshape(hops, _HOP).mean(-1), 1, mode="edge")
    power = np.convolve(around, [0.25, 0.5, 0.25], "valid")
    centers = (np.arange(hops) + 0.5) * _HOP
    return sound / np.sqrt(np.interp(np.arange(sound.size), centers, np.maximum(power, 0.05)))


def _vowel_response(opening: np.ndarray, shape: np.ndarray, scale: float) -> np.ndarray:
    """Four resonances and the glottal tilt, [frames, bins], normalized to unit power for a flat source."""
    frequency, bandwidth = formants(opening, shape, scale)
    radius = np.exp(-np.pi * bandwidth / SAMPLE_RATE)
    first = (-2.0 * radius * np.cos(2.0 * np.pi * frequency / SAMPLE_RATE)).astype(np.float32)
    second = (radius**2).astype(np.float32)
    delay, delay2, tilt = _bins()
    total = np.ones((opening.size, _FFT // 2 + 1), dtype=np.complex64)
    for k in range(frequency.shape[1]):
        total *= 1.0 + first[:, k, None] * delay + second[:, k, None] * delay2
    response = tilt / total
    power = np.mean(response.real**2 + response.imag**2, axis=-1, keepdims=True)
    return response / np.sqrt(power)


@lru_cache(maxsize=1)
def _bins() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z^-1 and z^-2 on the unit circle, and the spectral tilt of the source (-6 dB per octave), [bins]."""
    frequency = np.fft.rfftfreq(_FFT, 1.0 / SAMPLE_RATE)
    delay = np.exp(-2j * np.pi * frequency / SAMPLE_RATE).astype(np.complex64)
    tilt = (frequency / 60.0) / (1.0 + frequency / 60.0) / np.sqrt(1.0 + (frequency / 200.0) ** 2)
    return delay, delay * delay, tilt.astype(np.float32)


@lru_cache(maxsize=1)
def _hann() -> np.ndarray:
    return np.hanning(_WINDOW + 1)[:-1].astype(np.float32)


def _high(noise: np.ndarray) -> np.ndarray:
    """Consonant noise: second difference of white noise, approximately unit power."""
    out = np.zeros_like(noise)
    out[1:-1] = (noise[2:] - 2.0 * noise[1:-1] + noise[:-2]) / np.float32(np.sqrt(6.0))
    return out
