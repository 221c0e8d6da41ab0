"""The sound of a dubbed film: which part of the original stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

import bya_core.pipelines.dub.sound as dub_sound
from bya_core.encoders.face.tracking import FaceTrack
from bya_core.evaluation.speakers import Speakers
from bya_core.pipelines.dub.people import People
from bya_core.pipelines.dub.sound import dubbed_sound, muted
from bya_core.scene.original_voices import OriginalVoices
from bya_core.scene.timeline import Turn
from bya_core.scene.types import Character, Scene, Speech
from tests.fakes import RATE, tone

SECONDS = 2.0
NOBODY = People(np.zeros((2, 0, 4)), np.zeros((2, 0)), np.zeros((2, 0, 1, 1), dtype=bool))


def speech(hertz: float, seconds: float = SECONDS, offset: float = 0.0) -> Speech:
    return Speech(torch.from_numpy(tone(seconds, hertz)).float()[None], RATE, offset)


def scene(*voices: Speech | None) -> Scene:
    people = [Character(name, torch.zeros(3, 8, 8)) for name in ("Ada", "Bo")]
    return Scene("two people", people, voices, 64, 96, 49)


def level(sound: tuple[torch.Tensor, int] | None, hertz: float, start: float, end: float) -> float:
    """Amplitude of a tone in a part of the sound."""
    assert sound is not None
    part = sound[0].mean(0)[round(start * RATE) : round(end * RATE)].double()
    times = torch.arange(len(part)) / RATE
    wave = torch.exp(-2j * np.pi * hertz * times)
    return float(2 * (part * wave).sum().abs() / len(part))


def test_muted_spans_are_silent_with_fades() -> None:
    result = muted(speech(220.0), [(0.5, 1.0)]).waveform[0]
    assert result[round(0.5 * RATE) : round(RATE)].abs().max() == 0
    assert torch.equal(result[: round(0.47 * RATE)], speech(220.0).waveform[0, : round(0.47 * RATE)])
    assert float(result.diff().abs().max()) < 1.2 * float(speech(220.0).waveform.diff().abs().max()), "no click"


def test_voices_that_go_on_after_the_sound_of_the_film() -> None:
    short = speech(220.0, seconds=0.5)
    result = muted(short, [(-1.0, -0.5), (0.4, 3.0), (2.0, 3.0)]).waveform[0]
    assert result[: round(0.3 * RATE)].abs().max() > 0.2 and result[round(0.4 * RATE) :].abs().max() == 0
    sound, _ = dubbed_sound(short, scene(speech(900.0, offset=1.0), None), NOBODY, [0], SECONDS)
    assert level(sound, 900, 1.2, 1.8) > 0.2


def test_stems_replace_only_the_dubbed_voice() -> None:
    stems = OriginalVoices({"Ada": speech(300.0), "Bo": speech(500.0)}, background=speech(700.0))
    sound, notices = dubbed_sound(speech(100.0), scene(speech(900.0), None), NOBODY, [0], SECONDS, stems)
    levels = {hertz: level(sound, hertz, 0, SECONDS) for hertz in (100, 300, 500, 700, 900)}
    assert levels[500] > 0.2 and levels[700] > 0.2 and levels[900] > 0.2
    assert levels[300] < 0.01, "the old voice of Ada"
    assert levels[100] < 0.01, "the mix of the film"
    assert not notices


def test_timeline_mutes_the_turns_of_the_dubbed_character() -> None:
    voices = OriginalVoices({}, turns=[Turn("Ada", 0.2, 0.8), Turn("Bo", 1.0, 1.8)])
    sound, notices = dubbed_sound(speech(400.0), scene(speech(900.0), None), NOBODY, [0], SECONDS, voices)
    assert level(sound, 400, 0.3, 0.7) < 0.01 and level(sound, 400, 1.1, 1.7) > 0.2
    assert level(sound, 900, 0.3, 0.7) > 0.2 and not notices


def test_without_more_the_original_is_muted_while_the_new_voice_speaks() -> None:
    new = speech(900.0, 0.6, offset=0.4)
    sound, notices = dubbed_sound(speech(400.0), scene(new, None), NOBODY, [0], SECONDS)
    assert level(sound, 400, 0.5, 0.9) < 0.01 and level(sound, 400, 1.3, 1.9) > 0.2
    assert len(notices) == 1 and "timeline" in notices[0]


def test_everybody_dubbed_loses_the_old_voices_everywhere() -> None:
    old = speech(400.0, 0.6, offset=0.0)
    old = Speech(torch.nn.functional.pad(old.waveform, (round(1.0 * RATE), round(0.4 * RATE))), RATE)
    sound, _ = dubbed_sound(old, scene(speech(900.0, 0.5), speech(700.0, 0.5)), NOBODY, [0, 1], SECONDS)
    assert level(sound, 400, 1.1, 1.5) < 0.01


def test_lips_of_real_people_tell_where_the_old_voice_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def find(tracks: Sequence[object], waveform: np.ndarray, length: int, fps: float, names: Sequence[str]) -> Speakers:
        asked.append((len(tracks), length, fps, list(names)))
        turns = (Turn("Ada", 0.2, 0.8), Turn("Bo", 1.0, 1.8))
        return Speakers(tuple(names), turns, np.zeros((3, 1), bool), np.zeros((3, 1)), np.ones(1, bool))

    monkeypatch.setattr(dub_sound, "find_speakers", find)
    nowhere = [np.full((50, 4), np.nan), np.zeros(50), np.full((50, 468, 3), np.nan), np.zeros(50)]
    people = replace(NOBODY, tracks=(FaceTrack(*nowhere),) * 3)  # Ada, Bo and somebody else
    sound, notices = dubbed_sound(speech(400.0), scene(speech(900.0), None), people, [0], SECONDS)
    assert asked == [(3, 50, 25.0, ["Ada", "Bo", "another face (1)"])]
    assert level(sound, 400, 0.3, 0.7) < 0.01 and level(sound, 400, 1.1, 1.7) > 0.2 and not notices


@pytest.mark.parametrize("original", [None, speech(400.0)])
def test_sound_is_as_long_as_the_film(original: Speech | None) -> None:
    sound, _ = dubbed_sound(original, scene(speech(900.0, 0.5), None), NOBODY, [0], SECONDS)
    assert sound is not None and sound[0].shape[1] == round(SECONDS * sound[1])
