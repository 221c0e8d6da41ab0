"""What a scene file says of the old voices of a film that is dubbed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bya_core.errors import InputError
from bya_core.io.media import read_recording
from bya_core.scene.schema import DubEntry
from bya_core.scene.timeline import Turn, read_timeline, turns_of
from bya_core.scene.types import Speech, name_key


@dataclass(frozen=True)
class OriginalVoices:
    """What is known of the voices in a film.

    Args:
        stems: Recording of each voice by the name of its character, which together are the sound of the film.
        background: Recording of everything else.
        turns: Who speaks when.
    """

    stems: Mapping[str, Speech]
    background: Speech | None = None
    turns: Sequence[Turn] = ()


def read_original_voices(entry: DubEntry, folder: Path, names: Sequence[str], seconds: float) -> OriginalVoices:
    """Read the recordings and the timeline of a film.

    Args:
        entry: Key "dub" of a scene file.
        folder: Its folder.
        names: Of the characters; names in the timeline are compared without case.
        seconds: Length of the film; what comes later is not read.

    Raises:
        InputError: A file that is missing or invalid, or two recordings of one character.
    """
    known = {name_key(name).casefold(): name for name in names}
    stems: dict[str, Speech] = {}
    background: Speech | None = None
    for number, stem in enumerate(entry.stems, 1):
        part = read_recording(folder / stem.file, 0.0, seconds, f"the separate recording {number}")
        speech = Speech(part.waveform, part.sample_rate)
        name = None if stem.character is None else known.get(name_key(stem.character).casefold(), stem.character)
        if (name is None and background is not None) or name in stems:
            who = "everything but the voices" if name is None else name
            raise InputError(f"two separate recordings of {who}", "one", "mix them into one file")
        if name is None:
            background = speech
        else:
            stems[name] = speech
    timeline = entry.timeline
    turns: Sequence[Turn] = ()
    if timeline is not None:
        turns = read_timeline(folder / timeline) if isinstance(timeline, str) else turns_of(timeline)
    return OriginalVoices(stems, background, named_turns(turns, names))


def named_turns(turns: Sequence[Turn], names: Sequence[str]) -> list[Turn]:
    """Turns with the names of characters as these are written; other speakers stay."""
    known = {name_key(name).casefold(): name for name in names}
    return [replace(turn, speaker=known.get(name_key(turn.speaker).casefold(), turn.speaker)) for turn in turns]
