"""Edits of the recordings of a cast: clips placed in the video, muted voices, voices assigned to other characters.

The text is that of the input `dialogue` of BYA Scene, written by the timeline in the page:

    {"voices": [{"clips": [{"start": 0.4, "from": 0.2, "to": 2.5, "gain": -3}]}, {"mute": true}], "characters": [1, 0]}

Voices are in the order of the cast. Clips have the keys of the clips of a scene file. A voice without "clips" is the
whole recording.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from bya_core.config import MAX_CHARACTERS, MAX_SECONDS
from bya_core.errors import InputError
from bya_core.scene.schema import Gain, Seconds
from bya_core.scene.timeline import TOLERANCE, Clip, join_clips
from bya_core.scene.types import Speech
from bya_core.validation import Field, from_mapping, parse_json, validated

WHERE = "dialogue"
MIN_CLIP = 0.01  # seconds


@validated
class DialogueClip:
    """A part of a recording, placed in the video."""

    start: Annotated[
        float, Field(ge=-MAX_SECONDS, le=MAX_SECONDS, description="Start in seconds after the offset of the voice.")
    ] = 0.0
    from_: Annotated[
        Seconds, Field(validation_alias="from", description="Start of the clip in the recording, in seconds.")
    ] = 0.0
    to: Annotated[
        Seconds | None, Field(description="End of the clip in the recording, in seconds. null is the end.")
    ] = None
    gain: Gain = 0.0


@validated
class DialogueVoice:
    """What is heard of one recording."""

    clips: Annotated[
        tuple[DialogueClip, ...] | None, Field(max_length=1000, description="Clips. null is the whole recording.")
    ] = None
    mute: Annotated[bool, Field(description="Whether the voice is left out.")] = False


@validated
class Dialogue:
    """Edits of the voices of a cast."""

    version: Literal[1] = 1
    voices: Annotated[
        tuple[DialogueVoice, ...], Field(max_length=MAX_CHARACTERS, description="Voices in the order of the cast.")
    ] = ()
    characters: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=MAX_CHARACTERS)], ...] | None,
        Field(description="Index of the voice of each character. null is its own."),
    ] = None


@dataclass(frozen=True)
class Edited:
    """Voices after the edits.

    Args:
        speeches: Speech of each character; None for a listener.
        notices: One sentence each.
    """

    speeches: tuple[Speech | None, ...]
    notices: tuple[str, ...] = ()


def parse_dialogue(text: str) -> Dialogue:
    """Parse the edits of a dialogue; an empty text has none.

    Raises:
        InputError: Text that is not JSON, unknown keys, values out of range, clips without length, or a voice that is
            assigned to two characters.
    """
    if not text.strip():
        return Dialogue()
    dialogue = from_mapping(Dialogue, parse_json(text, WHERE), WHERE)
    for v, voice in enumerate(dialogue.voices):
        for c, clip in enumerate(voice.clips or ()):
            if clip.to is not None and clip.to <= clip.from_:
                problem = f"{WHERE}.voices[{v}].clips[{c}] from {clip.from_:g} to {clip.to:g} s"
                raise InputError(problem, "an end after the start", "correct its times")
    voices = dialogue.characters
    if voices is not None and sorted(voices) != list(range(len(voices))):
        expected = f"each of 0 to {len(voices) - 1} once"
        raise InputError(f"{WHERE}.characters is {list(voices)}", expected, "assign one voice to each character")
    return dialogue


def edit_speeches(speeches: Sequence[Speech | None], names: Sequence[str], dialogue: Dialogue) -> Edited:
    """Apply the edits to the voices of a cast. Unedited voices are returned as they are.

    Args:
        speeches: Speech of each character; None for a listener.
        names: Names of the characters.
        dialogue: The edits.

    Raises:
        InputError: A clip outside its recording, or a voice of a character that is not in the cast.
    """
    order = dialogue.characters or tuple(range(len(names)))
    if len(order) > len(names) and sorted(order[: len(names)]) != list(range(len(names))):
        problem = f"the dialogue assigns voices to {len(order)} characters, the cast has {len(names)}"
        raise InputError(
            problem, "one voice for each character", "connect the missing characters, or reset the dialogue"
        )
    order = (*order[: len(names)], *range(len(order), len(names)))
    notices = []
    if any(voice != DialogueVoice() for voice in dialogue.voices[len(names) :]):
        notices.append(
            f"The dialogue edits {len(dialogue.voices)} voices, the cast has {len(names)}: the others are ignored."
        )
    edited = list(speeches)
    for v, (voice, speech) in enumerate(zip(dialogue.voices, speeches, strict=False)):
        if speech is None:
            if voice.clips:
                notices.append(f"The dialogue edits the voice of {names[v]}, who has no recording.")
            continue
        edited[v] = _edited(speech, voice, names[v])
        if edited[v] is None:
            reason = "muted" if voice.mute else "without clips"
            notices.append(f"The voice of {names[v]} is {reason} in the dialogue and is not heard.")
    return Edited(tuple(edited[v] for v in order), tuple(notices))


def _edited(speech: Speech, voice: DialogueVoice, name: str) -> Speech | None:
    """The speech of one voice; None if nothing is left of it."""
    if voice.mute or voice.clips == ():
        return None
    if voice.clips is None:
        return speech
    rate, read = speech.sample_rate, speech.waveform.shape[-1] / speech.sample_rate
    seconds = read + speech.unread
    clips = []
    for number, clip in enumerate(voice.clips, 1):
        end = seconds if clip.to is None else min(clip.to, seconds)
        if end - clip.from_ < MIN_CLIP or (clip.to or 0.0) > seconds + TOLERANCE:
            what = f"clip {number} of {name} from {clip.from_:g} to {seconds if clip.to is None else clip.to:g} s"
            hint = "correct its times on the timeline of BYA Scene"
            raise InputError(f"{what} of a recording of {seconds:.2f} s", "a part of the recording", hint)
        clips.append((clip, end))
    if len(clips) == 1 and (clips[0][0].from_, clips[0][1]) == (0.0, seconds):  # moved only: no fading, no copy
        clip = clips[0][0]
        return _heard(replace(speech, offset=speech.offset + clip.start, gain=speech.gain + clip.gain), name)
    parts = []
    for clip, end in clips:
        part = speech.waveform[:, round(clip.from_ * rate) : round(end * rate)]
        parts.append(Clip(part, rate, clip.start, clip.gain, max(0.0, end - max(read, clip.from_))))
    first = min(part.start for part in parts)  # join_clips expects times from 0
    return _heard(
        join_clips([replace(part, start=part.start - first) for part in parts], speech.offset + first, speech.gain),
        name,
    )


def _heard(speech: Speech, name: str) -> Speech:
    if speech.end <= 0:
        problem = f"the voice of {name} ends {-speech.end:.2f} s before the video starts"
        raise InputError(problem, "clips within the video", "correct their start on the timeline of BYA Scene")
    return speech
