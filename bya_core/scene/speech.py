"""Reads the speech of a scene file: recordings, clips, or turns of a dialogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bya_core.errors import InputError
from bya_core.io.media import read_audio
from bya_core.scene.checks import stream_notices, turn_notices
from bya_core.scene.schema import CharacterEntry, SceneFile
from bya_core.scene.timeline import (
    Clip,
    Turn,
    assign_turns,
    cut_clip,
    join_clips,
    read_timeline,
    split_dialogue,
    turns_of,
)
from bya_core.scene.types import Speech, check_names, name_key


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


def read_speeches(file: SceneFile, folder: Path) -> SceneAudio:
    """Read the recordings of a scene file and split them by clips and timeline.

    Raises:
        InputError: A missing or invalid recording or timeline, or keys of the scene that contradict each other.
    """
    cast = file.characters
    names = [character.name for character in cast]
    turns = _turns(file, folder)
    speeches = [_own_speech(character, folder) for character in cast]
    files = [c.speech if isinstance(c.speech, str) else None for c in cast]
    notices, sound = stream_notices(names, speeches, files), None
    if file.dialogue is not None:
        speeches, sound, new = _dialogue(file, folder, turns, speeches)
        notices += new
    elif turns:
        notices += turn_notices(names, speeches, turns)
    return SceneAudio(tuple(speeches), sound, tuple(notices))


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


def _own_speech(character: CharacterEntry, folder: Path) -> Speech | None:
    """The speech under the key `speech`."""
    if character.speech is None:
        return None
    if isinstance(character.speech, str):
        speech = Speech(*read_audio(folder / character.speech), character.offset, character.gain)
    else:
        clips = []
        for number, entry in enumerate(character.speech, 1):
            what = f"clip {number} of {character.name}"
            waveform, rate = read_audio(folder / entry.file)
            piece = cut_clip(waveform, rate, entry.from_, entry.to, what)
            clips.append(Clip(piece, rate, entry.start, entry.gain))
        speech = join_clips(clips, character.offset, character.gain)
    if speech.end <= 0:
        problem = f"the speech of {character.name} ends {-speech.end:.2f} s before the video starts"
        raise InputError(problem, "an offset shorter than the recording", "correct the offset")
    return speech


def _dialogue(
    file: SceneFile, folder: Path, turns: list[Turn], own: list[Speech | None]
) -> tuple[list[Speech | None], Speech | None, list[str]]:
    """Speeches, audio of the video and notices of a scene with one recording of all speakers."""
    if not turns:
        raise InputError("a dialogue without a timeline", "speaker turns", 'add "timeline"')
    assert file.dialogue is not None
    names = [character.name for character in file.characters]
    waveform, rate = read_audio(folder / file.dialogue)
    cut, notices = split_dialogue(waveform, rate, turns, names)
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
