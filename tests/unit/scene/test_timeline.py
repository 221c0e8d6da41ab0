"""Timelines, clips, split dialogues, and notices about recordings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bya_core.errors import InputError
from bya_core.io.media import mix_speeches
from bya_core.scene.loader import load_scene
from bya_core.scene.timeline import (
    FADE,
    Clip,
    Turn,
    assign_turns,
    fade_edges,
    join_clips,
    merge_turns,
    parse_cues,
    parse_rttm,
    parse_timeline,
    read_timeline,
    split_dialogue,
    write_rttm,
)
from bya_core.scene.types import Speech
from tests.fakes import RATE, tone, write_picture, write_wav
from tests.unit.conftest import SceneMaker
from tests.unit.scene.test_loader import DEFAULTS

EXPECTED = [Turn("Ada", 0.5, 2.0), Turn("Bo", 1.75, 3.25)]

RTTM = """;; a remark
SPKR-INFO talk 1 <NA> <NA> <NA> unknown Ada <NA>
SPEAKER talk 1 0.500 1.500 <NA> <NA> Ada <NA> <NA>
SPEAKER talk 1 1.750 1.500 <NA> <NA> Bo <NA> <NA>
"""
SRT = """1
00:00:00,500 --> 00:00:02,000
Ada: Hello: how are you?

2
00:00:01,750 --> 00:00:03,250
- [Bo]: <i>Well</i>, thank you
and you?

3
00:00:04,000 --> 00:00:05,000
[music]
"""
VTT = """WEBVTT - a dialogue

STYLE
::cue { color: white }

NOTE Ada: what a person may read

intro
00:00.500 --> 00:02.000 align:start position:10%
<v Ada>Hello

00:00:01.750 --> 00:00:03.250
<v.loud Bo>Well, <b>thank you</b></v>
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("talk.rttm", RTTM),
        ("talk.srt", SRT),
        ("talk.SRT", SRT.replace("\n", "\r\n")),
        ("talk.vtt", "\ufeff" + VTT),
        ("talk.json", json.dumps([{"speaker": t.speaker, "start": t.start, "end": t.end} for t in EXPECTED[::-1]])),
    ],
)
def test_all_formats_are_read(name, text, tmp_path):
    (tmp_path / name).write_bytes(text.encode())
    assert list(read_timeline(tmp_path / name)) == EXPECTED
    assert list(parse_timeline(text)) == EXPECTED


def test_cue_with_several_speakers():
    assert parse_cues("00:01.000 --> 00:02.000\n- Ada: Yes\n- Bo: No") == [Turn("Ada", 1, 2), Turn("Bo", 1, 2)]
    assert parse_cues("00:01.000 --> 00:02.000\n<v Ada>Yes</v> <v Bo>No</v>") == [Turn("Ada", 1, 2), Turn("Bo", 1, 2)]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a.txt", "Ada", "ending in .rttm, .srt, .vtt or .json"),
        ("a.rttm", "", "has no turns"),
        ("a.rttm", "SPEAKER talk 1 0.5", "line 1 of a.rttm"),
        ("a.rttm", "SPEAKER talk 1 0.5 -1 <NA> <NA> Ada <NA> <NA>", "Ada from 0.5 to -0.5 s"),
        ("a.rttm", "SPEAKER talk 1 x 1 <NA> <NA> Ada <NA> <NA>", "line 1 of a.rttm"),
        ("a.srt", "1\n00:00:01,000 --> 00:00:02,000\nHello", r"cue at 1.00 s in a.srt names no speaker \('Hello'\)"),
        ("a.srt", "1\n0:1 --> 0:2\nAda: Hello", "cue times"),
        ("a.srt", "1\n--> 00:00:02,000\nAda: Hello", "cue times"),
        ("a.srt", "1\n00:00:03,000 --> 00:00:02,000\nAda: Hello", "Ada from 3 to 2 s"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "{}", "a list of turns"),
        ("a.json", "[]", "has no turns"),
        ("a.json", '[{"speaker": "Ada", "start": 0}]', r'a.json\[0\] has no "end"'),
        ("a.srt", "1\n00:00:01,000 --> 00:00:02,000\nJ\udcf6rg: Ja", "not UTF-8"),
        ("a.json", '[{"speaker": "Ada", "start": 2, "end": 2}]', "Ada from 2 to 2 s"),
    ],
)
def test_invalid_timeline_raises(name, text, problem, tmp_path):
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=problem):
        read_timeline(tmp_path / name)


def test_other_rttm_records_are_ignored():
    assert parse_rttm("LEXEME talk 1 0.5 0.2 hello lex Ada <NA>\n\n") == []


