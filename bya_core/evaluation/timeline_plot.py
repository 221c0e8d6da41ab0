"""Who speaks when, as a picture: a lane per character, the prompts, the windows, and what was warned about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from bya_core.encoders.vad import spans_of
from bya_core.io.overlay import character_color
from bya_core.sampling.windows import plan_windows
from bya_core.scene.checks import loudness
from bya_core.scene.types import Scene, SceneDefaults, Speech

Span = tuple[float, float]
Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]

FINE = 2  # drawn so many times larger, then made smaller: smooth edges
BACK, LANE, LINE, TEXT, FAINT, WARN = (
    (22, 23, 28),
    (34, 36, 44),
    (58, 61, 72),
    (236, 236, 240),
    (150, 154, 166),
    (240, 190, 90),
)
MARGIN, LEFT, LANE_HEIGHT, GAP, STRIP, HEADER, AXIS = 24, 236, 92, 10, 30, 84, 34
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)


def draw_timeline(
    scene: Scene,
    *,
    spans: Sequence[Sequence[Span]] | None = None,
    windows: Sequence[Span] = (),
    width: int = 1440,
) -> Image.Image:
    """Draw a scene over time.

    Args:
        scene: what is drawn.
        spans: when each of the N characters speaks, in seconds; None = found by voice activity.
        windows: (start, end) in seconds of the parts in which the video is made; they overlap.
        width: of the picture, in pixels.
    """
    spans = spans_of(scene) if spans is None else spans
    strips = bool(scene.prompts) + (len(windows) > 1)
    lanes = len(scene.characters) * (LANE_HEIGHT + GAP)
    notes = [line for notice in scene.notices for line in _wrapped(f"! {notice}", width - 2 * MARGIN, 14)]
    height = MARGIN + HEADER + strips * (STRIP + GAP) + lanes + AXIS + len(notes) * 20 + MARGIN
    ends = [speech.end for speech in scene.speeches if speech is not None]
    page = _Page(width, height, max([scene.seconds, *ends]))
    top = float(MARGIN)
    _header(page, scene, top)
    top += HEADER
    grid_top = top
    if scene.prompts:
        _prompts(page, scene, top)
        top += STRIP + GAP
    lanes_top = top
    for index in range(len(scene.characters)):
        _lane_back(page, top + index * (LANE_HEIGHT + GAP))
    bottom = top + lanes - GAP + (STRIP + GAP if len(windows) > 1 else 0)
    _grid(page, scene, grid_top, bottom)
    most = max([float(loudness(s).max(initial=0.0)) for s in scene.speeches if s is not None], default=0.0)
    for index in range(len(scene.characters)):
        _lane(page, scene, index, top, spans[index], most)
        top += LANE_HEIGHT + GAP
    if len(windows) > 1:
        _windows(page, windows, top, lanes_top)
    _after_the_end(page, scene, lanes_top, bottom)
    top = bottom + AXIS
    for number, line in enumerate(notes):
        page.text((MARGIN, top + 20 * number + 10), line, 14, WARN)
    return page.finished()


def window_spans(scene: Scene, defaults: SceneDefaults) -> list[Span]:
    """(start, end) in seconds of the windows in which a model makes a scene; one where it is made in one go."""
    windows = plan_windows(
        scene.num_frames,
        scene.windows.frames or defaults.max_frames,
        scene.windows.overlap,
        defaults.time_factor,
    )
    return [(window.start / scene.fps, window.stop / scene.fps) for window in windows]


@dataclass
class _Page:
    """A picture measured in the pixels it will have, and in seconds to the right.

    Args:
        width, height: in pixels.
        seconds: at the right end.
    """

    width: int
    height: int
    seconds: float
    picture: Image.Image = field(init=False)
    draw: Any = field(init=False)

    def __post_init__(self) -> None:
        self.picture = Image.new("RGB", (self.width * FINE, self.height * FINE), BACK)
        self.draw = ImageDraw.Draw(self.picture, "RGBA")

    def x(self, second: float) -> float:
        """Where a second is."""
        return MARGIN + LEFT + second / self.seconds * (self.width - 2 * MARGIN - LEFT)

    def box(self, box: Box, fill: tuple[int, ...], radius: float = 0) -> None:
        left, top, right, bottom = (round(value * FINE) for value in box)
        self.draw.rounded_rectangle((left, top, max(left, right - 1), bottom - 1), radius * FINE, fill=fill)

    def text(self, at: tuple[float, float], words: str, size: int, fill: Colour = TEXT, anchor: str = "lm") -> None:
        place = (at[0] * FINE, at[1] * FINE)
        self.draw.text(place, words, fill=fill, font=_font(size * FINE), anchor=anchor)

    def paste(self, image: Tensor, box: Box, border: Colour | None = None) -> None:
        """A picture [3, H, W] in 0..1, cut to fill the box, with round corners and a border of 3 pixels."""
        left, top, right, bottom = box
        if border is not None:
            self.box((left - 3, top - 3, right + 3, bottom + 3), border, radius=11)
        pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        size = (round((right - left) * FINE), round((bottom - top) * FINE))
        fitted = ImageOps.fit(Image.fromarray(pixels), size, Image.Resampling.LANCZOS)
        shape = Image.new("L", size)
        ImageDraw.Draw(shape).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), 8 * FINE, fill=255)
        self.picture.paste(fitted, (round(left * FINE), round(top * FINE)), shape)

    def finished(self) -> Image.Image:
        return self.picture.resize((self.width, self.height), Image.Resampling.LANCZOS)


def _header(page: _Page, scene: Scene, top: float) -> None:
    left, room = float(MARGIN), HEADER - 20
    if scene.first_frame is not None:
        wide = min(room * scene.first_frame.shape[2] / scene.first_frame.shape[1], LEFT - 16)
        page.paste(scene.first_frame, (left, top, left + wide, top + room))
    left = page.x(0)
    lines = _wrapped(scene.prompt, page.width - MARGIN - left, 17)
    lines = lines if len(lines) <= 2 else [lines[0], _short(f"{lines[1]} {lines[2]}", page.width - MARGIN - left, 17)]
    for number, line in enumerate(lines):
        page.text((left, top + 10 + 22 * number), line, 17)
    length = f"{scene.seconds:.2f} s, {scene.num_frames} frames, {scene.width}x{scene.height}"
    heard = "   voices are matched to faces" if scene.bind == "auto" else ""
    page.text((left, top + 12 + 22 * len(lines)), length + heard, 14, FAINT)


def _prompts(page: _Page, scene: Scene, top: float) -> None:
    page.text((MARGIN, top + STRIP / 2), "prompts", 14, FAINT)
    for span in scene.prompts:
        left, right = page.x(min(span.start, page.seconds)), page.x(min(span.end, page.seconds))
        page.box((left + 1, top, right - 1, top + STRIP), LINE, radius=5)
        page.text((left + 10, top + STRIP / 2), _short(span.prompt, right - left - 20, 14), 14)


def _lane_back(page: _Page, top: float) -> None:
    page.box((page.x(0), top, page.x(page.seconds), top + LANE_HEIGHT), LANE, radius=6)


def _lane(page: _Page, scene: Scene, index: int, top: float, spans: Sequence[Span], most: float) -> None:
    """One character: face, name, what is to be known, voice and speaking spans."""
    character, own = scene.characters[index], character_color(index)
    side = LANE_HEIGHT - 16
    page.paste(character.image, (MARGIN + 3, top + 8, MARGIN + 3 + side, top + 8 + side), own)
    left = MARGIN + side + 18
    lines = _facts(scene, index, spans)
    page.text((left, top + LANE_HEIGHT / 2 - 9 * len(lines)), _short(character.name, LEFT - side - 26, 17), 17)
    for number, line in enumerate(lines):
        y = top + LANE_HEIGHT / 2 - 9 * len(lines) + 21 + 18 * number
        page.text((left, y), _short(line, LEFT - side - 22, 13), 13, FAINT)
    for start, end in spans:
        page.box((page.x(start), top, page.x(end), top + LANE_HEIGHT), (*own, 56), radius=4)
        page.box((page.x(start), top, page.x(end), top + 4), own, radius=2)
    heard = driving(scene, index)
    speech = None if heard is None else scene.speeches[heard]
    if speech is not None and most > 0:
        _wave(page, speech, top, spans, own, most)
    else:
        middle = top + LANE_HEIGHT / 2
        page.box((page.x(0), middle - 0.5, page.x(page.seconds), middle + 0.5), LINE)


def _wave(page: _Page, speech: Speech, top: float, spans: Sequence[Span], own: Colour, most: float) -> None:
    """Loudness as thin bars around the middle; strong where it is speech."""
    bars = int(page.x(page.seconds) - page.x(0)) // 3
    hop = page.seconds / bars
    middle = top + LANE_HEIGHT / 2 + 2
    pale = tuple(round(0.45 * part + 0.55 * back) for part, back in zip(own, LANE, strict=True))
    for number, value in enumerate(loudness(speech, hop)[:bars]):
        start, end = number * hop, (number + 1) * hop
        spoken = any(start < last and end > first for first, last in spans)
        tall = max(1.0, (LANE_HEIGHT / 2 - 8) * min(1.0, float(value) / most) ** 0.7)
        left = page.x(start)
        page.box((left, middle - tall, left + 2, middle + tall), own if spoken else pale, radius=1)


def driving(scene: Scene, index: int) -> int | None:
    """Number of the speech that moves a character most, or None."""
    column = scene.matrix[:, index]
    return int(column.argmax()) if column.numel() and float(column.max()) > 0 else None


def _facts(scene: Scene, index: int, spans: Sequence[Span]) -> list[str]:
    heard = driving(scene, index)
    speech = None if heard is None else scene.speeches[heard]
    spoken = sum(end - start for start, end in spans)
    if speech is None:
        facts = ["listens"]
    else:
        facts = [f"speaks {spoken:.1f} s" if spans else "silent"]
    if heard is not None and heard != index and speech is not None and scene.bind == "given":
        names = [character.name for character in scene.characters]
        facts.append(f"hears {names[heard] if heard < len(names) else f'speech {heard + 1}'}")
    if scene.speech_strength is not None and float(scene.speech_strength[index]) != 1:
        facts.append(f"strength {float(scene.speech_strength[index]):g}")
    return facts


def _grid(page: _Page, scene: Scene, top: float, bottom: float) -> None:
    """Seconds below, and faint lines up through the lanes."""
    step = next((tick for tick in TICKS if page.x(tick) - page.x(0) >= 64), TICKS[-1])
    for number in range(math.floor(page.seconds / step + 1e-6) + 1):
        second = number * step
        x = page.x(second)
        page.box((x - 0.5, top, x + 0.5, bottom + 5), LINE)
        said = f"{second:g} s" if page.seconds < 90 else f"{int(second) // 60}:{int(second) % 60:02d}"
        page.text((x, bottom + 16), said, 13, FAINT, "mm" if number else "lm")


def _windows(page: _Page, windows: Sequence[Span], top: float, lanes_top: float) -> None:
    """A bar per window; where two overlap, both are seen."""
    page.text((MARGIN, top + STRIP / 2), f"{len(windows)} windows", 14, FAINT)
    for number, (start, end) in enumerate(windows):
        left, right = page.x(start), page.x(end)
        lower = top + (STRIP / 2 if number % 2 else 0)
        page.box((left + 1, lower + 2, right - 1, lower + STRIP / 2 - 2), (112, 118, 138), radius=4)
        if right - left > 30:
            page.text(((left + right) / 2, lower + STRIP / 4), str(number + 1), 11, BACK, "mm")
        if number:
            for y in range(round(lanes_top), round(top), 9):
                page.box((left - 0.5, y, left + 0.5, y + 5), (170, 175, 190))


def _after_the_end(page: _Page, scene: Scene, top: float, bottom: float) -> None:
    """What is longer than the video is dimmed."""
    if page.seconds > scene.seconds + 0.5 / scene.fps:
        left = page.x(scene.seconds)
        page.box((left, top, page.x(page.seconds) + 1, bottom), (*BACK, 190))
        page.box((left - 1, top, left + 1, bottom), WARN)
        page.text((left + 8, top + 12), "end of the video", 13, WARN)


def _font(size: float) -> Any:
    return ImageFont.load_default(size=size)


def _wide(words: str, size: int) -> float:
    return float(_font(size).getlength(words))


def _short(words: str, room: float, size: int) -> str:
    """As much as there is room for."""
    words = " ".join(words.split())
    if _wide(words, size) <= room:
        return words
    while words and _wide(words + "...", size) > room:
        words = words[:-1]
    return words.rstrip() + "..." if words else ""


def _wrapped(words: str, room: float, size: int) -> list[str]:
    lines: list[str] = []
    for word in words.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _wide(longer, size) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
