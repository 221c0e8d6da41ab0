"""Written dialogues: lines, cues, durations, and when each line is said."""

from __future__ import annotations

import pytest
import torch

from bya_core.errors import InputError
from bya_core.scene.script import (
    GAP,
    GAPS,
    LEAD_IN,
    SAME_SPEAKER,
    estimate_seconds,
    own_overlaps,
    parse_script,
    schedule,
    speakers,
    subtitles,
    trim_silence,
)
from bya_core.scene.timeline import parse_cues

PLAY = """\ufeff# A play
ADA: Have you seen my umbrella?
Bo (quietly): It is raining,
  isn't it: really?

(He looks out of the window.)
(pause 1,5)
Ada: It is. (sighs) And I am late.
(overlap 0.4)
BO: Wait!
(at 20)
BO: Good.
"""


def test_lines_names_and_cues() -> None:
    lines = parse_script(PLAY)
    assert speakers(lines) == ["ADA", "Bo"]
    assert [(line.speaker, line.text, line.cue, line.value) for line in lines] == [
        ("ADA", "Have you seen my umbrella?", None, 0.0),
        ("Bo", "It is raining, isn't it: really?", None, 0.0),
        ("ADA", "It is. And I am late.", "pause", 1.5),
        ("Bo", "Wait!", "overlap", 0.4),
        ("Bo", "Good.", "at", 20.0),
    ]


def test_other_spellings_of_names_brackets_and_cues() -> None:
    text = (
        "（pause 2）\n阿达（轻声）：你好\n(Pause.)\n(at the 2nd table)\nBO : I (he says (low) [x]) am\n"
        "(overlap 1 sec)\nBO: Ho"
    )
    lines = parse_script(text)
    assert [(line.speaker, line.text) for line in lines] == [("阿达", "你好"), ("BO", "I am"), ("BO", "Ho")]
    assert [(line.cue, line.value) for line in lines] == [("pause", 2.0), (None, 0.0), ("overlap", 1.0)]


def test_schedule_of_cues_and_gaps() -> None:
    lines = parse_script("A: Why?\nB: So.\nB: Yes -\nA: No.\n(pause 2)\nA: Go.\n(overlap 9)\nB: Hm.\n(at 30)\nA: End.")
    starts = schedule(lines, [1.0] * len(lines))
    expected = [LEAD_IN]
    expected.append(expected[-1] + 1 + GAPS["?"])
    expected.append(expected[-1] + 1 + SAME_SPEAKER)
    expected.append(expected[-1] + 1 + GAPS["-"])
    expected.append(expected[-1] + 1 + 2)
    expected += [expected[-1], 30.0]  # an overlap reaches back to the start of the last line at most
    assert starts == pytest.approx(expected) and GAPS["?"] > GAP
    assert own_overlaps(lines, starts, [1.0] * len(lines)) == []
    assert "A says line 4 before the end of line 1" in own_overlaps(lines, starts, [40.0] * len(lines))[0]
    inside = parse_script("A: Long.\n(overlap 3)\nB: Hm.\nA: More.")
    assert schedule(inside, [9.0, 1.0, 1.0]) == pytest.approx([LEAD_IN, LEAD_IN + 6, LEAD_IN + 9 + GAP])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 lines"),
        ("# only a comment", "0 lines"),
        ("Hello.", "line 1 of .* has no name"),
        ("A: Hi.\n(pause 1)\nand more", "line 3 of .* has no name"),
        ("A: Hi.\n(pause 1)", "cue without a line"),
        ("A: Hi.\n(pause 1)\n\n(at 9)\nB: Ho.", "lines 2 and 4 of .* are two cues"),
        ("A: (nods)", "line 1 of .* has 0 letters"),
        ("A: x\n" * 1001, "1001 lines"),
        ("(at 99999)\nA: Hi.", "99999"),
        ("(pause -1)\nA: Hi.", "line 1 of .*pause -1"),
        ("(at 1:30)\nA: Hi.", "line 1 of .*at 1:30"),
        ("A: " + "(" * 200_000, "200003 letters"),
        ("(" * 200_000, "200000 letters"),
        ("A" + " " * 200_000 + "x", "line 1 of .* has no name"),
        ("A: Hi.\n" + "  more\n" * 200_000, "line 1 of .* letters"),
    ],
)
def test_invalid_scripts_are_one_sentence(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_script(text)


def test_dialogue_that_is_too_long() -> None:
    with pytest.raises(InputError, match="at most 36000"):
        schedule(parse_script("A: x\nB: y"), [20_000.0, 20_000.0])


def test_estimates_follow_the_length_of_the_text() -> None:
    short, long = (
        estimate_seconds("Good morning."),
        estimate_seconds("Good morning, my dear friend, how are you today?"),
    )
    assert 0.5 < short < 1.5 < long < 5
    assert estimate_seconds("1984") > estimate_seconds("19") > 0 and estimate_seconds("你好，今天天气很好") > 1
    assert estimate_seconds("Wait. Wait.") > estimate_seconds("Wait Wait")


def test_silence_around_the_speech_is_removed() -> None:
    waveform = torch.zeros(1, 16_000)
    waveform[:, 4000:8000] = 0.5
    assert trim_silence(waveform, 16_000).shape[1] == pytest.approx(4000 + 2 * 480, abs=2)
    for samples in (100, 0):
        with pytest.raises(InputError, match="silent"):
            trim_silence(torch.zeros(1, samples), 16_000)


def test_subtitles_are_read_as_a_timeline() -> None:
    lines = parse_script("A: One.\n(at 0.1)\nB: Two.")
    turns = parse_cues(subtitles(lines, [3661.5, 0.1], [1.0, 2.0]))
    assert [(turn.speaker, turn.start, turn.end) for turn in turns] == [("B", 0.1, 2.1), ("A", 3661.5, 3662.5)]