def test_turns_are_assigned_to_characters():
    turns = [Turn("ADA", 0, 1), Turn("SPEAKER_01", 1, 2)]
    assert assign_turns(turns, ["Ada", "Bo"], {"Bo": "speaker_01"}) == [Turn("Ada", 0, 1), Turn("Bo", 1, 2)]
    with pytest.raises(InputError, match=r'the speaker "Adda" at 3.00 s .* is not a character; .* use "Ada"'):
        assign_turns([Turn("Adda", 3, 4)], ["Ada", "Bo"])


def test_adjacent_turns_are_merged():
    turns = [Turn("Ada", 0, 1), Turn("Bo", 0.9, 2), Turn("Ada", 1.01, 2), Turn("Ada", 1.5, 1.8), Turn("Ada", 3, 4)]
    assert merge_turns(turns) == [Turn("Ada", 0, 2), Turn("Bo", 0.9, 2), Turn("Ada", 3, 4)]


def jump(waveform: torch.Tensor) -> float:
    """Largest difference of neighboring samples, including the silence before and after."""
    padded = torch.nn.functional.pad(waveform, (1, 1))
    return float(padded.diff(dim=1).abs().max())


def test_cuts_are_faded():
    """A low tone cut at its peak: without a fade the waveform jumps from 0 to 0.3."""
    low_tone = torch.from_numpy(tone(1.0, 50.0)).float()[None]
    piece = low_tone[:, RATE // 200 : -RATE // 200]
    slope = jump(low_tone)
    assert jump(piece) > 20 * slope
    faded = fade_edges(piece, RATE)
    assert jump(faded) < 2 * slope
    inside = slice(round(FADE * RATE), -round(FADE * RATE))
    assert torch.equal(faded[:, inside], piece[:, inside])
    speeches, _ = split_dialogue(low_tone, RATE, [Turn("Ada", 0.105, 0.505), Turn("Bo", 0.505, 0.805)], ["Ada", "Bo"])
    for speech in speeches:
        assert speech is not None and jump(speech.waveform) < 2 * slope


def test_fade_of_a_short_clip():
    short = fade_edges(torch.ones(1, 7), RATE)
    assert short.shape == (1, 7) and short.max() <= 1 and short[0, 3] == 1
    assert fade_edges(torch.ones(1, 1), RATE).tolist() == [[1.0]]


def test_clips_are_resampled_and_placed():
    low = torch.from_numpy(tone(0.5, 200.0, 8000)).float()[None]
    high = torch.from_numpy(tone(0.5, 400.0, 44100)).float()[None].expand(2, -1)
    speech = join_clips([Clip(low, 8000, 0.25), Clip(high, 44100, 1.0, gain=-6.0)], offset=0.5, gain=3.0)
    assert (speech.sample_rate, speech.waveform.shape[0], speech.offset, speech.gain) == (44100, 2, 0.5, 3.0)
    assert speech.waveform.shape[1] == round(1.5 * 44100) and speech.end == pytest.approx(2.0)

    def level(start: float, end: float) -> float:
        return float(speech.waveform[:, round(start * 44100) : round(end * 44100)].square().mean().sqrt())

    loud = 0.3 / 2**0.5
    assert level(0, 0.24) == 0 and level(0.76, 0.99) < 1e-3
    assert level(0.3, 0.7) == pytest.approx(loud, rel=0.02)
    assert level(1.1, 1.4) == pytest.approx(loud * 10 ** (-6 / 20), rel=0.02)
    assert torch.equal(speech.waveform[0, :44100], speech.waveform[1, :44100])


def test_overlapping_clips_are_added():
    ones = torch.ones(1, RATE)
    speech = join_clips([Clip(ones, RATE, 0), Clip(ones, RATE, 0.5)])
    assert speech.waveform[0, round(0.75 * RATE)] == 2 and speech.waveform[0, round(0.25 * RATE)] == 1


def test_split_dialogue_sums_to_the_recording():
    """Except for the fades."""
    rng = np.random.default_rng(0)
    whole = torch.from_numpy(rng.uniform(-0.1, 0.1, 2 * RATE)).float()[None]
    turns = [Turn("Ada", 0, 0.8), Turn("Bo", 0.8, 1.5), Turn("Ada", 1.5, 2)]
    speeches, notices = split_dialogue(whole, RATE, turns, ["Ada", "Bo", "Cleo"])
    assert speeches[2] is None and notices == []
    mixed = mix_speeches(speeches, 2.0)
    assert mixed is not None
    border = torch.zeros(2 * RATE, dtype=torch.bool)
    for second in (0, 0.8, 1.5, 2):
        border[max(0, round((second - FADE) * RATE)) : round((second + FADE) * RATE)] = True
    assert torch.equal(mixed[0][0, ~border], whole[0, ~border])


def test_overlapping_turns_and_turns_outside_the_recording():
    whole = torch.ones(1, 2 * RATE)
    speeches, (notice,) = split_dialogue(whole, RATE, [Turn("Ada", 0, 1.2), Turn("Bo", 1, 2)], ["Ada", "Bo"])
    assert all(speech is not None and speech.waveform[0, round(1.1 * RATE)] == 1 for speech in speeches)
    assert "Ada and Bo overlap for 0.20 s" in notice
    speeches, (notice,) = split_dialogue(whole, RATE, [Turn("Ada", 1, 2.5)], ["Ada"])
    assert "ends at 2.50 s, the dialogue at 2.00 s" in notice
    assert speeches[0] is not None and speeches[0].end == 2.0
    assert split_dialogue(whole, RATE, [Turn("Ada", 1, 2.02)], ["Ada"])[1] == []  # rounding
    with pytest.raises(InputError, match="starts at 2.10 s"):
        split_dialogue(whole, RATE, [Turn("Ada", 2.1, 3)], ["Ada"])


CAST = [{"name": "Ada", "image": "ada.png"}, {"name": "Bo", "image": "bo.png"}]
CLEO = {"name": "Cleo", "image": "cleo.png"}
TURNS = [{"speaker": "Ada", "start": 0, "end": 1}, {"speaker": "Bo", "start": 1, "end": 2}]


@pytest.fixture
def dialogue(make_scene: SceneMaker, tmp_path: Path) -> SceneMaker:
    """A scene with one recording: 200 Hz (Ada, 0 to 0.25 s), then 800 Hz (Bo, 0.25 to 0.5 s)."""
    folder = tmp_path / "scene"
    write_wav(folder / "talk.wav", np.concatenate([tone(0.25, 200.0), tone(0.25, 800.0)]))
    (folder / "talk.srt").write_text(
        "1\n00:00:00,000 --> 00:00:00,250\nAda: Hi\n\n2\n00:00:00,250 --> 00:00:00,500\nBo: Ho\n"
    )
    write_picture(folder / "cleo.png", seed=7)

    def make(**given: Any) -> Path:
        return make_scene(**{"characters": CAST, "dialogue": "talk.wav", "timeline": "talk.srt"} | given)

    return make


def pitch(speech: Speech | None) -> float:
    """Loudest frequency in Hz."""
    assert speech is not None
    spectrum = np.abs(np.fft.rfft(speech.waveform[0].numpy()))
    return float(spectrum.argmax() * speech.sample_rate / speech.waveform.shape[1])


def test_dialogue_is_split(dialogue):
    scene = load_scene(dialogue(), DEFAULTS)
    assert scene.num_frames == 13 and scene.notices == ()
    assert pitch(scene.speeches[0]) == pytest.approx(200, abs=5)
    assert pitch(scene.speeches[1]) == pytest.approx(800, abs=5)
    sound = mix_speeches(scene.sounds, scene.seconds)
    assert sound is not None  # the original recording, without fades
    expected = torch.from_numpy(np.concatenate([tone(0.25, 200.0), tone(0.25, 800.0)])).float()
    torch.testing.assert_close(sound[0][0, : RATE // 2], expected, atol=1e-4, rtol=0)


def test_turns_in_the_scene_file(dialogue):
    turns = [{"speaker": "S1", "start": 0.25, "end": 0.5, "text": "Hi"}, {"speaker": "bo", "start": 0, "end": 0.25}]
    scene = load_scene(dialogue(timeline=turns, characters=[CAST[0] | {"speaker": "S1"}, CAST[1]]), DEFAULTS)
    assert pitch(scene.speeches[0]) > 700 > pitch(scene.speeches[1])


def test_third_character_of_a_dialogue(dialogue):
    """A listener without turns, or a speaker with a separate recording, which is mixed in."""
    scene = load_scene(dialogue(characters=[*CAST, CLEO]), DEFAULTS)
    (notice,) = scene.notices
    assert scene.speeches[2] is None and notice.startswith("Cleo has no turns")
    scene = load_scene(dialogue(characters=[*CAST, CLEO | {"speech": "ada.wav"}]), DEFAULTS)
    assert scene.notices == () and scene.sounds == scene.speeches and pitch(scene.speeches[2]) > 0


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"timeline": None}, "a dialogue without a timeline"),
        ({"timeline": "no.srt"}, r"the timeline .*no\.srt does not exist"),
        ({"dialogue": "no.wav"}, r"no\.wav does not exist"),
        ({"timeline": [TURNS[0] | {"speaker": "Cleo"}]}, '"Cleo" at 0.00 s .* not a character; expected "Ada" or "Bo"'),
        ({"timeline": [TURNS[0] | {"start": 3, "end": 4}]}, "a turn of Ada starts at 3.00 s"),
        ({"characters": [CAST[0] | {"speech": "ada.wav"}, CAST[1]]}, "Ada has a speech and turns"),
        ({"characters": [CAST[0] | {"offset": 1}, CAST[1]]}, "Ada has an offset or a gain"),
        (
            {"dialogue": None, "timeline": None, "characters": [CAST[0] | {"speaker": "S1"}, CAST[1]]},
            'Ada has the speaker "S1" but there is no timeline',
        ),
        ({"characters": [CAST[0] | {"speaker": "Bo"}, CAST[1]]}, 'two characters named "bo"'),
        ({"characters": [CAST[0] | {"speech": [{"file": "no.wav"}]}, CAST[1]]}, r"no\.wav does not exist"),
        (
            {"characters": [CAST[0] | {"speech": [{"file": "ada.wav", "from": 0.2, "to": 0.1}]}, CAST[1]]},
            "clip 1 of Ada from 0.2 to 0.1 s",
        ),
        (
            {"characters": [CAST[0] | {"speech": [{"file": "ada.wav"}, {"file": "ada.wav", "to": 9}]}, CAST[1]]},
            r"clip 2 of Ada from 0 to 9 s of a recording of 0\.30 s",
        ),
    ],
)
def test_invalid_dialogue_raises(given, problem, dialogue):
    with pytest.raises(InputError, match=problem):
        load_scene(dialogue(**given), DEFAULTS)


