"""Written dialogues with their speech: recordings that are given or synthesized, and the speech of each character."""

from __future__ import annotations

import math

import pytest
import torch

from bya_core.errors import InputError
from bya_core.io import synthesis
from bya_core.scene.script import lines_of, parse_script
from bya_core.scene.spoken import (
    SpokenScript,
    choose_voices,
    estimate,
    lines_of_cast,
    named_values,
    synthesize_missing,
    timetable,
    with_recordings,
)

RATE = 8000
PLAY = "ADA: One.\nBo: Two.\nAda: Three."


def tone(seconds: float, rate: int = RATE) -> tuple[torch.Tensor, int]:
    return 0.5 * (torch.arange(round(seconds * rate)) * (2 * math.pi * 200 / rate)).cos()[None], rate


class Hum:
    name = "hum"

    def default_voices(self, count: int) -> list[str]:
        return [f"voice {k}" for k in range(count)]

    def synthesize(self, text: str, voice: str) -> tuple[torch.Tensor, int]:
        said.append((voice, text))
        return tone(0.5)


said: list[tuple[str, str]] = []


@pytest.fixture(autouse=True)
def hum(monkeypatch: pytest.MonkeyPatch) -> None:
    said.clear()
    monkeypatch.setattr(synthesis, "find_synthesizer", lambda *_: Hum())


def test_speech_of_each_character_starts_with_its_lines() -> None:
    lines = lines_of_cast(PLAY, ["bo", "Ada", "Cy"])
    assert [line.speaker for line in lines] == ["Ada", "bo", "Ada"]
    silence = torch.zeros(1, RATE)
    spoken = SpokenScript.of(lines, [(torch.cat([silence, tone(s)[0]], dim=1), RATE) for s in (1.0, 2.0, 1.0)])
    ada, bo = spoken.speech("Ada"), spoken.speech("bo")
    for speech, spans in ((ada, [(spoken.starts[0], 1.0), (spoken.starts[2], 1.0)]), (bo, [(spoken.starts[1], 2.0)])):
        loud = speech.waveform[0].abs() > 0.01
        seconds = (torch.nonzero(loud).flatten() + 0.0) / RATE + speech.offset
        inside = sum(((seconds >= a - 0.01) & (seconds <= a + length + 0.1)) for a, length in spans)
        assert len(seconds) and bool(inside.bool().all())
        assert seconds[0] == pytest.approx(spans[0][0] + 0.03, abs=0.02)
    assert ada.end == pytest.approx(spoken.starts[2] + spoken.seconds[2], abs=0.01)
    assert spoken.text.count("\n") == 3 and spoken.notices == []


def test_speakers_outside_the_cast() -> None:
    with pytest.raises(InputError, match="lines of ADA.*characters of the cast: Bo, Cy"):
        lines_of_cast(PLAY, ["Bo", "Cy"])
    assert [line.text for line in lines_of(parse_script(PLAY), " ada ")] == ["One.", "Three."]
    with pytest.raises(InputError, match='no line of "Cy".*ADA, Bo'):
        lines_of(parse_script(PLAY), "Cy")


def test_only_missing_recordings_are_synthesized() -> None:
    lines = parse_script(PLAY)
    given = with_recordings(lines, "ADA", [tone(1), tone(2)])
    assert sorted(given) == [0, 2] and given[2][0].shape[1] == 2 * RATE
    made = synthesize_missing(lines, given, {"ADA": "high", "Bo": "low"})
    assert sorted(made) == [1] and said == [("low", "Two.")]
    assert synthesize_missing(lines, {**given, **made}, {}) == {}
    with pytest.raises(InputError, match="1 recordings of ADA, who has 2 lines"):
        with_recordings(lines, "ADA", [tone(1)])


def test_voices_are_named_or_chosen() -> None:
    names = ["ADA", "Bo"]
    assert named_values([" bo = low ", ""], names, "voice") == {"Bo": "low"}
    voices, synthesizer = choose_voices(names, {"Bo": "low"}, "auto", "en")
    assert voices == {"Bo": "low", "ADA": "voice 0"} and synthesizer.name == "hum"
    for pair in ("Cy=x", "Bo", "Bo="):
        with pytest.raises(InputError, match=r"NAME=VALUE with one of ADA, Bo"):
            named_values([pair], names, "voice")


def test_silent_recording_is_named() -> None:
    lines = parse_script("A: Hello.")
    with pytest.raises(InputError, match=r"the speech of line 1 \(A: Hello.\) is silent"):
        SpokenScript.of(lines, [(torch.zeros(1, RATE), RATE)])


def test_estimate_is_a_timetable() -> None:
    lines = parse_script(PLAY)
    starts, seconds = estimate(lines)
    assert starts == sorted(starts) and min(seconds) > 0
    assert timetable(lines, starts, seconds).splitlines()[-1] == f"{starts[-1] + seconds[-1]:.1f} s in total"
