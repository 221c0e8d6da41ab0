"""Who speaks when: turns read from RTTM, SRT, WebVTT or JSON; speeches joined from clips or cut from one recording."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.io.media import existing_file, resample
from bya_core.scene.schema import TurnEntry
from bya_core.scene.types import Speech
from bya_core.validation import from_mapping, parse_json

FADE = 0.01  # seconds over which a piece swells and dies away at its borders, or cuts would click
SLACK = 0.05  # seconds by which a turn may pass the end of its recording; diarisers round

CUE_TIMES = re.compile(r"(\S+)\s+-->\s+(\S+)")
CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})")
VOICE_TAG = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
NAMED_LINE = re.compile(r"^(?:-\s*)?[\[(]?([^\[\]():<>]{1,80}?)[\])]?\s*:")
SOUND = re.compile(r"^(?:[\[(♪].*[\])♪]|♪)$", re.DOTALL)  # [music]
TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True)
class Turn:
    """Somebody speaks.

    Args:
        speaker: who; name of a character, or what a diariser called them.
        start, end: in seconds.
    """

    speaker: str
    start: float
    end: float

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end < math.inf:
            came = f"a turn of {self.speaker} from {self.start:g} to {self.end:g} s"
            raise InputError(came, "a start of at least 0 and a later end", "correct its times")


@dataclass(frozen=True)
class Clip:
    """A piece of a recording at its place in the video.

    Args:
        waveform: [channels, samples] float32.
        sample_rate: in Hz.
        start: second of the video.
        gain: in dB.
    """

    waveform: Tensor
    sample_rate: int
    start: float
    gain: float = 0.0


def read_timeline(path: str | os.PathLike[str]) -> tuple[Turn, ...]:
    """Turns of an .rttm, .srt, .vtt or .json file, in the order of their start.

    Raises:
        InputError: missing, of another kind, without turns, or with a line that cannot be read.
    """
    path = existing_file(path, "the timeline")
    parsers = {".rttm": parse_rttm, ".srt": parse_cues, ".vtt": parse_cues, ".json": parse_turns}
    if path.suffix.lower() not in parsers:
        raise InputError(f"the timeline {path}", "a file ending in .rttm, .srt, .vtt or .json", "save it as one")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"the timeline {path} is no UTF-8 text", "a text file", "save it as UTF-8") from error
    turns = parsers[path.suffix.lower()](text, path.name)
    if not turns:
        raise InputError(f"the timeline {path} holds no turns", "at least one", "check the file")
    return tuple(sorted(turns, key=lambda turn: turn.start))


def parse_rttm(text: str, where: str = "the timeline") -> list[Turn]:
    """RTTM: `SPEAKER file channel start duration <NA> <NA> name ...`; other kinds of lines are left out."""
    turns = []
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if not parts or parts[0] != "SPEAKER":
            continue
        try:
            start, seconds, name = float(parts[3]), float(parts[4]), parts[7]
            turns.append(Turn(name, start, start + seconds))
        except (IndexError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            came = f"line {number} of {where} is {line.strip()[:60]!r}"
            raise InputError(came, "SPEAKER file 1 start seconds <NA> <NA> name", "correct it") from error
    return turns


def parse_cues(text: str, where: str = "the timeline") -> list[Turn]:
    """SRT and WebVTT: cues whose text says who speaks, as `Name: ...`, `[Name]: ...` or `<v Name>`.

    A cue may hold several voices, all over its whole time. Cues that only name a sound ([music]) are left out.
    """
    turns = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.strip("\n").split("\n")
        times = next((i for i, line in enumerate(lines) if "-->" in line), None)
        if times is None:  # heading, NOTE, STYLE
            continue
        found = CUE_TIMES.search(lines[times])
        start, end = (_clock(stamp, lines[times], where) for stamp in (found.groups() if found else ("", "")))
        said = "\n".join(lines[times + 1 :]).strip()
        names = _speakers(said)
        if not names and said and not SOUND.match(said):
            came = f"the cue at {start:.2f} s in {where} names no speaker ({TAG.sub('', said)[:40]!r})"
            raise InputError(came, '"Name: text" or "<v Name>text"', "write the name before the text")
        turns += [Turn(name, start, end) for name in names]
    return turns


def parse_turns(text: str, where: str = "the timeline") -> list[Turn]:
    """A JSON list of objects with "speaker", "start", "end" and optionally "text"."""
    data = parse_json(text, where)
    if not isinstance(data, list):
        raise InputError(f"{where} is not a list", "a list of turns", "write the turns in square brackets")
    return turns_of([from_mapping(TurnEntry, item, f"{where}[{i}]") for i, item in enumerate(data)])


def turns_of(entries: Sequence[TurnEntry]) -> list[Turn]:
    return [Turn(turn.speaker.strip(), turn.start, turn.end) for turn in entries]


def _clock(stamp: str, line: str, where: str) -> float:
    """Seconds of 00:01:02,500 or 01:02.500."""
    found = CLOCK.fullmatch(stamp)
    if found is None:
        came = f"the cue times {line.strip()[:60]!r} in {where}"
        raise InputError(came, "00:00:01,000 --> 00:00:02,500", "correct them")
    hours, minutes, seconds, rest = found.groups()
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + int(rest.ljust(3, "0")) / 1000


def _speakers(said: str) -> list[str]:
    """Names in the text of a cue, each once."""
    tagged = [name.strip() for name in VOICE_TAG.findall(said)]
    lines = [NAMED_LINE.match(TAG.sub("", line).strip()) for line in said.split("\n")]
    return list(dict.fromkeys(tagged or [found[1].strip() for found in lines if found]))


def assign(turns: Sequence[Turn], names: Sequence[str], called: Mapping[str, str] | None = None) -> list[Turn]:
    """The same turns with the names of characters. Upper and lower case are alike.

    Args:
        names: of the characters.
        called: what the timeline calls a character, for those with another name there: character -> speaker.

    Raises:
        InputError: a speaker that no character is.
    """
    known = {(called or {}).get(name, name).strip().casefold(): name for name in names}
    found = []
    for turn in turns:
        name = known.get(turn.speaker.casefold())
        if name is None:
            near = difflib.get_close_matches(turn.speaker.casefold(), known, n=1)
            hint = f'write "{known[near[0]]}"' if near else 'rename it, or give a character that "speaker"'
            came = f'the timeline names "{turn.speaker}" at {turn.start:.2f} s, whom no character is'
            raise InputError(came, " or ".join(f'"{(called or {}).get(n, n)}"' for n in names), hint)
        found.append(replace(turn, speaker=name))
    return found


def merged(turns: Sequence[Turn], gap: float = 2 * FADE) -> list[Turn]:
    """Turns of one speaker that touch, overlap or have a gap of at most `gap` seconds become one."""
    result: list[Turn] = []
    for turn in sorted(turns, key=lambda turn: turn.start):
        before = next((i for i in reversed(range(len(result))) if result[i].speaker == turn.speaker), None)
        if before is not None and turn.start <= result[before].end + gap:
            result[before] = replace(result[before], end=max(result[before].end, turn.end))
        else:
            result.append(turn)
    return result


def faded(waveform: Tensor, rate: int, seconds: float = FADE) -> Tensor:
    """[C, S] -> [C, S]: swells at its start and dies away at its end, along half a cosine."""
    length = min(round(seconds * rate), waveform.shape[1] // 2)
    if length == 0:
        return waveform
    ramp = 0.5 - 0.5 * torch.cos(torch.pi * (torch.arange(length) + 0.5) / length)
    shape = torch.ones(waveform.shape[1])
    shape[:length], shape[-length:] = ramp, ramp.flip(0)
    return waveform * shape


def join_clips(clips: Sequence[Clip], offset: float = 0.0, gain: float = 0.0) -> Speech:
    """One speech of several clips, each faded at its borders, at the highest of their rates and channel counts.

    Where clips overlap they sound together. A clip of one channel is put on all channels.

    Args:
        offset, gain: of the whole.
    """
    rate = max(clip.sample_rate for clip in clips)
    channels = max(clip.waveform.shape[0] for clip in clips)
    pieces = []
    for clip in clips:
        piece = resample(clip.waveform.float(), clip.sample_rate, rate)
        pieces.append((round(clip.start * rate), faded(piece, rate) * 10 ** (clip.gain / 20)))
    joined = torch.zeros(channels, max(start + piece.shape[1] for start, piece in pieces))
    for start, piece in pieces:
        rows = joined if piece.shape[0] == 1 else joined[: piece.shape[0]]
        rows[:, start : start + piece.shape[1]] += piece
    return Speech(joined, rate, offset, gain)


def cut_clip(waveform: Tensor, rate: int, start: float, end: float | None, what: str) -> Tensor:
    """[C, S] -> [C, S'] from second `start` to `end` (None = to its end).

    Raises:
        InputError: outside the recording.
    """
    seconds = waveform.shape[1] / rate
    last = seconds if end is None else end
    if not start < last <= seconds + SLACK:
        came = f"{what} from {start:g} to {last:g} s of a recording of {seconds:.2f} s"
        raise InputError(came, "a part of the recording", "correct its times")
    return waveform[:, round(start * rate) : round(last * rate)]


def cut_dialogue(
    waveform: Tensor, rate: int, turns: Sequence[Turn], names: Sequence[str]
) -> tuple[list[Speech | None], list[str]]:
    """One recording of all voices -> what each character says, at its place and silent elsewhere.

    Args:
        waveform: [C, S].
        turns: with the names of characters (`assign`).
        names: of the characters.

    Returns:
        A speech per character, None for those without a turn; and notices.

    Raises:
        InputError: a turn that starts after the end of the recording.
    """
    seconds, notices = waveform.shape[1] / rate, []
    turns = merged(turns)
    speeches: list[Speech | None] = []
    for name in names:
        clips = []
        for turn in (turn for turn in turns if turn.speaker == name):
            if turn.start >= seconds:
                came = f"{name} speaks at {turn.start:.2f} s in the timeline, the dialogue lasts {seconds:.2f} s"
                raise InputError(came, "turns inside the recording", "correct the times, or the recording")
            if turn.end > seconds + SLACK:
                notices.append(
                    f"{name} speaks until {turn.end:.2f} s in the timeline, but the dialogue ends at {seconds:.2f} s."
                )
            piece = waveform[:, round(turn.start * rate) : round(turn.end * rate)]
            clips.append(Clip(piece, rate, turn.start))
        speeches.append(join_clips(clips) if clips else None)
    return speeches, notices + overlap_notices(turns)


def overlap_notices(turns: Sequence[Turn]) -> list[str]:
    """Where one recording cannot tell two voices apart."""
    together: dict[tuple[str, str], float] = {}
    for i, turn in enumerate(turns):
        for other in turns[i + 1 :]:
            shared = min(turn.end, other.end) - max(turn.start, other.start)
            if shared > FADE and other.speaker != turn.speaker:
                pair = (turn.speaker, other.speaker)
                pair = pair if pair[::-1] not in together else pair[::-1]
                together[pair] = together.get(pair, 0.0) + shared
    return [
        f"{one} and {other} speak at once for {seconds:.2f} s of the dialogue: there both hear both voices."
        for (one, other), seconds in together.items()
    ]