def test_clips_in_a_scene(make_scene, tmp_path):
    write_wav(tmp_path / "scene" / "long.wav", np.concatenate([tone(0.3, 200.0), tone(0.2, 800.0)]))
    clips = [{"file": "ada.wav"}, {"file": "long.wav", "start": 0.4, "from": 0.3, "to": 0.5, "gain": 6}]
    cast = [CAST[0] | {"speech": clips, "offset": 0.05}, CAST[1]]
    speech = load_scene(make_scene(characters=cast), DEFAULTS).speeches[0]
    assert speech is not None and speech.end == pytest.approx(0.65)
    late = Speech(speech.waveform[:, round(0.42 * RATE) :], RATE)
    assert pitch(late) == pytest.approx(800, abs=6)
    assert late.waveform.abs().max() == pytest.approx(0.3 * 2, rel=0.01)
    assert speech.waveform[:, round(0.31 * RATE) : round(0.39 * RATE)].abs().max() == 0


def two_recordings(make_scene: SceneMaker, folder: Path, ada: np.ndarray, bo: np.ndarray, **given: Any) -> str:
    """All notices of a scene of 17 frames."""
    write_wav(folder / "scene" / "ada.wav", ada)
    write_wav(folder / "scene" / "bo.wav", bo)
    return "\n".join(load_scene(make_scene(length=17, **given), DEFAULTS).notices)


