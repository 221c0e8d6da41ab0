"""Stereo placement of voices."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.signal import butter, lfilter

from bya_core.grid import TokenGrid
from bya_core.io.media import mix_speeches
from bya_core.scene import spatial
from bya_core.scene.spatial import MAX_DELAY, add_voice, mask_centers, video_audio, voice_positions
from bya_core.scene.types import Character, Scene, Speech

RATE, FPS, FRAMES = 16_000, 25.0, 49
GRID = TokenGrid(13, 6, 10)
LENGTH = round(FRAMES / FPS * RATE)


def noise(seed: int, length: int = LENGTH) -> np.ndarray:
    """Noise with the spectrum of a voice, roughly."""
    b, a = butter(2, [150, 2000], "bandpass", fs=RATE)
    return 0.3 * lfilter(b, a, np.random.default_rng(seed).normal(size=length))


def column_masks(*columns: list[int]) -> torch.Tensor:
    """Masks of one column of tokens per latent frame and character; -1 = none."""
    masks = torch.zeros(len(columns), GRID.frames, GRID.height, GRID.width)
    for n, own in enumerate(columns):
        for t, column in enumerate(own):
            if column >= 0:
                masks[n, t, 1:5, column] = 1
    return masks


def make_scene(*voices: np.ndarray | None, spatial: bool = True, sound: np.ndarray | None = None) -> Scene:
    def speech(voice: np.ndarray | None) -> Speech | None:
        return None if voice is None else Speech(torch.from_numpy(voice).float()[None], RATE)

    characters = [Character(f"C{n}", torch.rand(3, 16, 16)) for n in range(len(voices))]
    scene = Scene("", characters, [speech(voice) for voice in voices], 96, 160, FRAMES, sound=speech(sound))
    return replace(scene, sampling=replace(scene.sampling, spatial=spatial))


def place_voice(voice: np.ndarray, position: np.ndarray, rate: int, fps: float) -> np.ndarray:
    stereo = np.zeros((2, len(voice)))
    add_voice(stereo, voice, position, rate, fps)
    return stereo


def levels(stereo: np.ndarray, parts: int = 12) -> np.ndarray:
    """Level of the right channel over that of the left one in dB, over time."""
    power = (stereo[:, : stereo.shape[1] // parts * parts].reshape(2, parts, -1) ** 2).mean(axis=2)
    return 10 * np.log10(power[1] / power[0])


def test_level_follows_the_center_of_the_mask() -> None:
    path = [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9]
    masks = column_masks(path)
    audio, rate = video_audio(make_scene(noise(0)), masks, GRID, torch.ones(1, 1))
    measured = levels(audio.numpy())
    centers = mask_centers(masks, GRID, FRAMES, FPS)[0]
    expected = np.interp((np.arange(12) + 0.5) / 12 * FRAMES, np.arange(FRAMES), centers)
    assert rate == RATE and audio.shape == (2, LENGTH)
    assert np.corrcoef(measured, expected)[0, 1] > 0.98
    assert measured[0] < -5 and measured[-1] > 5 and (np.diff(measured) > -0.5).all()
    mirrored, _ = video_audio(make_scene(noise(0)), masks.flip(-1), GRID, torch.ones(1, 1))
    torch.testing.assert_close(mirrored.flip(0), audio, atol=1e-4, rtol=0)


def test_farther_channel_is_later() -> None:
    stereo = place_voice(noise(1), np.full(FRAMES, -0.9), RATE, FPS)
    shifts = np.arange(-8, 9)
    match = [np.corrcoef(stereo[0, 100:-100], np.roll(stereo[1], -shift)[100:-100])[0, 1] for shift in shifts]
    assert shifts[int(np.argmax(match))] == round(0.9 * MAX_DELAY * RATE)


@pytest.mark.parametrize("position", [-1.0, -0.4, 0.0, 0.7])
def test_loudness_is_kept_also_in_mono(position: float) -> None:
    voice = noise(2)
    stereo = place_voice(voice, np.full(FRAMES, position), RATE, FPS)
    power = (voice**2).mean()
    assert 10 * np.log10((stereo**2).sum(axis=0).mean() / (2 * power)) == pytest.approx(0, abs=0.2)
    mono = stereo.mean(axis=0)
    assert 10 * np.log10((mono**2).mean() / power) == pytest.approx(0, abs=2)
    assert np.corrcoef(mono, voice)[0, 1] > 0.95


def test_off_is_the_plain_mix() -> None:
    scene = make_scene(noise(3), noise(4), spatial=False)
    masks = column_masks([1] * 13, [8] * 13)
    audio, rate = video_audio(scene, masks, GRID, torch.eye(2))
    plain, plain_rate = mix_speeches(scene.speeches, scene.seconds)
    assert rate == plain_rate and torch.equal(audio, plain)
    silent = make_scene(None, None)
    assert video_audio(silent, masks, GRID, torch.eye(2)) is None


def test_voices_follow_the_matrix() -> None:
    """Voice 0 drives the character on the right; the voice of two characters comes from between them."""
    masks = column_masks([0] * 13, [9] * 13)
    quiet = np.zeros(LENGTH)
    left_and_right = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    audio, _ = video_audio(make_scene(noise(5), quiet), masks, GRID, left_and_right)
    assert (levels(audio.numpy()) > 6).all()
    both = voice_positions(mask_centers(masks, GRID, FRAMES, FPS), np.array([[1.0, 1.0], [0.0, 0.0]]))
    np.testing.assert_allclose(both, 0, atol=1e-9)


def test_positions_are_smooth_and_survive_gaps() -> None:
    jump = mask_centers(column_masks([0] * 6 + [9] * 7), GRID, FRAMES, FPS)[0]
    assert np.abs(np.diff(jump)).max() < 0.2 and jump[0] < -0.8 and jump[-1] > 0.8
    lost = mask_centers(column_masks([9] * 4 + [-1] * 9), GRID, FRAMES, FPS)[0]
    np.testing.assert_allclose(lost, 0.9)
    never = mask_centers(column_masks([-1] * 13), GRID, FRAMES, FPS)
    np.testing.assert_allclose(never, 0)


def test_background_of_a_dialogue_stays_in_the_middle() -> None:
    """One recording of all speakers: its turns are placed, the rest is not, and nothing is lost."""
    voice, room = noise(6), 0.05 * noise(7)
    voice[LENGTH // 2 :] = 0
    scene = make_scene(voice, None, sound=voice + room)
    stereo = video_audio(scene, column_masks([0] * 13, [9] * 13), GRID, torch.eye(2))[0].numpy()
    measured = levels(stereo)
    assert (measured[:5] < -6).all() and np.abs(measured[7:]).max() < 0.1
    np.testing.assert_allclose(stereo[:, LENGTH // 2 + 10 :], np.stack([room, room])[:, LENGTH // 2 + 10 :], atol=1e-5)


def test_blocks_do_not_change_the_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    voice, position = noise(8), np.sin(np.linspace(0, 9, FRAMES))
    whole = place_voice(voice, position, RATE, FPS)
    monkeypatch.setattr(spatial, "BLOCK", 777)
    np.testing.assert_allclose(place_voice(voice, position, RATE, FPS), whole, atol=1e-12)


def test_memory_does_not_grow_with_the_length() -> None:
    voice = np.full(1_200_000, 0.1, np.float32)
    mix = np.zeros((2, len(voice)), np.float32)
    tracemalloc.start()
    add_voice(mix, voice, np.array([-1.0, 1.0]), 48_000, 0.04)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6 < len(voice) * 8  # less than one array of its length


def test_loud_voices_are_attenuated() -> None:
    """The sum would clip: it is scaled as a whole, so that the voices keep their balance."""
    audio, _ = video_audio(make_scene(5 * noise(9), noise(10)), column_masks([0] * 13, [9] * 13), GRID, torch.eye(2))
    quiet, _ = video_audio(make_scene(0.5 * noise(9), 0.1 * noise(10)), column_masks([0] * 13, [9] * 13), GRID,
                           torch.eye(2))  # fmt: skip
    assert float(audio.abs().max()) == pytest.approx(1)
    torch.testing.assert_close(audio / audio.abs().max(), quiet / quiet.abs().max(), atol=1e-4, rtol=0)
