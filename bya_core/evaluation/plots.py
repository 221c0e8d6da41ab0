"""Plots by matplotlib, without pyplot or a display: a pixel layout for all of them, and the binding report."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from bya_core.encoders.vad import true_spans
from bya_core.evaluation.verdict import Scale
from bya_core.io.overlay import character_color

DPI = 96
BACKGROUND, LISTENING, PANEL, LINE = "#16171c", "#1b1d24", "#2a2d37", "#4a4d5a"
TEXT, MUTED = "#ececf0", "#a3a7b4"
GOOD, BAD, NEUTRAL = "#2ea05e", "#c83e3e", "#7b7e88"

WIDTH, MARGIN = 1152, 28  # pixels
CELL, NAME_WIDTH, LANE_HEIGHT, TRACK_HEIGHT = 58, 168, 104, 26


class Page:
    """A figure whose content is placed in pixels from the top left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=BACKGROUND)
        self.canvas = FigureCanvasAgg(self.figure)

    def axes(self, left: float, top: float, width: float, height: float, face: str = PANEL) -> Axes:
        """Axes without ticks and frame."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box, facecolor=face)
        axes.tick_params(left=False, bottom=False, labelleft=False, labelbottom=False, colors=MUTED, labelsize=9)
        axes.spines[:].set_visible(False)
        return axes

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 10,
        color: Any = MUTED,
        room: float | None = None,
        **style: Any,
    ) -> Text:
        """One line, vertically centered on `y`; shortened if it is wider than `room` pixels."""
        options: dict[str, Any] = {"va": "center", "ha": "left", "parse_math": False} | style
        label = self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=size, color=color, **options)
        if room is not None:
            self.shorten(label, room)
        return label

    def picture(self, image: Tensor, left: float, top: float, width: float, height: float) -> Axes:
        """An image [3, H, W] in 0..1, as large as fits into a box; returns axes in pixels of the image."""
        scale = min(width / image.shape[2], height / image.shape[1])
        axes = self.axes(left, top, scale * image.shape[2], scale * image.shape[1])
        axes.imshow(image.clamp(0, 1).permute(1, 2, 0).float().cpu().numpy(), aspect="auto")
        return axes

    def shorten(self, text: Text, room: float) -> None:
        """Cut the end of a text until it fits into `room` pixels."""
        words = text.get_text()
        if len(words) > room:  # letters are wider than a pixel
            words = words[: int(room)]
            text.set_text(words + "…")
        while len(words) > 1 and self.extent(text) > room:
            words = words[: max(1, min(len(words) - 1, int(len(words) * room / self.extent(text))))].rstrip()
            text.set_text(words + "…")

    def extent(self, text: Text) -> float:
        """Width in pixels."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")
            return float(text.get_window_extent(self.canvas.get_renderer()).width)

    def wrap(self, text: str, size: float, room: float, lines: int) -> str:
        """Text in at most `lines` lines of about `room` pixels."""
        columns = max(8, int(room / (0.56 * size * DPI / 72)))
        return textwrap.fill(text[: 2 * columns * lines], columns, max_lines=lines, placeholder=" …")

    def image(self) -> Image.Image:
        with warnings.catch_warnings():  # the font of matplotlib has no glyphs for some scripts
            warnings.filterwarnings("ignore", "Glyph .* missing")
            self.canvas.draw()
        return Image.fromarray(np.asarray(self.canvas.buffer_rgba())[..., :3].copy())


def rgb(index: int, alpha: float = 1.0) -> tuple[float, float, float, float]:
    """Color of character `index` for matplotlib."""
    red, green, blue = character_color(index)
    return red / 255, green / 255, blue / 255, alpha


def time_axis(axes: Axes, seconds: float) -> None:
    """Label the lower edge of axes in seconds, or minutes and seconds."""
    axes.tick_params(bottom=True, labelbottom=True)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=12, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(
        lambda x, _: f"{x:g} s" if seconds < 90 else f"{int(x) // 60}:{int(x) % 60:02d}"  # type: ignore[arg-type]
    )


@dataclass(frozen=True)
class Lane:
    """One character of a binding report over F frames.

    Args:
        name: of the character.
        target: index of the assigned voice; -1 = listener.
        mouth: movement of the mouth [F], 0 = closed or still, 1 = maximum over all characters.
        loudness: of the assigned voice [F], relative to its maximum; zeros for a listener.
        verdict: "own", "wrong", "shifted", "unclear", "still" or "moves".
        text: the verdict as a sentence.
        listening: where the assigned voice is silent, bool [F].
        coverage: fraction of the frame covered by the mask [F].
        identity: similarity to the own reference image, and to the most similar other (-1 if there is none), [F] each;
            None = not measured.
        failed: where something is not as expected, bool [F].
        local: scores around each frame with the assigned voice, and with the best other (NaN if there is none), [F]
            each; None = not measured.
    """

    name: str
    target: int
    mouth: np.ndarray
    loudness: np.ndarray
    verdict: str
    text: str
    listening: np.ndarray
    coverage: np.ndarray
    identity: tuple[np.ndarray, np.ndarray] | None
    failed: np.ndarray
    local: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def passed(self) -> bool | None:
        """True = as expected, False = not, None = inconclusive."""
        return None if self.verdict == "unclear" else self.verdict in ("own", "still")


