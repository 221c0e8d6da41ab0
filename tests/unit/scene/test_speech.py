"""Memory of the speech of all characters together."""

from __future__ import annotations

from pathlib import Path

import pytest

from bya_core.errors import InputError
from bya_core.scene import speech
from bya_core.scene.schema import CharacterEntry, SceneFile, TurnEntry
from tests.fakes import RATE, tone, write_wav

NAMES = ("Ada", "Bo")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recording of one second; three halves of a second of speech fit in memory."""
    write_wav(tmp_path / "talk.wav", tone(1.0))
    monkeypatch.setattr(speech, "MAX_SAMPLES", RATE * 3 // 2)
    return tmp_path


def recordings(count: int) -> SceneFile:
    cast = [CharacterEntry(name=name, image="face.png", speech="talk.wav") for name in NAMES[:count]]
    return SceneFile(prompt="people", characters=cast)


def dialogue(end: float) -> SceneFile:
    turns = [TurnEntry(speaker=name, start=0.0, end=end) for name in NAMES]
    cast = [CharacterEntry(name=name, image="face.png") for name in NAMES]
    return SceneFile(prompt="people", characters=cast, dialogue="talk.wav", timeline=turns)


def test_recordings_have_to_fit_in_memory_together(folder):
    assert len(speech.read_speeches(recordings(1), folder).speeches) == 1
    with pytest.raises(InputError, match="all characters"):
        speech.read_speeches(recordings(2), folder)


def test_a_shorter_length_needs_less_memory(folder, monkeypatch):
    monkeypatch.setattr(speech, "MARGIN", 0.1)
    assert len(speech.read_speeches(recordings(2), folder, seconds=0.5).speeches) == 2


def test_parts_of_a_dialogue_have_to_fit_in_memory_together(folder):
    assert len(speech.read_speeches(dialogue(0.7), folder).speeches) == 2
    with pytest.raises(InputError, match="all characters"):
        speech.read_speeches(dialogue(1.0), folder)
