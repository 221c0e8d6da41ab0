"""Edits of the recordings of a cast."""

from __future__ import annotations

import json

import pytest
import torch

from bya_core.errors import InputError
from bya_core.scene.dialogue import Dialogue, edit_speeches, parse_dialogue
from bya_core.scene.types import Speech

RATE = 1000
NAMES = ["Ada", "Bo"]


def ramp(seconds: float = 4.0, offset: float = 0.0, gain: float = 0.0) -> Speech:
    """A recording whose sample at t seconds has the value t."""
    return Speech(torch.arange(round(seconds * RATE))[None] / RATE, RATE, offset, gain)


def edit(*voices: dict[str, object], speeches: tuple[Speech | None, ...] | None = None, **more: object):
    dialogue = parse_dialogue(json.dumps({"voices": voices, **more}))
    return edit_speeches((ramp(), ramp(2.0)) if speeches is None else speeches, NAMES, dialogue)


def heard(speech: Speech, seconds: float) -> float:
    """Value of the sample at a time of the video."""
    return float(speech.waveform[0, round((seconds - speech.offset) * RATE)] * 10 ** (speech.gain / 20))


@pytest.mark.parametrize("text", ["", "  ", "{}", '{"voices": []}', '{"voices": [{}, {"clips": null}]}'])
def test_without_edits_the_voices_stay(text: str):
    speeches = (ramp(), None)
    edited = edit_speeches(speeches, NAMES, parse_dialogue(text))
    assert edited.speeches[0] is speeches[0] and edited.speeches[1] is None and not edited.notices


def test_moved_clip():
    (speech, other) = edit(
        {"clips": [{"start": 1.5, "gain": 6}]}, speeches=(ramp(offset=0.5, gain=-2), ramp())
    ).speeches
    assert speech is not None and (speech.offset, speech.gain) == (2.0, 4.0)
    assert torch.equal(speech.waveform, ramp().waveform) and other is not None and other.offset == 0


def test_trimmed_clips_are_placed():
    clips = [{"start": 3, "from": 1, "to": 2}, {"start": 0.5, "from": 2.5, "gain": 20}]
    speech = edit({"clips": clips}).speeches[0]
    assert speech is not None and speech.end == pytest.approx(4.0)
    assert heard(speech, 3.5) == pytest.approx(1.5, abs=1e-3)
    assert heard(speech, 1.5) == pytest.approx(35.0, abs=1e-2)
    assert heard(speech, 2.5) == 0


def test_clips_keep_offset_and_gain_of_the_voice():
    clips = [{"start": -0.5, "from": 1, "to": 2}, {"start": 2, "from": 0, "to": 1}]
    speech = edit({"clips": clips}, speeches=(ramp(offset=1.0, gain=20), None)).speeches[0]
    assert speech is not None and speech.offset == pytest.approx(0.5)
    assert heard(speech, 1.0) == pytest.approx(15, abs=1e-2) and heard(speech, 3.5) == pytest.approx(5, abs=1e-2)


def test_muted_voice():
    edited = edit({"mute": True}, {"clips": []})
    assert edited.speeches == (None, None)
    assert [notice.split(" is ")[0] for notice in edited.notices] == ["The voice of Ada", "The voice of Bo"]


def test_assigned_voices():
    edited = edit({"clips": [{"start": 1}]}, characters=[1, 0])
    first, second = edited.speeches
    assert first is not None and second is not None
    assert (first.end, second.end) == (2.0, 5.0), "Bo has the first recording, with its clips"


def test_edits_of_other_casts():
    assert edit({}, {}, {"mute": True}).notices
    assert not edit({}, {}, {}).notices
    assert edit({"clips": [{}]}, speeches=(None, ramp())).notices
    three = parse_dialogue('{"characters": [1, 0, 2]}')
    assert edit_speeches((ramp(), ramp(2.0)), NAMES, three).speeches[0].end == 2.0
    with pytest.raises(InputError, match="connect the missing characters"):
        edit_speeches((ramp(), ramp()), NAMES, parse_dialogue('{"characters": [2, 0, 1]}'))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not valid JSON"),
        ("[1]", "an object"),
        ('{"clips": []}', "clips"),
        ('{"version": 2}', "version"),
        ('{"voices": [{"clips": [{"gain": 90}]}]}', r"voices\[0\].clips\[0\].gain"),
        ('{"voices": [{"clips": [{"from": 2, "to": 1}]}]}', "an end after the start"),
        ('{"characters": [0, 0]}', "assign one voice"),
        ('{"characters": [1, 2]}', "assign one voice"),
    ],
)
def test_invalid_texts(text: str, problem: str):
    with pytest.raises(InputError, match=problem):
        parse_dialogue(text)


@pytest.mark.parametrize(
    ("clip", "problem"),
    [
        ({"from": 4.5}, "a part of the recording"),
        ({"to": 5}, "a part of the recording"),
        ({"from": 3.999}, "a part of the recording"),
        ({"start": -6}, "before the video starts"),
    ],
)
def test_clips_outside(clip: dict[str, float], problem: str):
    with pytest.raises(InputError, match=problem):
        edit({"clips": [clip]})


def test_rounded_end_is_accepted():
    assert edit({"clips": [{"to": 4.04}]}).speeches[0].end == 4.0


def test_default():
    assert parse_dialogue("") == Dialogue()