def test_swapped_recordings_are_detected(make_scene, tmp_path):
    first = np.concatenate([tone(0.95), np.zeros(RATE)])
    second = np.concatenate([np.zeros(RATE), tone(0.95)])
    notices = two_recordings(make_scene, tmp_path, first, second, timeline=TURNS)
    assert "swapped" not in notices and "silent" not in notices
    notices = two_recordings(make_scene, tmp_path, second, first, timeline=TURNS)
    assert notices.count("may be swapped") == 1 and "Ada and Bo" in notices
    assert "swapped" not in two_recordings(make_scene, tmp_path, second, first)
    cast = [CAST[0] | {"speech": "bo.wav"}, CAST[1] | {"speech": "ada.wav"}]
    assert "may be swapped: Ada has bo.wav" in two_recordings(make_scene, tmp_path, tone(1), tone(2), characters=cast)


def test_missing_speech_in_turns_is_reported(make_scene, tmp_path):
    late = np.concatenate([tone(0.5), np.zeros(RATE), tone(0.25)])
    notices = two_recordings(make_scene, tmp_path, tone(2.0), late, timeline=TURNS)
    assert "Bo is silent in 74 %" in notices and "Ada is silent" not in notices
    cast = [CAST[0] | {"speech": "ada.wav"}, CAST[1]]
    assert "Bo has turns in the timeline but no recording" in "\n".join(
        load_scene(make_scene(characters=cast, timeline=TURNS), DEFAULTS).notices
    )


def test_cut_speech_is_reported(make_scene, tmp_path):
    notices = two_recordings(make_scene, tmp_path, tone(1.0), tone(0.7))
    assert "Ada ends at 1.00 s, the video at 0.68 s" in notices and notices.count("are cut") == 1


def test_rttm_is_read_as_it_was_written() -> None:
    assert parse_rttm(write_rttm(EXPECTED, "my talk")) == EXPECTED
    assert [turn.speaker for turn in parse_rttm(write_rttm([Turn("Ada L", 0.0, 1.0)], "talk"))] == ["Ada_L"]