def draw_report(
    lanes: Sequence[Lane], scores: np.ndarray, voices: Sequence[str], fps: float, scale: Scale
) -> Image.Image:
    """Plot a binding report.

    Args:
        lanes: one per character.
        scores: of each mouth with each voice [N, M]; NaN = not measured.
        voices: names of the M voices.
        fps: frames per second.
        scale: meaning of the scores.
    """
    top = MARGIN + 64
    tracks = 1 + any(lane.identity is not None for lane in lanes)
    lane_height = LANE_HEIGHT + tracks * TRACK_HEIGHT + 14 + 26
    lanes_top = top + 30 + CELL * len(lanes) + 74
    page = Page(WIDTH, lanes_top + lane_height * len(lanes) + MARGIN)
    page.text(MARGIN, MARGIN + 8, "Does every mouth follow its own voice?", 17, TEXT)
    subtitle = f"Measured by {scale.name}. The outlined cell of each row should have the highest score."
    page.text(MARGIN, MARGIN + 36, subtitle)
    _draw_scores(page, top, lanes, scores, voices, scale.full)
    _draw_legend(page, lanes_top - 52)
    for n, lane in enumerate(lanes):
        _draw_lane(page, lanes_top + n * lane_height, n, lane, voices, fps, last=n == len(lanes) - 1)
    return page.image()


