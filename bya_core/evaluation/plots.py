"""The picture of a binding report: every mouth against every voice, and both over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bya_core.io.overlay import character_color

if TYPE_CHECKING:
    from bya_core.evaluation.binding_scores import Scale
    from bya_core.evaluation.report import Lane

Rgb = tuple[int, int, int]

WIDTH, MARGIN, LINE = 1152, 28, 30  # pixels
CELL, LABEL, LANE = (104, 60), 150, 112
ROW, STRIP = 24, 10  # height of a thin track below a lane, and of the strip that says when all is well
GROUND, PANEL, GRID = (24, 24, 28), (36, 36, 42), (70, 70, 78)
WHITE, GREY = (240, 240, 240), (165, 165, 172)
GREEN, RED, UNCLEAR = (46, 160, 94), (200, 62, 62), (120, 120, 128)


def draw_report(
    lanes: Sequence[Lane], follows: np.ndarray, voices: Sequence[str], fps: float, scale: Scale
) -> Image.Image:
    """The whole page.

    Args:
        lanes: one per character.
        follows: score of mouths with voices [N, M].
        voices: names of the M voices.
        fps: frames a second.
        scale: what the scores mean.
    """
    top = MARGIN + 2 * LINE
    table = LINE + CELL[1] * len(lanes)
    tall = LANE + ROW * (1 + any(lane.identity is not None for lane in lanes)) + STRIP + LINE
    height = round(top + table + 2.7 * LINE + tall * len(lanes) + LINE + MARGIN)
    page = Image.new("RGB", (WIDTH, height), GROUND)
    draw = ImageDraw.Draw(page)
    _say(draw, MARGIN, MARGIN + LINE * 0.3, "Does every mouth follow its own voice?", 25, WHITE)
    _say(draw, MARGIN, MARGIN + LINE * 1.35, f"measured by {scale.name}; a framed cell is where it should be high", 15)
    _matrix(draw, top, lanes, follows, voices, scale.full)
    y = top + table + LINE
    _legend(draw, y)
    y += round(LINE * 1.7)
    for n, lane in enumerate(lanes):
        _lane(draw, y, n, lane, voices)
        y += tall
    _seconds(draw, y - LINE * 0.4, len(lanes[0].mouth) / fps)
    return page


def _say(
    draw: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int, ink: Rgb = GREY, anchor: str = "lm"
) -> None:
    draw.text((x, y), text, fill=ink, font=ImageFont.load_default(size=size), anchor=anchor)


def _short(text: str, most: int = 16) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _matrix(
    draw: ImageDraw.ImageDraw,
    top: float,
    lanes: Sequence[Lane],
    follows: np.ndarray,
    voices: Sequence[str],
    full: float,
) -> None:
    """Rows are mouths, columns are voices; beside each row, what is to be said of it."""
    left = MARGIN + LABEL
    width = min(CELL[0], (WIDTH // 2 - left) // max(1, len(voices)))
    _say(draw, left - 10, top + LINE / 2, "voice of", 14, GREY, "rm")
    for m, voice in enumerate(voices):
        _say(draw, left + (m + 0.5) * width, top + LINE / 2, _short(voice, width // 8), 14, GREY, "mm")
    for n, lane in enumerate(lanes):
        y = top + LINE + n * CELL[1]
        draw.rectangle((MARGIN, y + 18, MARGIN + 14, y + CELL[1] - 22), fill=character_color(n))
        _say(draw, MARGIN + 24, y + CELL[1] / 2, _short(lane.name), 16, WHITE)
        for m in range(len(voices)):
            value, right = float(follows[n, m]), lane.heard == m
            box = (left + m * width + 2, y + 2, left + (m + 1) * width - 2, y + CELL[1] - 2)
            draw.rounded_rectangle(box, 6, fill=_cell(value / full, right), outline=WHITE if right else None, width=2)
            _say(draw, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, f"{value:.2f}", 18, WHITE, "mm")
        _verdict(draw, left + len(voices) * width + 24, y, lane)


def _cell(value: float, right: bool) -> Rgb:
    """Green the more a mouth follows the voice it should; red the more it follows another, or the less it follows."""
    strength = float(np.clip(value, 0.0, 1.0))
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
    above = "Over time: filled = loudness of the voice it should follow, line = its mouth, dark = it listens."
    _say(draw, MARGIN, y, above, 15)
    below = "Below: share of the picture, likeness to the own reference (grey: to the next one), and a strip: "
    _say(draw, MARGIN, y + 20, below, 15)
    x = MARGIN + draw.textlength(below, font=ImageFont.load_default(size=15))
    _say(draw, x, y + 20, "as it should be", 15, GREEN)
    x += draw.textlength("as it should be  ", font=ImageFont.load_default(size=15))
    _say(draw, x, y + 20, "not", 15, RED)


def _lane(draw: ImageDraw.ImageDraw, y: float, n: int, lane: Lane, voices: Sequence[str]) -> None:
    left, right, bottom = MARGIN, WIDTH - MARGIN, y + LANE
    draw.rounded_rectangle((left, y, right, bottom), 6, fill=PANEL)
    heard = f"hears the voice of {voices[lane.heard]}" if lane.heard >= 0 else "listens"
    xs = np.linspace(left + 6, right - 6, len(lane.mouth))
    _where(draw, xs, lane.listening, y + 1, bottom - 1, GROUND)
    loud = bottom - 4 - lane.loudness * (LANE - 34)
    if lane.heard >= 0:
        shape = [(xs[0], bottom - 4), *zip(xs.tolist(), loud.tolist(), strict=True), (xs[-1], bottom - 4)]
        draw.polygon(shape, fill=_mixed(PANEL, character_color(n), 0.75))
    _line(draw, xs, bottom - 4 - lane.mouth * (LANE - 34), WHITE, 3)
    _say(draw, left + 10, y + 14, f"{lane.name} ({heard})", 15, WHITE)
    y = bottom + 2
    most = max(float(lane.coverage.max(initial=0.0)), 1e-9)
    _line(draw, xs, y + ROW - 2 - lane.coverage / most * (ROW - 6), character_color(n), 2)
    _note(draw, left + 8, y + ROW / 2, f"{lane.coverage.mean():.0%} of the picture")
    y += ROW
    if lane.identity is not None:
        own, rival = lane.identity
        for values, ink, wide in ((rival, UNCLEAR, 1), (own, character_color(n), 2)):
            _line(draw, xs, y + ROW - 2 - np.clip(values, 0.0, 1.0) * (ROW - 6), ink, wide)
        mean = float(own[np.isfinite(own)].mean()) if np.isfinite(own).any() else float("nan")
        _note(draw, left + 8, y + ROW / 2, f"likeness {mean:.2f}")
        y += ROW
    draw.rectangle((xs[0], y, xs[-1], y + STRIP - 2), fill=UNCLEAR if lane.good is None else GREEN)
    _where(draw, xs, lane.bad, y, y + STRIP - 2, RED)


def _note(draw: ImageDraw.ImageDraw, x: float, y: float, text: str) -> None:
    """Small words over a track."""
    wide = draw.textlength(text, font=ImageFont.load_default(size=12))
    draw.rectangle((x - 2, y - 8, x + wide + 4, y + 7), fill=GROUND)
    _say(draw, x, y, text, 12)


def _line(draw: ImageDraw.ImageDraw, xs: np.ndarray, ys: np.ndarray, ink: Rgb, width: int) -> None:
    """A track over time, with gaps where it is not a number."""
    known = np.isfinite(ys)
    edges = np.flatnonzero(np.diff(known.astype(np.int8), prepend=0, append=0))
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        points = list(zip(xs[begin:end].tolist(), ys[begin:end].tolist(), strict=True))
        if len(points) > 1:
            draw.line(points, fill=ink, width=width, joint="curve")


def _where(draw: ImageDraw.ImageDraw, xs: np.ndarray, where: np.ndarray, top: float, bottom: float, ink: Rgb) -> None:
    """Stretches of time, filled."""
    half = (xs[-1] - xs[0]) / max(1, 2 * (len(xs) - 1))
    edges = np.flatnonzero(np.diff(where.astype(np.int8), prepend=0, append=0))
    for begin, end in zip(edges[::2], edges[1::2] - 1, strict=True):
        draw.rectangle((max(xs[0], xs[begin] - half), top, min(xs[-1], xs[end] + half), bottom), fill=ink)


def _seconds(draw: ImageDraw.ImageDraw, y: float, seconds: float) -> None:
    step = next(step for step in (0.25, 0.5, 1, 2, 5, 10, 30, 60, 300) if seconds / step <= 12 or step == 300)
    for tick in np.arange(0, seconds + 1e-6, step):
        x = MARGIN + 6 + (WIDTH - 2 * MARGIN - 12) * tick / seconds
        _say(draw, x, y + 4, f"{tick:g} s", 13, GREY, "mm")
