"""A written dialogue with its speech: one recording per line, by a synthesizer or given, and when each is said."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from bya_core.errors import InputError
from bya_core.io import synthesis
from bya_core.io.media import check_sample_rate, check_samples
from bya_core.scene.script import (
    ScriptLine,
    estimate_seconds,
    own_overlaps,
    parse_script,
    schedule,
    speakers,
    trim_silence,
)
from bya_core.scene.timeline import Clip, join_clips
from bya_core.scene.types import Speech, name_key

Recording = tuple[Tensor, int]
"""[channels, samples] float32, and the sample rate in Hz."""


@dataclass(frozen=True)
class SpokenScript:
    """Lines with their recordings.

    Args:
        lines: The lines.
        clips: Recording of each line, without silence around the speech.
        starts: Start of each line in seconds.
    """

    lines: Sequence[ScriptLine]
    clips: Sequence[Recording]
    starts: Sequence[float]

    @classmethod
    def of(cls, lines: Sequence[ScriptLine], recordings: Sequence[Recording]) -> SpokenScript:
        """Place recordings, without the silence around their speech.

        Raises:
            InputError: A recording that is silent or damaged, or a dialogue that is too long.
        """
        clips = [trimmed(line, *recording) for line, recording in zip(lines, recordings, strict=True)]
        return cls(lines, clips, schedule(lines, [waveform.shape[1] / rate for waveform, rate in clips]))

    @property
    def seconds(self) -> list[float]:
        """Duration of each line."""
        return [waveform.shape[1] / rate for waveform, rate in self.clips]

    @property
    def notices(self) -> list[str]:
        """Notices about characters who would say two lines at once."""
        return own_overlaps(self.lines, self.starts, self.seconds)

    @property
    def text(self) -> str:
        """When each line is said."""
        return timetable(self.lines, self.starts, self.seconds)

    def speech(self, speaker: str) -> Speech:
        """All lines of one speaker as one speech."""
        own = [k for k, line in enumerate(self.lines) if line.speaker == speaker]
        return join_clips([Clip(*self.clips[k], self.starts[k]) for k in own])


def estimate(lines: Sequence[ScriptLine]) -> tuple[list[float], list[float]]:
    """Start and duration of each line in seconds, estimated from the text."""
    seconds = [estimate_seconds(line.text) for line in lines]
    return schedule(lines, seconds), seconds


def timetable(lines: Sequence[ScriptLine], starts: Sequence[float], seconds: Sequence[float]) -> str:
    """When each line is said, and how long the dialogue is, as text."""
    rows = [
        f"{start:7.2f} to {start + duration:7.2f} s  {line.speaker}: {line.text}"
        for line, start, duration in zip(lines, starts, seconds, strict=True)
    ]
    end = max(start + duration for start, duration in zip(starts, seconds, strict=True))
    return "\n".join([*rows, f"{end:.1f} s in total"])


def trimmed(line: ScriptLine, waveform: Tensor, rate: int) -> Recording:
    """The recording of a line without silence around the speech. Raises InputError as `SpokenScript.of`."""
    what = f"the speech of line {line.number}"
    check_samples(waveform, what)
    rate = check_sample_rate(rate, what)
    try:
        return trim_silence(waveform, rate), rate
    except InputError as error:
        raise InputError(f"{what} ({line.speaker}: {line.text[:40]}) is silent", "speech", error.hint) from None


def lines_of_cast(text: str, names: Sequence[str]) -> list[ScriptLine]:
    """The lines of a script with the speakers named as in a cast.

    Raises:
        InputError: A script that is invalid, or a speaker whom the cast does not have.
    """
    lines = parse_script(text)
    known = {name_key(name).casefold(): name for name in names}
    if unknown := [name for name in speakers(lines) if name_key(name).casefold() not in known]:
        problem = f"the script has lines of {', '.join(unknown)}"
        raise InputError(problem, f"characters of the cast: {', '.join(names)}", "use the same names in both")
    return [replace(line, speaker=known[name_key(line.speaker).casefold()]) for line in lines]


def with_recordings(lines: Sequence[ScriptLine], name: str, recordings: Sequence[Recording]) -> dict[int, Recording]:
    """Recordings of one speaker by the index of their lines.

    Raises:
        InputError: There are more or fewer than lines.
    """
    own = [k for k, line in enumerate(lines) if line.speaker == name]
    if len(own) != len(recordings):
        problem = f"{len(recordings)} recordings of {name}, who has {len(own)} lines"
        raise InputError(problem, "one recording per line", "synthesize each line by itself, with BYA Script Lines")
    return dict(zip(own, recordings, strict=True))


def synthesize_missing(
    lines: Sequence[ScriptLine],
    known: Collection[int],
    voices: Mapping[str, str],
    engine: synthesis.Engine = "auto",
    language: str = "en",
) -> dict[int, Recording]:
    """Synthesize the lines that are not `known`, by index; see `choose_voices`."""
    missing = [k for k in range(len(lines)) if k not in known]
    if not missing:
        return {}
    names = speakers([lines[k] for k in missing])
    chosen, synthesizer = choose_voices(names, {n: v for n, v in voices.items() if n in names}, engine, language)
    return {k: synthesizer.synthesize(lines[k].text, chosen[lines[k].speaker]) for k in missing}


def choose_voices(
    names: Sequence[str], given: Mapping[str, str], engine: synthesis.Engine, language: str
) -> tuple[dict[str, str], synthesis.SpeechSynthesizer]:
    """A voice for each speaker and the synthesizer that has them; others than the `given` ones are chosen.

    Raises:
        InputError: The synthesizer is not installed.
    """
    synthesizer = synthesis.find_synthesizer(engine, list(given.values()), language)
    missing = [name for name in names if name not in given]
    chosen = synthesizer.default_voices(len(missing)) if missing else ()
    return {**given, **dict(zip(missing, chosen, strict=True))}, synthesizer


def named_values(pairs: Iterable[str], names: Sequence[str], option: str) -> dict[str, str]:
    """NAME=VALUE pairs by the name in the script.

    Args:
        pairs: The pairs.
        names: Names in the script.
        option: The option in messages.

    Raises:
        InputError: Another form, or a name that the script does not have.
    """
    known, values = {name_key(name).casefold(): name for name in names}, {}
    for pair in filter(str.strip, pairs):
        name, equals, value = pair.partition("=")
        name = known.get(name_key(name.strip()).casefold(), "")
        if not equals or not value.strip() or not name:
            expected = f"NAME=VALUE with one of {', '.join(names)}"
            raise InputError(f"{option} {pair}", expected, "correct it")
        values[name] = value.strip()
    return values
