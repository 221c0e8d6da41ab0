"""Speaker turns from RTTM, SRT, WebVTT or JSON; speech joined from clips or split from a dialogue."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bya_core.config import MAX_SECONDS
from bya_core.errors import InputError
from bya_core.io.audio import MAX_SAMPLES
from bya_core.io.files import existing_file, read_text
from bya_core.io.media import resample
from bya_core.scene.notices import first_few
from bya_core.scene.schema import TurnEntry
from bya_core.scene.types import Speech, name_key
from bya_core.validation import from_mapping, parse_json

MAX_SILENCE = 60.0  # seconds before the first clip that are stored
FADE = 0.01  # seconds of fade in and fade out of a clip, to avoid clicks
MAX_TURNS, MAX_CUE, MAX_LINE = 10_000, 5000, 200  # turns of a timeline; characters of a cue, of its line of times
TOLERANCE = 0.05  # seconds by which a turn may exceed its recording; diarization output is rounded

CUE_TIMES = re.compile(r"(\S+)\s+-->\s+(\S+)")
CLOCK = re.compile(r"(?:(\d{1,3}):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})")
VOICE_TAG = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
NAMED_LINE = re.compile(r"^(?:-\s*)?[\[(]?([^\[\]():<>]{1,80}?)[\])]?\s*:")
SOUND = re.compile(r"^(?:[\[(♪].*[\])♪]|♪)$", re.DOTALL)  # [music]
TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True)
class Turn:
    """One turn of a speaker.

    Args:
        speaker: Name of a character, or a label of a diarization.
        start, end: Range in seconds.
    """

    speaker: str
    start: float
    end: float

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end <= MAX_SECONDS:
            problem = f"a turn of {self.speaker} from {self.start:g} to {self.end:g} s"
            expected = f"a start of at least 0 and a later end of at most {MAX_SECONDS} s"
            raise InputError(problem, expected, "correct its times")


@dataclass(frozen=True)
class Clip:
    """A part of a recording, placed in the video.

    Args:
        waveform: [channels, samples] float32.
        sample_rate: Sample rate in Hz.
        start: Start in the video, in seconds.
        gain: Gain in dB.
        unread: Seconds of the clip after the waveform, which the video does not need.
    """

    waveform: Tensor
    sample_rate: int
    start: float
    gain: float = 0.0
    unread: float = 0.0

    @property
    def end(self) -> float:
        """End of the whole clip in the video, in seconds."""
        return self.start + self.waveform.shape[1] / self.sample_rate + self.unread


def read_timeline(path: str | os.PathLike[str]) -> tuple[Turn, ...]:
    """Read the turns of an .rttm, .srt, .vtt or .json file, sorted by start.

    Raises:
        InputError: A file that is missing, invalid or of another type, or without turns.
    """
    path = existing_file(path, "the timeline")
    parsers = {".rttm": parse_rttm, ".srt": parse_cues, ".vtt": parse_cues, ".json": parse_turns}
    if path.suffix.lower() not in parsers:
        raise InputError(f"the timeline {path}", "a file ending in .rttm, .srt, .vtt or .json", "convert it")
    return _sorted(parsers[path.suffix.lower()](read_text(path, "the timeline"), path.name), f"the timeline {path}")


def parse_timeline(text: str) -> tuple[Turn, ...]:
    """Parse RTTM, SRT, WebVTT or JSON, whichever the text is; sorted by start.

    Raises:
        InputError: An invalid text, or one without turns.
    """
    parse = parse_turns if text.lstrip().startswith("[") else parse_cues if "-->" in text else parse_rttm
    return _sorted(parse(text), "the timeline")


def _sorted(turns: list[Turn], what: str) -> tuple[Turn, ...]:
    """The turns by start; raises InputError for none or too many."""
    if not turns:
        raise InputError(f"{what} has no turns", "at least one", "check it")
    if len(turns) > MAX_TURNS:
        raise InputError(f"{what} has {len(turns)} turns", f"at most {MAX_TURNS}", "split the video")
    return tuple(sorted(turns, key=lambda turn: turn.start))


def parse_rttm(text: str, where: str = "the timeline") -> list[Turn]:
    """Parse RTTM: `SPEAKER file channel start duration <NA> <NA> name ...`; other lines are ignored."""
    turns = []
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split()
        if not parts or parts[0] != "SPEAKER":
            continue
        try:
            start, seconds, name = float(parts[3]), float(parts[4]), parts[7]
        except (IndexError, ValueError) as error:
            problem = f"line {number} of {where} is {line.strip()[:60]!r}"
            raise InputError(problem, "SPEAKER file 1 start seconds <NA> <NA> name", "correct it") from error
        turns.append(Turn(name, start, start + seconds))
    return turns


def write_rttm(turns: Sequence[Turn], recording: str) -> str:
    """The turns of a recording as RTTM; white space in names becomes an underscore."""

    def word(name: str) -> str:
        return re.sub(r"\s+", "_", name.strip()) or "<NA>"

    return "".join(
        f"SPEAKER {word(recording)} 1 {turn.start:.3f} {turn.end - turn.start:.3f} <NA> <NA> {word(turn.speaker)} "
        "<NA> <NA>\n"
        for turn in turns
    )


def parse_cues(text: str, where: str = "the timeline") -> list[Turn]:
    """Parse SRT and WebVTT with the speakers in the text, as `Name: ...`, `[Name]: ...` or `<v Name>`.

    A cue with several speakers is a turn of each. Cues that only describe a sound ([music]) are ignored.
    """
    turns = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.strip("\n").split("\n")
        times = next((i for i, line in enumerate(lines) if "-->" in line), None)
        if times is None:  # heading, NOTE, STYLE
            continue
        found = CUE_TIMES.search(lines[times][:MAX_LINE])
        start, end = (_clock(stamp, lines[times], where) for stamp in (found.groups() if found else ("", "")))
        content = "\n".join(lines[times + 1 :]).strip()
        if len(content) > MAX_CUE:
            problem = f"the cue at {start:.2f} s in {where} has {len(content)} characters"
            raise InputError(problem, f"at most {MAX_CUE}", "check whether it is the right file")
        names = _speakers(content)
        if not names and content and not SOUND.match(content):
            problem = f"the cue at {start:.2f} s in {where} names no speaker ({TAG.sub('', content)[:40]!r})"
            raise InputError(problem, '"Name: text" or "<v Name>text"', "write the name before the text")
        turns += [Turn(name, start, end) for name in names]
    return turns


def parse_turns(text: str, where: str = "the timeline") -> list[Turn]:
    """Parse a JSON list of objects with "speaker", "start", "end" and optionally "text"."""
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
        problem = f"the cue times {line.strip()[:60]!r} in {where}"
        raise InputError(problem, "00:00:01,000 --> 00:00:02,500", "correct them")
    hours, minutes, seconds, rest = found.groups()
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + int(rest.ljust(3, "0")) / 1000


def _speakers(content: str) -> list[str]:
    """Unique speakers in the text of a cue."""
    tagged = [name.strip() for name in VOICE_TAG.findall(content)]
    lines = [NAMED_LINE.match(TAG.sub("", line).strip()) for line in content.split("\n")]
    return list(dict.fromkeys(tagged or [found[1].strip() for found in lines if found]))


def assign_turns(turns: Sequence[Turn], names: Sequence[str], speakers: Mapping[str, str] | None = None) -> list[Turn]:
    """Replace the speakers of turns by character names, ignoring case.

    Args:
        turns: Turns of a timeline.
        names: Names of the characters.
        speakers: Speaker of each character with another name in the timeline: character -> speaker.

    Raises:
        InputError: A speaker without a character.
    """
    known = {name_key((speakers or {}).get(name, name)).casefold(): name for name in names}
    found = []
    for turn in turns:
        name = known.get(name_key(turn.speaker).casefold())
        if name is None:
            near = difflib.get_close_matches(turn.speaker.casefold()[:MAX_LINE], known, n=1)
            hint = f'use "{known[near[0]]}"' if near else 'rename it, or set the "speaker" of a character'
            problem = f'the speaker "{turn.speaker}" at {turn.start:.2f} s of the timeline is not a character'
            raise InputError(problem, " or ".join(f'"{(speakers or {}).get(n, n)}"' for n in names), hint)
        found.append(replace(turn, speaker=name))
    return found


def merge_turns(turns: Sequence[Turn]) -> list[Turn]:
    """Merge turns of one speaker that overlap or are closer than their fades are long."""
    result: list[Turn] = []
    last: dict[str, int] = {}  # index of the last turn of each speaker
    for turn in sorted(turns, key=lambda turn: turn.start):
        before = last.get(turn.speaker)
        if before is not None and turn.start <= result[before].end + 2 * FADE:
            result[before] = replace(result[before], end=max(result[before].end, turn.end))
        else:
            last[turn.speaker] = len(result)
            result.append(turn)
    return result


def fade_edges(waveform: Tensor, rate: int) -> Tensor:
    """Fade in and out with half a cosine: [C, S] -> [C, S]."""
    length = min(round(FADE * rate), waveform.shape[1] // 2)
    if length == 0:
        return waveform
    ramp = 0.5 - 0.5 * torch.cos(torch.pi * (torch.arange(length) + 0.5) / length)
    shape = torch.ones(waveform.shape[1])
    shape[:length], shape[-length:] = ramp, ramp.flip(0)
    return waveform * shape


def join_clips(clips: Sequence[Clip], offset: float = 0.0, gain: float = 0.0) -> Speech:
    """Join clips into one speech, at the highest of their sample rates and channel counts.

    Clips are faded in and out; overlapping clips are added. Mono clips are copied to all channels. A long silence
    before the first clip becomes part of the offset.

    Args:
        clips: The clips.
        offset, gain: Offset and gain of the speech.

    Raises:
        InputError: The clips are too far apart to be held in memory.
    """
    rate = max(clip.sample_rate for clip in clips)
    channels = max(clip.waveform.shape[0] for clip in clips)
    first = min(clip.start for clip in clips)
    lead = math.floor(first) if first > MAX_SILENCE else 0
    pieces = []
    for clip in clips:
        piece = resample(clip.waveform.float(), clip.sample_rate, rate)
        pieces.append((round((clip.start - lead) * rate), fade_edges(piece, rate) * 10 ** (clip.gain / 20)))
    length = max(start + piece.shape[1] for start, piece in pieces)
    if length * channels > MAX_SAMPLES:
        problem = f"clips from {first:g} to {length / rate + lead:.0f} s"
        expected = f"clips within {MAX_SAMPLES / channels / rate:.0f} s"
        raise InputError(problem, expected, "set the length of the video, or move them closer together")
    joined = torch.zeros(channels, length)
    for start, piece in pieces:
        rows = joined if piece.shape[0] == 1 else joined[: piece.shape[0]]
        rows[:, start : start + piece.shape[1]] += piece
    unread = max(clip.end for clip in clips) - lead - length / rate
    return Speech(joined, rate, offset + lead, gain, unread if any(clip.unread for clip in clips) else 0.0)


def split_dialogue(
    waveform: Tensor, rate: int, turns: Sequence[Turn], names: Sequence[str], seconds: float | None = None
) -> tuple[list[Speech | None], list[str]]:
    """Split one recording of all speakers into one speech per character, silent outside of its turns.

    Args:
        waveform: [C, S], the recording or its beginning.
        rate: Sample rate in Hz.
        turns: Turns with character names (`assign_turns`).
        names: Names of the characters.
        seconds: Length of the whole recording; None is that of the waveform.

    Returns:
        Speech of each character, None without turns; and notices.

    Raises:
        InputError: A turn that starts after the end of the recording.
    """
    read, late = waveform.shape[1] / rate, list[str]()
    seconds = max(read, seconds or 0.0)
    turns = merge_turns(turns)
    speeches: list[Speech | None] = []
    for name in names:
        clips = []
        for turn in (turn for turn in turns if turn.speaker == name):
            if turn.start >= seconds:
                problem = f"a turn of {name} starts at {turn.start:.2f} s, the dialogue ends at {seconds:.2f} s"
                raise InputError(problem, "turns inside the recording", "correct the times, or the recording")
            if turn.end > seconds + TOLERANCE:
                late.append(f"A turn of {name} ends at {turn.end:.2f} s, the dialogue at {seconds:.2f} s.")
            piece = waveform[:, round(turn.start * rate) : round(turn.end * rate)]
            unread = max(0.0, min(turn.end, seconds) - max(turn.start, read)) if seconds > read else 0.0
            clips.append(Clip(piece, rate, turn.start, unread=unread))
        speeches.append(join_clips(clips) if clips else None)
    return speeches, first_few(late) + overlap_notices(turns)


def overlap_notices(turns: Sequence[Turn]) -> list[str]:
    """Overlapping merged turns, which one recording cannot separate."""
    overlaps: defaultdict[tuple[str, str], float] = defaultdict(float)
    current: list[Turn] = []
    for turn in sorted(turns, key=lambda turn: turn.start):
        current = [other for other in current if other.end > turn.start]
        for other in current:
            shared = min(turn.end, other.end) - turn.start
            if shared > FADE and other.speaker != turn.speaker:
                one, two = sorted((turn.speaker, other.speaker))
                overlaps[one, two] += shared
        current.append(turn)
    return first_few(
        f"The turns of {one} and {two} overlap for {seconds:.2f} s: both are driven by the mixed speech there."
        for (one, two), seconds in overlaps.items()
    )
