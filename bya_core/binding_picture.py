"""The picture of a binding report: every mouth against every voice, and both over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bya_core.overlay import colour

if TYPE_CHECKING:
    from bya_core.binding_report import Lane

Rgb = tuple[int, int, int]

WIDTH, MARGIN, LINE = 1152, 28, 30  # pixels
CELL, LABEL, LANE = (104, 60), 150, 112
GROUND, PANEL, GRID = (24, 24, 28), (36, 36, 42), (70, 70, 78)
WHITE, GREY = (240, 240, 240), (165, 165, 172)
GREEN, RED, UNCLEAR = (46, 160, 94), (200, 62, 62), (120, 120, 128)


def draw_report(
    lanes: Sequence[Lane], follows: np.ndarray, voices: Sequence[str], fps: float, measure: str
) -> Image.Image:
    """The whole page.

    Args:
        lanes: one per character.
        follows: correlation of mouths with voices [N, M].
        voices: names of the M voices.
        fps: frames a second.
        measure: what the mouths were measured by.
    """
    top = MARGIN + 2 * LINE
    table = LINE + CELL[1] * len(lanes)
    height = top + table + 2 * LINE + (LANE + LINE) * len(lanes) + LINE + MARGIN
    page = Image.new("RGB", (WIDTH, height), GROUND)
    draw = ImageDraw.Draw(page)
    _say(draw, MARGIN, MARGIN + LINE * 0.3, "Does every mouth follow its own voice?", 25, WHITE)
    _say(draw, MARGIN, MARGIN + LINE * 1.35, f"measured by {measure}; a framed cell is where it should be high", 15)
    _matrix(draw, top, lanes, follows, voices)
    y = top + table + LINE
    _legend(draw, y)
    y += LINE
    for n, lane in enumerate(lanes):
        _lane(draw, y, n, lane, voices)
        y += LANE + LINE
    _seconds(draw, y - LINE * 0.4, len(lanes[0].mouth) / fps)
    return page


def _say(
    draw: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int, ink: Rgb = GREY, anchor: str = "lm"
) -> None:
    draw.text((x, y), text, fill=ink, font=ImageFont.load_default(size=size), anchor=anchor)


def _short(text: str, most: int = 16) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _matrix(
    draw: ImageDraw.ImageDraw, top: float, lanes: Sequence[Lane], follows: np.ndarray, voices: Sequence[str]
) -> None:
    """Rows are mouths, columns are voices; beside each row, what is to be said of it."""
    left = MARGIN + LABEL
    width = min(CELL[0], (WIDTH // 2 - left) // max(1, len(voices)))
    _say(draw, left - 10, top + LINE / 2, "voice of", 14, GREY, "rm")
    for m, voice in enumerate(voices):
        _say(draw, left + (m + 0.5) * width, top + LINE / 2, _short(voice, width // 8), 14, GREY, "mm")
    for n, lane in enumerate(lanes):
        y = top + LINE + n * CELL[1]
        draw.rectangle((MARGIN, y + 18, MARGIN + 14, y + CELL[1] - 22), fill=colour(n))
        _say(draw, MARGIN + 24, y + CELL[1] / 2, _short(lane.name), 16, WHITE)
        for m in range(len(voices)):
            value, right = float(follows[n, m]), lane.heard == m
            box = (left + m * width + 2, y + 2, left + (m + 1) * width - 2, y + CELL[1] - 2)
            draw.rounded_rectangle(box, 6, fill=_cell(value, right), outline=WHITE if right else None, width=2)
            _say(draw, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, f"{value:.2f}", 18, WHITE, "mm")
        _verdict(draw, left + len(voices) * width + 24, y, lane)


def _cell(value: float, right: bool) -> Rgb:
    """Green the more a mouth follows the voice it should; red the more it follows another, or the less it follows."""
    strength = float(np.clip(value / 0.6, 0.0, 1.0))
    if right:
        return _mixed(RED, GREEN, strength) if strength > 0 else RED
    return _mixed(PANEL, RED, strength)


def _mixed(one: Rgb, other: Rgb, share: float) -> Rgb:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _verdict(draw: ImageDraw.ImageDraw, x: float, y: float, lane: Lane) -> None:
    ink = UNCLEAR if lane.good is None else GREEN if lane.good else RED
    draw.ellipse((x, y + CELL[1] / 2 - 8, x + 16, y + CELL[1] / 2 + 8), fill=ink)
    font = ImageFont.load_default(size=15)
    room, lines, line = WIDTH - MARGIN - x - 28, [], ""
    for word in lane.text.split():
        longer = f"{line} {word}".strip()
        if draw.textlength(longer, font=font) > room and line:
            lines.append(line)
            line = word
        else:
            line = longer
    lines = [*lines, line][:3]
    for k, part in enumerate(lines):
        _say(draw, x + 28, y + CELL[1] / 2 + (k - (len(lines) - 1) / 2) * 18, part, 15, WHITE)


def _legend(draw: ImageDraw.ImageDraw, y: float) -> None:
    _say(draw, MARGIN, y, "Over time: filled = loudness of the voice it should follow, line = its mouth", 15)


def _lane(draw: ImageDraw.ImageDraw, y: float, n: int, lane: Lane, voices: Sequence[str]) -> None:
    left, right, bottom = MARGIN, WIDTH - MARGIN, y + LANE
    draw.rounded_rectangle((left, y, right, bottom), 6, fill=PANEL)
    heard = f"hears the voice of {voices[lane.heard]}" if lane.heard >= 0 else "listens"
    xs = np.linspace(left + 6, right - 6, len(lane.mouth))
    loud = bottom - 4 - lane.loudness * (LANE - 34)
    if lane.heard >= 0:
        shape = [(xs[0], bottom - 4), *zip(xs.tolist(), loud.tolist(), strict=True), (xs[-1], bottom - 4)]
        draw.polygon(shape, fill=_mixed(PANEL, colour(n), 0.75))
    mouth = bottom - 4 - lane.mouth * (LANE - 34)
    draw.line(list(zip(xs.tolist(), mouth.tolist(), strict=True)), fill=WHITE, width=3, joint="curve")
    _say(draw, left + 10, y + 14, f"{lane.name} ({heard})", 15, WHITE)


def _seconds(draw: ImageDraw.ImageDraw, y: float, seconds: float) -> None:
    step = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 30, 60, 300) if seconds / step <= 12 or step == 300)
    for tick in np.arange(0, seconds + 1e-6, step):
        x = MARGIN + 6 + (WIDTH - 2 * MARGIN - 12) * tick / seconds
        _say(draw, x, y + 4, f"{tick:g} s", 13, GREY, "mm")