def _draw_scores(
    page: Page, top: float, lanes: Sequence[Lane], scores: np.ndarray, voices: Sequence[str], full: float
) -> None:
    """Rows are mouths, columns are voices; the verdict is to the right of each row."""
    left, count = MARGIN + NAME_WIDTH, len(voices)
    cell = min(104, (WIDTH // 2 - left + 60) // max(1, count))
    page.text(left - 12, top + 14, "mouth of ↓   voice of →", 9, ha="right")
    axes = page.axes(left, top + 30, cell * count, CELL * len(lanes), BACKGROUND)
    axes.set(xlim=(0, count), ylim=(len(lanes), 0))
    for m, voice in enumerate(voices):
        page.text(left + (m + 0.5) * cell, top + 14, voice, 10, TEXT, room=cell - 6, ha="center")
    for n, lane in enumerate(lanes):
        middle = top + 30 + (n + 0.5) * CELL
        swatch = page.axes(MARGIN, middle - 9, 14, 18)
        swatch.set_facecolor(rgb(n))
        page.text(MARGIN + 24, middle, lane.name, 12, TEXT, room=NAME_WIDTH - 40)
        for m in range(count):
            target, value = lane.target == m, float(scores[n, m])
            width, height = 1 - 4 / cell, 1 - 4 / CELL
            edge = TEXT if target else "none"
            box = (m + 2 / cell, n + 2 / CELL)
            known = np.isfinite(value)
            face = _score_color(value / full, target) if known else LINE
            axes.add_patch(Rectangle(box, width, height, facecolor=face, edgecolor=edge, lw=1.6))
            text, size = (f"{value:.2f}", 11) if known else ("not\nmeasured", min(9, cell / 8))
            axes.text(m + 0.5, n + 0.5, text, color=TEXT, fontsize=size, ha="center", va="center")
        x = left + count * cell + 24
        color = NEUTRAL if lane.passed is None else GOOD if lane.passed else BAD
        page.text(x, middle, "●", 14, color)
        room = WIDTH - MARGIN - x - 26
        page.text(x + 26, middle, page.wrap(lane.text, 10, room, 3), 10, TEXT, linespacing=1.25)


def _score_color(value: float, target: bool) -> np.ndarray:
    """Green for a target cell with a high score, red for one with a low score or another cell with a high score."""
    from matplotlib.colors import to_rgb

    low, high = (BAD, GOOD) if target else (PANEL, BAD)
    share = float(np.clip(value, 0.0, 1.0))
    return (1 - share) * np.array(to_rgb(low)) + share * np.array(to_rgb(high))


def _draw_legend(page: Page, top: float) -> None:
    handles = [
        Patch(color="#8a8d98", label="loudness of the assigned voice"),
        Patch(color=TEXT, label="mouth movement"),
        Patch(fc=LISTENING, ec=LINE, label="listening"),
        Patch(color=GOOD, label="as expected"),
        Patch(color=BAD, label="not as expected"),
        Patch(color=NEUTRAL, label="inconclusive, or similarity to another character"),
    ]
    place = (MARGIN / page.width, 1 - top / page.height)
    page.figure.legend(
        handles=handles, ncols=6, loc="upper left", bbox_to_anchor=place, frameon=False, fontsize=9, labelcolor=MUTED,
        borderpad=0, borderaxespad=0, handlelength=1.2, columnspacing=1.6,
    )  # fmt: skip


def _draw_lane(page: Page, top: float, n: int, lane: Lane, voices: Sequence[str], fps: float, last: bool) -> None:
    """Mouth and voice of one character over time, then coverage, identity, and where it is as expected."""
    width, seconds = WIDTH - 2 * MARGIN, len(lane.mouth) / fps
    times = (np.arange(len(lane.mouth)) + 0.5) / fps

    def track(height: float, face: str = PANEL) -> Axes:
        nonlocal top
        axes = page.axes(MARGIN, top, width, height, face)
        axes.set_xlim(0, seconds)
        top += height + 2
        return axes

    voice = f"voice of {voices[lane.target]}" if lane.target >= 0 else "listener"
    page.text(MARGIN, top + 8, f"{lane.name} ({voice})", 11, TEXT, room=width)
    top += 20
    axes = track(LANE_HEIGHT - 20)
    axes.set_ylim(0, 1.05)
    for begin, end in true_spans(lane.listening, fps):
        axes.axvspan(begin, end, color=LISTENING, lw=0)
    if lane.target >= 0:
        axes.fill_between(times, lane.loudness, color=rgb(n, 0.75), lw=0)
    axes.plot(times, lane.mouth, color=TEXT, lw=1.8)
    axes = track(TRACK_HEIGHT)
    axes.plot(times, lane.coverage, color=rgb(n), lw=1.5)
    axes.set_ylim(0, max(float(lane.coverage.max(initial=0.0)), 1e-9) * 1.15)
    _annotate(axes, f"{lane.coverage.mean():.0%} of the frame")
    if lane.identity is not None:
        own, rival = lane.identity
        axes = track(TRACK_HEIGHT)
        axes.plot(times, rival, color=NEUTRAL, lw=1)
        axes.plot(times, own, color=rgb(n), lw=1.5)
        axes.set_ylim(0, 1.05)
        known = own[np.isfinite(own)]
        _annotate(axes, f"similarity to the reference {known.mean():.2f}" if known.size else "not measured")
    axes = track(10, NEUTRAL if lane.passed is None else GOOD)
    axes.set_ylim(0, 1)
    for begin, end in true_spans(lane.failed, fps):
        axes.axvspan(begin, end, color=BAD, lw=0)
    if last:
        time_axis(axes, seconds)


def _annotate(axes: Axes, text: str) -> None:
    box = {"facecolor": BACKGROUND, "alpha": 0.7, "lw": 0, "pad": 2}
    axes.text(0.006, 0.5, text, transform=axes.transAxes, color=MUTED, fontsize=8.5, va="center", bbox=box)


def draw_speakers(names: Sequence[str], lanes: np.ndarray, scores: np.ndarray, speech: np.ndarray) -> Image.Image:
    """Plot who speaks when: a lane per face.

    Args:
        names: of the N faces.
        lanes: who speaks, bool [N, L] at 25 frames per second.
        scores: probability that each face speaks [N, L].
        speech: frames with speech, bool [L].
    """
    height, top = 70, MARGIN + 44
    page = Page(WIDTH, top + len(names) * height + 26 + MARGIN)
    page.text(MARGIN, MARGIN + 8, "Who speaks when", 17, TEXT)
    left, seconds = MARGIN + NAME_WIDTH, lanes.shape[1] / 25
    for n, name in enumerate(names):
        page.text(MARGIN, top + height / 2, name, 12, TEXT, room=NAME_WIDTH - 16)
        axes = page.axes(left, top, WIDTH - MARGIN - left, height - 8)
        axes.set(xlim=(0, seconds), ylim=(0, 1.02))
        for begin, end in true_spans(~speech, 25.0):
            axes.axvspan(begin, end, color=LISTENING, lw=0)
        for begin, end in true_spans(lanes[n], 25.0):
            axes.axvspan(begin, end, color=rgb(n, 0.75), lw=0)
        axes.plot((np.arange(lanes.shape[1]) + 0.5) / 25, scores[n], color=TEXT, lw=1.2)
        top += height
    time_axis(axes, seconds)
    return page.image()
