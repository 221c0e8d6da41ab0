"""A written dialogue: its lines, how long they take, and when they are said.

    # a comment
    ADA: Have you seen my umbrella?
    BO (quietly): It is raining, isn't it?
    (pause 1.5)
    ADA: It is. (sighs) And I am late.

A line without a name, or an indented one, continues the one before. What stands in brackets is not spoken. Lines of
their own are cues: `(pause SECONDS)` before the next line, `(overlap SECONDS)` to start it before the end of the last
one, and `(at SECONDS)` to start it at a time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import dedent
from typing import Literal

from torch import Tensor

from bya_core.config import MAX_NAME, MAX_SECONDS, MAX_TEXT
from bya_core.errors import InputError
from bya_core.scene.types import name_key

MAX_LINES = 1000
LEAD_IN = 0.3  # seconds before the first line
GAPS = {"?": 0.3, "!": 0.2, "-": 0.05, "…": 0.6}
"""Seconds of silence after a line that ends with this; a question is thought about, a dash is an interruption."""
GAP, SAME_SPEAKER = 0.25, 0.45  # seconds after other lines, and at least before the next line of the same speaker
SYLLABLES_PER_SECOND, SIGNS_PER_SECOND = 5.3, 4.2
PAUSES = {",": 0.15, ";": 0.25, ":": 0.25, ".": 0.35, "!": 0.35, "?": 0.35, "…": 0.4, "。": 0.35, "，": 0.15}
"""Seconds of silence within a line."""
FLOOR, KEPT = 0.01, 0.03  # speech is louder than this fraction of the peak; seconds kept beside it

NAMED = re.compile(rf"^(?P<name>[^:：()（）\[\],;!?]{{1,{MAX_NAME}}}?) ?(?:[(（][^)）]*[)）])? ?[:：] ?(?P<text>.*)$")
CUE = re.compile(
    r"^[(（](?P<kind>pause|overlap|at)\s+(?P<value>\d+(?:[.,]\d+)?)\s*(?:s|sec|seconds?)?[)）]$", re.IGNORECASE
)
NO_CUE = re.compile(r"^(?=\D*\d)[(（]\s*(?:pause|overlap|at)\b[\s:=]*[-+]?[\d.,:]+\s*\w*\s*[)）]$", re.IGNORECASE)
ASIDE = re.compile(r"\([^()]*\)|（[^（）]*）|\[[^\[\]]*\]")
MAX_NESTED = 4  # brackets in brackets that are not spoken
VOWELS = re.compile(r"[aeiouyäöüàâéèêëîïôûùœæáíóúãõåøаеёиоуыэюя]+", re.IGNORECASE)
SIGNS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
NUMBER = re.compile(r"\d")


@dataclass(frozen=True)
class ScriptLine:
    """What one character says.

    Args:
        speaker: Name of the character.
        text: The spoken words.
        number: Line of the file, from 1.
        cue: How its start is found: after a silence ("pause"), before the end of the last line ("overlap"), at a time
            ("at"); None = a natural gap.
        value: Seconds of the cue.
    """

    speaker: str
    text: str
    number: int
    cue: Literal["pause", "overlap", "at"] | None = None
    value: float = 0.0


def parse_script(text: str, where: str = "the script") -> list[ScriptLine]:
    """Parse a script, see above.

    Raises:
        InputError: No lines, too many, a line before the first name, two cues before one line, an invalid cue, or a
            cue that no line follows.
    """
    lines: list[ScriptLine] = []
    names: dict[str, str] = {}
    cue: tuple[str, float, int] | None = None
    for number, raw in enumerate(dedent(text.removeprefix("\ufeff")).splitlines(), 1):
        content = " ".join(raw.split())
        if not content or content.startswith("#"):
            continue
        if len(content) > MAX_TEXT + 2 * MAX_NAME:
            raise _too_long(number, len(content), where)
        if found := CUE.match(content):
            if cue is not None:
                problem = f"lines {cue[2]} and {number} of {where} are two cues before one line"
                raise InputError(problem, "one cue before a line", "remove one of them")
            cue = (found["kind"].lower(), float(found["value"].replace(",", ".")), number)
            _check_seconds(cue[1], f"line {number} of {where}")
            continue
        if NO_CUE.match(content):
            problem = f"line {number} of {where} is {content[:40]!r}"
            raise InputError(problem, "(pause SECONDS), (overlap SECONDS) or (at SECONDS)", "correct it")
        named = None if raw[0].isspace() and lines else NAMED.match(content)
        spoken = _spoken(named["text"] if named else content)
        if named is None and not spoken:  # a stage direction
            continue
        if named is None:
            if not lines or cue is not None:
                problem = f"line {number} of {where} has no name: {content[:40]!r}"
                raise InputError(problem, "NAME: what the character says", "put the name before the text")
            last = lines.pop()
            if len(last.text) + len(spoken) > MAX_TEXT:
                raise _too_long(last.number, len(last.text) + len(spoken), where)
            lines.append(ScriptLine(last.speaker, f"{last.text} {spoken}".strip(), last.number, last.cue, last.value))
            continue
        name = names.setdefault(name_key(named["name"]).casefold(), named["name"].strip())
        kind, value, _ = cue or (None, 0.0, 0)
        lines.append(ScriptLine(name, spoken, number, kind, value))  # type: ignore[arg-type]
        cue = None
    if cue is not None:
        raise InputError(f"line {cue[2]} of {where} is a cue without a line", "a line after it", "remove it")
    for line in lines:
        if not line.text or len(line.text) > MAX_TEXT:
            raise _too_long(line.number, len(line.text), where)
    if not 1 <= len(lines) <= MAX_LINES:
        problem = f"{where} has {len(lines)} lines of dialogue"
        raise InputError(problem, f"1 to {MAX_LINES}, each as NAME: text", "correct or split it")
    return lines


def _spoken(text: str) -> str:
    """A text without what stands in brackets."""
    for _ in range(MAX_NESTED):
        text, removed = ASIDE.subn(" ", text)
        if not removed:
            break
    return " ".join(text.split())


def _too_long(number: int, letters: int, where: str) -> InputError:
    problem = f"line {number} of {where} has {letters} letters to say"
    return InputError(problem, f"1 to {MAX_TEXT}", "write what the character says, or shorten or remove the line")


def speakers(lines: Sequence[ScriptLine]) -> list[str]:
    """Names of all speakers, in the order of their first line."""
    return list(dict.fromkeys(line.speaker for line in lines))


def lines_of(lines: Sequence[ScriptLine], name: str) -> list[ScriptLine]:
    """Lines of one speaker; upper and lower case of the name do not matter.

    Raises:
        InputError: There is no such speaker.
    """
    key = name_key(name).casefold()
    own = [line for line in lines if name_key(line.speaker).casefold() == key]
    if not own:
        problem = f'no line of "{name}" in the script'
        raise InputError(problem, f"one of {', '.join(speakers(lines))}", "correct the name")
    return own


def estimate_seconds(text: str) -> float:
    """Estimated duration of a text that is read at a usual rate."""
    signs = len(SIGNS.findall(text)) + 2 * len(NUMBER.findall(text))
    words = [word for word in re.findall(r"[^\W\d_]+", SIGNS.sub(" ", text))]
    syllables = sum(max(1, len(VOWELS.findall(word.removesuffix("e") or word))) for word in words)
    pauses = sum(PAUSES.get(sign, 0.0) for sign in text.rstrip()[:-1])
    return max(0.4, syllables / SYLLABLES_PER_SECOND + signs / SIGNS_PER_SECOND + pauses)


def schedule(lines: Sequence[ScriptLine], seconds: Sequence[float]) -> list[float]:
    """The start of each line in seconds, with natural gaps.

    Args:
        lines: The lines.
        seconds: Duration of each line.

    Raises:
        InputError: The dialogue is too long.
    """
    starts: list[float] = []
    for k, line in enumerate(lines):
        end = max((start + length for start, length in zip(starts, seconds, strict=False)), default=0.0)
        if line.cue == "at":
            start = line.value
        elif line.cue == "overlap" and starts:
            start = max(starts[-1], end - line.value)
        elif not starts:
            start = line.value if line.cue == "pause" else LEAD_IN
        elif line.cue == "pause":
            start = end + line.value
        else:
            before = lines[k - 1]
            gap = GAPS.get(_last_sign(before.text), GAP)
            start = end + (max(gap, SAME_SPEAKER) if before.speaker == line.speaker else gap)
        starts.append(round(start, 3))
        _check_seconds(starts[-1] + seconds[k], f"line {line.number}")
    return starts


def own_overlaps(lines: Sequence[ScriptLine], starts: Sequence[float], seconds: Sequence[float]) -> list[str]:
    """Notices about characters who would say two lines at once."""
    notices = []
    for name in speakers(lines):
        own = sorted(
            (starts[k], starts[k] + seconds[k], line.number) for k, line in enumerate(lines) if line.speaker == name
        )
        for (_, end, first), (start, _, second) in zip(own, own[1:], strict=False):
            if start < end - 0.01:
                notices.append(f"{name} says line {second} before the end of line {first}; change its cue.")
    return notices


def trim_silence(waveform: Tensor, rate: int) -> Tensor:
    """[channels, samples] without the silence before and after the speech, so that gaps are as planned.

    Raises:
        InputError: There is only silence.
    """
    level = waveform.abs().amax(0)
    peak = float(level.max()) if level.numel() else 0.0
    loud = (level > FLOOR * peak).nonzero()
    if not len(loud):
        raise InputError("a synthesized line is silent", "speech", "change its text, or choose another voice")
    margin = round(KEPT * rate)
    return waveform[:, max(0, int(loud[0]) - margin) : int(loud[-1]) + 1 + margin]


def subtitles(lines: Sequence[ScriptLine], starts: Sequence[float], seconds: Sequence[float]) -> str:
    """The dialogue as SRT, with the names of the speakers."""
    cues = []
    for number, k in enumerate(sorted(range(len(lines)), key=starts.__getitem__), 1):
        times = f"{_clock(starts[k])} --> {_clock(starts[k] + seconds[k])}"
        cues.append(f"{number}\n{times}\n{lines[k].speaker}: {lines[k].text}\n")
    return "\n".join(cues)


def _last_sign(text: str) -> str:
    sign = "…" if text.endswith("...") else text.rstrip("\"'”’»")[-1:]
    return {"–": "-", "—": "-", "？": "?", "！": "!"}.get(sign, sign)


def _clock(seconds: float) -> str:
    milliseconds = round(1000 * seconds)
    rest, milliseconds = divmod(milliseconds, 1000)
    return f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02},{milliseconds:03}"


def _check_seconds(value: float, what: str) -> None:
    if value > MAX_SECONDS:
        raise InputError(f"{what} at {value:g} s", f"at most {MAX_SECONDS} s", "shorten the dialogue")
