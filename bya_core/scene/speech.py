"""Reads the speech of a scene file: recordings, clips, or turns of a dialogue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bya_core.errors import InputError
from bya_core.io.audio import MAX_SAMPLES
from bya_core.io.media import read_recording
from bya_core.scene.checks import stream_notices, turn_notices
from bya_core.scene.schema import CharacterEntry, ClipEntry, SceneFile
from bya_core.scene.timeline import (
    TOLERANCE,
    Clip,
    Turn,
    assign_turns,
    join_clips,
    read_timeline,
    split_dialogue,
    turns_of,
)
from bya_core.scene.types import Speech, check_names, name_key

COMPARED = 60.0  # seconds after the video in which recordings are compared with the timeline
MARGIN = 1.0  # seconds read before and after what is heard in the video, as context of the speech features


@dataclass(frozen=True)
class SceneAudio:
    """The audio of a scene.

    Args:
        speeches: Speech of each character, None for a listener.
        sound: Audio of the video if it is one recording (a dialogue); None mixes the speeches.
        notices: Warnings, one sentence each.
    """

    speeches: tuple[Speech | None, ...]
    sound: Speech | None
    notices: tuple[str, ...]


def read_speeches(file: SceneFile, folder: Path, seconds: float | None = None) -> SceneAudio:
    """Read the recordings of a scene file and split them by clips and timeline.

    Args:
        file: The scene file.
        folder: Its folder.
        seconds: Length of the video; what is not heard in it is not decoded. None reads all speech.

    Raises:
        InputError: A missing or invalid recording or timeline, or keys of the scene that contradict each other.
    """
    cast = file.characters
    names = [character.name for character in cast]
    turns, incomplete = _turns(file, folder), list[str]()
    if turns and seconds is not None:  # recordings and timeline are compared beyond the video
        seconds = max(seconds, min(max(turn.end for turn in turns), seconds + COMPARED))
    speeches: list[Speech | None] = []
    for character in cast:
        speeches.append(_own_speech(character, folder, seconds, incomplete))
        _check_memory(sum(speech.waveform.numel() for speech in speeches if speech is not None))
    files = [c.speech if isinstance(c.speech, str) else None for c in cast]
    notices, sound = stream_notices(names, speeches, files), None
    if file.dialogue is not None:
        speeches, sound, new = _dialogue(file, folder, turns, speeches, seconds)
        notices += new
    elif turns:
        if seconds is not None:
            turns = [replace(turn, end=min(turn.end, seconds)) for turn in turns if turn.start < seconds]
        notices += turn_notices(names, speeches, turns) if turns else []
    return SceneAudio(tuple(speeches), sound, tuple(dict.fromkeys(incomplete + notices)))


def _turns(file: SceneFile, folder: Path) -> list[Turn]:
    """Turns with character names; empty without a timeline."""
    names = [character.name for character in file.characters]
    speakers = {c.name: c.speaker for c in file.characters if c.speaker is not None}
    check_names(names)
    labels = [name_key(speakers.get(name, name)).casefold() for name in names]
    if (speakers or file.timeline is not None) and len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise InputError(f'two characters named "{twice}" in the timeline', "unique speakers", "rename one")
    if file.timeline is None:
        if speakers:
            name, speaker = next(iter(speakers.items()))
            raise InputError(f'{name} has the speaker "{speaker}" but there is no timeline', "a timeline", "add it")
        return []
    if isinstance(file.timeline, str):
        turns: Sequence[Turn] = read_timeline(folder / file.timeline)
    else:
        turns = turns_of(file.timeline)
    return assign_turns(turns, names, speakers)


def _own_speech(character: CharacterEntry, folder: Path, seconds: float | None, notices: list[str]) -> Speech | None:
    """The speech under the key `speech`; what is missing in its files is added to `notices`."""
    if character.speech is None:
        return None
    end = math.inf if seconds is None else seconds - character.offset + MARGIN  # of what is heard, after the offset
    if isinstance(character.speech, str):
        first = max(0.0, -character.offset - MARGIN)
        what = f"the speech of {character.name}"
        part = read_recording(folder / character.speech, first, _length(end - first), what)
        notices += part.notices
        unread = max(0.0, part.seconds - first - part.waveform.shape[1] / part.sample_rate)
        speech = Speech(part.waveform, part.sample_rate, character.offset + first, character.gain, unread)
    else:
        clips = []
        for number, entry in enumerate(character.speech, 1):
            clip, new = _clip(entry, folder, end - entry.start, f"clip {number} of {character.name}")
            clips.append(clip)
            notices += new
        speech = join_clips(clips, character.offset, character.gain)
    if speech.end <= 0:
        problem = f"the speech of {character.name} ends {-speech.end:.2f} s before the video starts"
        raise InputError(problem, "an offset shorter than the recording", "correct the offset")
    return speech


def _clip(entry: ClipEntry, folder: Path, needed: float, what: str) -> tuple[Clip, tuple[str, ...]]:
    """The first `needed` seconds of a clip, and notices."""
    wanted = math.inf if entry.to is None else entry.to - entry.from_
    part = read_recording(folder / entry.file, entry.from_, _length(min(wanted, needed)), what)
    last = part.seconds if entry.to is None else entry.to
    if not entry.from_ < last <= part.seconds + TOLERANCE:
        problem = f"{what} from {entry.from_:g} to {last:g} s of a recording of {part.seconds:.2f} s"
        raise InputError(problem, "a part of the recording", "correct its times")
    read = part.waveform.shape[1] / part.sample_rate
    unread = max(0.0, last - entry.from_ - read) if read < min(wanted, part.seconds - entry.from_) - MARGIN / 2 else 0.0
    return Clip(part.waveform, part.sample_rate, entry.start, entry.gain, unread), part.notices


def _check_memory(samples: int) -> None:
    """Raise InputError if the speeches of all characters have too many samples to be held in memory."""
    if samples > MAX_SAMPLES:
        problem = f"speech of all characters with {samples / 1e6:.0f} million samples"
        hint = "set a shorter length, or convert the recordings to mono at 16 kHz"
        raise InputError(problem, f"at most {MAX_SAMPLES // 1_000_000} million in total", hint)


def _length(seconds: float) -> float | None:
    """Length to read: None for all."""
    return None if math.isinf(seconds) else max(0.0, seconds)


def _dialogue(
    file: SceneFile, folder: Path, turns: list[Turn], own: list[Speech | None], seconds: float | None
) -> tuple[list[Speech | None], Speech | None, list[str]]:
    """Speeches, audio of the video and notices of a scene with one recording of all speakers."""
    if not turns:
        raise InputError("a dialogue without a timeline", "speaker turns", 'add "timeline"')
    assert file.dialogue is not None
    names = [character.name for character in file.characters]
    needed = max(turn.end for turn in turns) if seconds is None else seconds
    part = read_recording(folder / file.dialogue, 0.0, needed + MARGIN, "the dialogue")
    waveform, rate = part.waveform, part.sample_rate
    ends = {turn.speaker: 0.0 for turn in turns}
    for turn in turns:
        ends[turn.speaker] = max(ends[turn.speaker], min(turn.end, waveform.shape[1] / rate))
    _check_memory(round(sum(ends.values()) * rate * waveform.shape[0]))
    cut, notices = split_dialogue(waveform, rate, turns, names, part.seconds)
    notices = [*part.notices, *notices]
    speeches: list[Speech | None] = []
    for character, piece, recording in zip(file.characters, cut, own, strict=True):
        if piece is not None and recording is not None:
            problem = f"{character.name} has a speech and turns in the dialogue"
            raise InputError(problem, "one of them", f'remove "speech" of {character.name}, or the turns')
        if character.speech is None and (character.offset or character.gain):
            problem = f"{character.name} has an offset or a gain, but its speech is part of the dialogue"
            raise InputError(problem, "offset and gain of a separate speech", "remove them")
        if piece is None and recording is None:
            notices.append(f"{character.name} has no turns in the timeline and is treated as a listener.")
        speeches.append(piece if recording is None else recording)
    alone = all(recording is None for recording in own)
    return speeches, Speech(waveform, rate) if alone else None, notices
