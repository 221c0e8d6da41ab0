"""What each character of a scene file says: one recording, clips, or their turns of a dialogue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bya_core.errors import InputError
from bya_core.io.media import read_audio
from bya_core.scene.checks import stream_notices, turn_notices
from bya_core.scene.schema import CharacterEntry, SceneFile
from bya_core.scene.timeline import Clip, Turn, assign, cut_clip, cut_dialogue, join_clips, read_timeline, turns_of
from bya_core.scene.types import Speech


@dataclass(frozen=True)
class Voices:
    """All that is said in a scene.

    Args:
        speeches: one per character, None = listens.
        sound: of the whole video where it is one recording (a dialogue); None = the mix of the speeches.
        notices: what a person should know, one sentence each.
    """

    speeches: tuple[Speech | None, ...]
    sound: Speech | None
    notices: tuple[str, ...]


def read_speeches(given: SceneFile, folder: Path) -> Voices:
    """Read the recordings of a scene file and cut them as it says.

    Raises:
        InputError: missing or unusable recordings or timeline, or parts of the scene that contradict each other.
    """
    cast = given.characters
    names = [character.name for character in cast]
    turns = _turns(given, folder)
    speeches = [_own_speech(character, folder) for character in cast]
    files = [c.speech if isinstance(c.speech, str) else None for c in cast]
    notices, sound = stream_notices(names, speeches, files), None
    if given.dialogue is not None:
        speeches, sound, said = _dialogue(given, folder, turns, speeches)
        notices += said
    elif turns:
        notices += turn_notices(names, speeches, turns)
    return Voices(tuple(speeches), sound, tuple(notices))


def _turns(given: SceneFile, folder: Path) -> list[Turn]:
    """Turns with the names of characters; none where the scene has no timeline."""
    names = [character.name for character in given.characters]
    called = {c.name: c.speaker for c in given.characters if c.speaker is not None}
    labels = [called.get(name, name).strip().casefold() for name in names]
    if called and len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise InputError(f'two characters are called "{twice}" in the timeline', "a name for each", "rename one")
    if given.timeline is None:
        if called:
            name, speaker = next(iter(called.items()))
            raise InputError(f'{name} is "{speaker}" in a timeline that is not there', "a timeline", "add it")
        return []
    if isinstance(given.timeline, str):
        turns: Sequence[Turn] = read_timeline(folder / given.timeline)
    else:
        turns = turns_of(given.timeline)
    return assign(turns, names, called)


def _own_speech(character: CharacterEntry, folder: Path) -> Speech | None:
    """What stands under `speech`."""
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
        came = f"the speech of {character.name} ends {-speech.end:.2f} s before the video starts"
        raise InputError(came, "an offset shorter than the recording", "correct the offset")
    return speech


def _dialogue(
    given: SceneFile, folder: Path, turns: list[Turn], own: list[Speech | None]
) -> tuple[list[Speech | None], Speech | None, list[str]]:
    """Speeches, the sound of the video and notices of a scene with one recording for all."""
    if not turns:
        raise InputError("a dialogue without a timeline", "who speaks when", 'add "timeline"')
    assert given.dialogue is not None
    names = [character.name for character in given.characters]
    waveform, rate = read_audio(folder / given.dialogue)
    cut, notices = cut_dialogue(waveform, rate, turns, names)
    speeches: list[Speech | None] = []
    for character, piece, recording in zip(given.characters, cut, own, strict=True):
        if piece is not None and recording is not None:
            came = f"{character.name} has a speech and turns of the dialogue"
            raise InputError(came, "one of them", f'remove "speech" of {character.name}, or the turns')
        if character.speech is None and (character.offset or character.gain):
            came = f"{character.name} has an offset or a gain, but speaks in the dialogue"
            raise InputError(came, "those of a speech of its own", "remove them")
        if piece is None and recording is None:
            notices.append(f"{character.name} has no turn in the timeline and listens.")
        speeches.append(piece if recording is None else recording)
    alone = all(recording is None for recording in own)
    return speeches, Speech(waveform, rate) if alone else None, notices
