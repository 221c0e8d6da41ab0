"""Who speaks when: timelines, clips, a dialogue cut apart, and what is said about voices that do not fit."""

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
    read_timeline,
    split_dialogue,
)
from bya_core.scene.types import Scene, Speech
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
def test_all_formats_say_the_same(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode())
    assert list(read_timeline(tmp_path / name)) == EXPECTED


def test_a_cue_of_several_voices() -> None:
    assert parse_cues("00:01.000 --> 00:02.000\n- Ada: Yes\n- Bo: No") == [Turn("Ada", 1, 2), Turn("Bo", 1, 2)]
    assert parse_cues("00:01.000 --> 00:02.000\n<v Ada>Yes</v> <v Bo>No</v>") == [Turn("Ada", 1, 2), Turn("Bo", 1, 2)]


@pytest.mark.parametrize(
    ("name", "text", "said"),
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
        ("a.json", '[{"speaker": "Ada", "start": 2, "end": 2}]', "Ada from 2 to 2 s"),
    ],
)
def test_timelines_that_cannot_be_read(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        read_timeline(tmp_path / name)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_a_timeline_of_other_letters(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_bytes("1\n00:00:01,000 --> 00:00:02,000\nJörg: Ja".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        read_timeline(tmp_path / "a.srt")


def test_names_of_the_timeline_are_those_of_characters() -> None:
    turns = [Turn("ADA", 0, 1), Turn("SPEAKER_01", 1, 2)]
    assert assign_turns(turns, ["Ada", "Bo"], {"Bo": "speaker_01"}) == [Turn("Ada", 0, 1), Turn("Bo", 1, 2)]
    with pytest.raises(InputError, match=r'the speaker "Adda" at 3.00 s .* is not a character; .* use "Ada"'):
        assign_turns([Turn("Adda", 3, 4)], ["Ada", "Bo"])


def test_turns_that_touch_are_one() -> None:
    turns = [Turn("Ada", 0, 1), Turn("Bo", 0.9, 2), Turn("Ada", 1.01, 2), Turn("Ada", 1.5, 1.8), Turn("Ada", 3, 4)]
    assert merge_turns(turns) == [Turn("Ada", 0, 2), Turn("Bo", 0.9, 2), Turn("Ada", 3, 4)]


def jump(waveform: torch.Tensor) -> float:
    """Largest step from one sample to the next, silence before and after counted in."""
    padded = torch.nn.functional.pad(waveform, (1, 1))
    return float(padded.diff(dim=1).abs().max())


def test_cuts_do_not_click() -> None:
    """Cut at the crest of a deep tone: without fades the waveform would leap from 0 to 0.3."""
    deep = torch.from_numpy(tone(1.0, 50.0)).float()[None]
    piece = deep[:, RATE // 200 : -RATE // 200]
    steepest = jump(deep)
    assert jump(piece) > 20 * steepest
    soft = fade_edges(piece, RATE)
    assert jump(soft) < 2 * steepest
    inside = slice(round(FADE * RATE), -round(FADE * RATE))
    assert torch.equal(soft[:, inside], piece[:, inside])
    speeches, _ = split_dialogue(deep, RATE, [Turn("Ada", 0.105, 0.505), Turn("Bo", 0.505, 0.805)], ["Ada", "Bo"])
    for speech in speeches:
        assert speech is not None and jump(speech.waveform) < 2 * steepest


def test_a_piece_shorter_than_its_fades_stays_a_piece() -> None:
    short = fade_edges(torch.ones(1, 7), RATE)
    assert short.shape == (1, 7) and short.max() <= 1 and short[0, 3] == 1
    assert fade_edges(torch.ones(1, 1), RATE).tolist() == [[1.0]]


def test_clips_of_other_rates_and_channels_sound_at_their_time() -> None:
    low = torch.from_numpy(tone(0.5, 200.0, 8000)).float()[None]
    high = torch.from_numpy(tone(0.5, 400.0, 44100)).float()[None].expand(2, -1)
    speech = join_clips([Clip(low, 8000, 0.25), Clip(high, 44100, 1.0, gain=-6.0)], offset=0.5, gain=3.0)
    assert (speech.sample_rate, speech.waveform.shape[0], speech.offset, speech.gain) == (44100, 2, 0.5, 3.0)
    assert speech.waveform.shape[1] == round(1.5 * 44100) and speech.end == pytest.approx(2.0)

    def heard(start: float, end: float) -> float:
        return float(speech.waveform[:, round(start * 44100) : round(end * 44100)].square().mean().sqrt())

    loud = 0.3 / 2**0.5
    assert heard(0, 0.24) == 0 and heard(0.76, 0.99) < 1e-3
    assert heard(0.3, 0.7) == pytest.approx(loud, rel=0.02)
    assert heard(1.1, 1.4) == pytest.approx(loud * 10 ** (-6 / 20), rel=0.02)
    assert torch.equal(speech.waveform[0, :44100], speech.waveform[1, :44100])


def test_clips_may_overlap() -> None:
    ones = torch.ones(1, RATE)
    speech = join_clips([Clip(ones, RATE, 0), Clip(ones, RATE, 0.5)])
    assert speech.waveform[0, round(0.75 * RATE)] == 2 and speech.waveform[0, round(0.25 * RATE)] == 1


def test_a_dialogue_is_cut_without_loss() -> None:
    """Turns of the whole recording, one after the other, give it back but for the fades."""
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


def test_where_both_speak_both_are_heard_and_it_is_told() -> None:
    whole = torch.ones(1, 2 * RATE)
    speeches, notices = split_dialogue(whole, RATE, [Turn("Ada", 0, 1.2), Turn("Bo", 1, 2)], ["Ada", "Bo"])
    assert all(speech is not None and speech.waveform[0, round(1.1 * RATE)] == 1 for speech in speeches)
    assert notices == ["The turns of Ada and Bo overlap for 0.20 s: both are driven by the mixed speech there."]


def test_turns_outside_the_recording() -> None:
    whole = torch.ones(1, 2 * RATE)
    speeches, notices = split_dialogue(whole, RATE, [Turn("Ada", 1, 2.5)], ["Ada"])
    assert notices == ["A turn of Ada ends at 2.50 s, the dialogue at 2.00 s."]
    assert speeches[0] is not None and speeches[0].end == 2.0
    assert split_dialogue(whole, RATE, [Turn("Ada", 1, 2.02)], ["Ada"])[1] == []  # rounding
    with pytest.raises(InputError, match=r"a turn of Ada starts at 2.10 s, the dialogue ends at 2.00 s"):
        split_dialogue(whole, RATE, [Turn("Ada", 2.1, 3)], ["Ada"])


# ------------------------------------------------------------------------------------------------ in scene files


@pytest.fixture
def dialogue(make_scene: SceneMaker, tmp_path: Path) -> SceneMaker:
    """A scene whose one recording holds a low voice (0 to 0.25 s) and a high one (0.25 to 0.5 s)."""
    folder = tmp_path / "scene"
    write_wav(folder / "talk.wav", np.concatenate([tone(0.25, 200.0), tone(0.25, 800.0)]))
    (folder / "talk.srt").write_text(
        "1\n00:00:00,000 --> 00:00:00,250\nAda: Hi\n\n2\n00:00:00,250 --> 00:00:00,500\nBo: Ho\n"
    )
    write_picture(folder / "cleo.png", seed=7)

    def make(**given: Any) -> Path:
        cast = [{"name": name, "image": f"{name.lower()}.png"} for name in ("Ada", "Bo")]
        return make_scene(**{"characters": cast, "dialogue": "talk.wav", "timeline": "talk.srt"} | given)

    return make


def pitch(speech: Speech | None) -> float:
    """Loudest frequency in Hz."""
    assert speech is not None
    spectrum = np.abs(np.fft.rfft(speech.waveform[0].numpy()))
    return float(spectrum.argmax() * speech.sample_rate / speech.waveform.shape[1])


def test_each_gets_their_turns_of_the_dialogue(dialogue: SceneMaker) -> None:
    scene = load_scene(dialogue(), DEFAULTS)
    assert scene.num_frames == 13 and scene.notices == ()
    assert pitch(scene.speeches[0]) == pytest.approx(200, abs=5)
    assert pitch(scene.speeches[1]) == pytest.approx(800, abs=5)
    sound = mix_speeches(scene.sounds, scene.seconds)
    assert sound is not None  # the whole recording, nothing fade_edges inside
    torch.testing.assert_close(
        sound[0][0, : RATE // 2],
        torch.from_numpy(np.concatenate([tone(0.25, 200.0), tone(0.25, 800.0)])).float(),
        atol=1e-4,
        rtol=0,
    )


def test_turns_in_the_scene_itself(dialogue: SceneMaker) -> None:
    turns = [
        {"speaker": "S1", "start": 0.25, "end": 0.5, "text": "Hi"},
        {"speaker": "bo", "start": 0, "end": 0.25},
    ]
    cast = [{"name": "Ada", "image": "ada.png", "speaker": "S1"}, {"name": "Bo", "image": "bo.png"}]
    scene = load_scene(dialogue(timeline=turns, characters=cast), DEFAULTS)
    assert pitch(scene.speeches[0]) > 700 > pitch(scene.speeches[1])


def test_who_has_no_turn_listens(dialogue: SceneMaker) -> None:
    cast = [{"name": name, "image": f"{name.lower()}.png"} for name in ("Ada", "Bo", "Cleo")]
    scene = load_scene(dialogue(characters=cast), DEFAULTS)
    assert scene.speeches[2] is None
    assert scene.notices == ("Cleo has no turns in the timeline and is treated as a listener.",)


def test_a_voice_beside_the_dialogue_is_mixed_in(dialogue: SceneMaker) -> None:
    cast = [{"name": name, "image": f"{name.lower()}.png"} for name in ("Ada", "Bo", "Cleo")]
    cast[2]["speech"] = "ada.wav"
    scene = load_scene(dialogue(characters=cast), DEFAULTS)
    assert scene.notices == () and scene.sounds == scene.speeches and pitch(scene.speeches[2]) > 0


CAST = [{"name": "Ada", "image": "ada.png"}, {"name": "Bo", "image": "bo.png"}]
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no timeline": ({"timeline": None}, "a dialogue without a timeline"),
    "missing timeline": ({"timeline": "no.srt"}, r"the timeline .*no\.srt does not exist"),
    "missing dialogue": ({"dialogue": "no.wav"}, r"no\.wav does not exist"),
    "no turns": ({"timeline": []}, "timeline has 0 entries; expected at least 1"),
    "name that nobody has": (
        {"timeline": [{"speaker": "Cleo", "start": 0, "end": 1}]},
        r'the speaker "Cleo" at 0.00 s of the timeline is not a character; expected "Ada" or "Bo"',
    ),
    "unknown key of a turn": (
        {"timeline": [{"speaker": "Ada", "start": 0, "ende": 1}]},
        r'timeline\[0\] has the unknown key "ende".*use "end"',
    ),
    "turn after the end": (
        {"timeline": [{"speaker": "Ada", "start": 3, "end": 4}]},
        r"a turn of Ada starts at 3.00 s, the dialogue ends at 0.50 s",
    ),
    "speech and turns": ({"characters": [CAST[0] | {"speech": "ada.wav"}, CAST[1]]}, "Ada has a speech and turns"),
    "offset of a turn": ({"characters": [CAST[0] | {"offset": 1}, CAST[1]]}, "Ada has an offset or a gain"),
    "speaker without timeline": (
        {"dialogue": None, "timeline": None, "characters": [CAST[0] | {"speaker": "S1"}, CAST[1]]},
        'Ada has the speaker "S1" but there is no timeline',
    ),
    "two of one speaker": ({"characters": [CAST[0] | {"speaker": "Bo"}, CAST[1]]}, 'two characters named "bo"'),
    "no clips": ({"characters": [CAST[0] | {"speech": []}]}, "speech has 0 entries"),
    "unknown key of a clip": (
        {"characters": [CAST[0] | {"speech": [{"file": "ada.wav", "begin": 1}]}]},
        r'characters\[0\].speech\[0\] has the unknown key "begin"; expected one of file, start, gain, from, to',
    ),
    "missing clip": ({"characters": [CAST[0] | {"speech": [{"file": "no.wav"}]}, CAST[1]]}, r"no\.wav does not exist"),
    "clip that ends before it begins": (
        {"characters": [CAST[0] | {"speech": [{"file": "ada.wav", "from": 0.2, "to": 0.1}]}, CAST[1]]},
        "clip 1 of Ada from 0.2 to 0.1 s",
    ),
    "clip outside its recording": (
        {"characters": [CAST[0] | {"speech": [{"file": "ada.wav"}, {"file": "ada.wav", "to": 9}]}, CAST[1]]},
        r"clip 2 of Ada from 0 to 9 s of a recording of 0\.30 s",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_one_clear_sentence(name: str, dialogue: SceneMaker) -> None:
    given, said = BAD[name]
    with pytest.raises(InputError, match=said) as caught:
        load_scene(dialogue(**given), DEFAULTS)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_clips_in_a_scene(make_scene: SceneMaker, tmp_path: Path) -> None:
    write_wav(tmp_path / "scene" / "long.wav", np.concatenate([tone(0.3, 200.0), tone(0.2, 800.0)]))
    clips = [{"file": "ada.wav"}, {"file": "long.wav", "start": 0.4, "from": 0.3, "to": 0.5, "gain": 6}]
    cast = [CAST[0] | {"speech": clips, "offset": 0.05}, CAST[1]]
    speech = load_scene(make_scene(characters=cast), DEFAULTS).speeches[0]
    assert speech is not None and speech.end == pytest.approx(0.65)
    late = Speech(speech.waveform[:, round(0.42 * RATE) :], RATE)
    assert pitch(late) == pytest.approx(800, abs=6)
    assert late.waveform.abs().max() == pytest.approx(0.3 * 2, rel=0.01)
    assert speech.waveform[:, round(0.31 * RATE) : round(0.39 * RATE)].abs().max() == 0


# ------------------------------------------------------------------------------------------------ warnings

TURNS = [{"speaker": "Ada", "start": 0, "end": 1}, {"speaker": "Bo", "start": 1, "end": 2}]


def two_recordings(make_scene: SceneMaker, folder: Path, ada: np.ndarray, bo: np.ndarray, **given: Any) -> Scene:
    write_wav(folder / "scene" / "ada.wav", ada)
    write_wav(folder / "scene" / "bo.wav", bo)
    return load_scene(make_scene(length=17, **given), DEFAULTS)


def test_recordings_that_look_swapped(make_scene: SceneMaker, tmp_path: Path) -> None:
    first = np.concatenate([tone(0.95), np.zeros(RATE)])
    second = np.concatenate([np.zeros(RATE), tone(0.95)])
    right = two_recordings(make_scene, tmp_path, first, second, timeline=TURNS)
    assert not any("swapped" in notice or "silent" in notice for notice in right.notices)
    wrong = two_recordings(make_scene, tmp_path, second, first, timeline=TURNS)
    found = [notice for notice in wrong.notices if "may be swapped" in notice]
    assert found == ["The recordings of Ada and Bo may be swapped: each is active in the turns of the other."]
    without = two_recordings(make_scene, tmp_path, second, first)
    assert not any("swapped" in notice for notice in without.notices)


def test_recordings_named_after_each_other(make_scene: SceneMaker) -> None:
    cast = [CAST[0] | {"speech": "bo.wav"}, CAST[1] | {"speech": "ada.wav"}]
    notices = load_scene(make_scene(characters=cast), DEFAULTS).notices
    assert notices == ("The recordings may be swapped: Ada has bo.wav, Bo has ada.wav.",)


def test_a_recording_that_is_silent_when_it_is_their_turn(make_scene: SceneMaker, tmp_path: Path) -> None:
    talk = tone(2.0)
    late = np.concatenate([tone(0.5), np.zeros(RATE), tone(0.25)])
    notices = two_recordings(make_scene, tmp_path, talk, late, timeline=TURNS).notices
    assert "The recording of Bo is silent in 74 % of Bo's turns in the timeline." in notices
    assert not any("Ada" in notice and "silent" in notice for notice in notices)


def test_a_turn_of_somebody_without_a_recording(make_scene: SceneMaker) -> None:
    cast = [CAST[0] | {"speech": "ada.wav"}, CAST[1]]
    notices = load_scene(make_scene(characters=cast, timeline=TURNS), DEFAULTS).notices
    assert "Bo has turns in the timeline but no recording, and is treated as a listener." in notices


def test_each_speech_longer_than_the_video_is_named(make_scene: SceneMaker, tmp_path: Path) -> None:
    notices = two_recordings(make_scene, tmp_path, tone(1.0), tone(0.7)).notices
    assert [notice for notice in notices if "are cut" in notice] == [
        "The speech of Ada ends at 1.00 s, the video at 0.68 s: the last 0.32 s of speech are cut."
    ]


def test_rttm_of_a_strange_kind_is_left_out() -> None:
    assert parse_rttm("LEXEME talk 1 0.5 0.2 hello lex Ada <NA>\n\n") == []
