"""Plot of the speech of a scene over time: one lane per character, prompts, windows and notices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from PIL import Image, ImageOps
from torch import Tensor

from bya_core.encoders.vad import spans_of
from bya_core.evaluation.plots import BACKGROUND, LINE, MUTED, PANEL, TEXT, Page, rgb, time_axis
from bya_core.scene.checks import loudness
from bya_core.scene.types import Scene, SceneDefaults
from bya_core.scene.windows import plan_windows

Span = tuple[float, float]

NOTICE = "#f0be5a"
WIDTH, MARGIN, LEFT, LANE_HEIGHT, GAP, STRIP, HEADER, AXIS = 1440, 24, 236, 88, 12, 28, 84, 40  # pixels


def timeline_page(scene: Scene, *, spans: Sequence[Sequence[Span]] | None = None, windows: Sequence[Span] = ()) -> Page:
    """Plot a scene over time. The axes are labeled "prompts", "windows" and by the names of the characters.

    Args:
        scene: the scene.
        spans: (start, end) in seconds of the speech of each of the N characters; None = voice activity detection.
        windows: (start, end) in seconds of the overlapping windows in which the video is generated.
    """
    spans = spans_of(scene) if spans is None else spans
    seconds = max([scene.seconds, *(speech.end for speech in scene.speeches if speech is not None)])
    strips = bool(scene.prompts) + (len(windows) > 1)
    notice_lines = [f"⚠ {notice}" for notice in scene.notices]
    height = 2 * MARGIN + HEADER + strips * (STRIP + GAP) + len(scene.characters) * (LANE_HEIGHT + GAP) + AXIS
    page = Page(WIDTH, height + 22 * len(notice_lines))
    top, room = float(MARGIN + HEADER), WIDTH - 2 * MARGIN - LEFT
    _draw_header(page, scene, room)

    def row(height: float, label: str, face: str = PANEL) -> Axes:
        nonlocal top
        axes = page.axes(MARGIN + LEFT, top, room, height, face)
        axes.set(xlim=(0, seconds), ylim=(-1, 1), label=label)
        top += height + GAP
        return axes

    if scene.prompts:
        page.text(MARGIN, top + STRIP / 2, "prompts")
        axes = row(STRIP, "prompts", BACKGROUND)
        for span in scene.prompts:
            _draw_box(page, axes, (span.start, span.end), (-1, 1), span.prompt, LINE, TEXT)
    levels = [float(loudness(speech).max(initial=0.0)) for speech in scene.speeches if speech is not None]
    lanes = []
    for index, character in enumerate(scene.characters):
        _draw_character(page, scene, index, top, spans[index])
        lanes.append(row(LANE_HEIGHT, character.name))
        _draw_speech(lanes[-1], scene, index, spans[index], seconds, max(levels, default=0.0), room)
    axes = lanes[-1]
    if len(windows) > 1:
        page.text(MARGIN, top + STRIP / 2, f"{len(windows)} windows")
        axes = row(STRIP, "windows", BACKGROUND)
        for number, window in enumerate(windows):
            vertical = (-0.95, -0.05) if number % 2 else (0.05, 0.95)
            _draw_box(page, axes, window, vertical, str(number + 1), "#70768a", BACKGROUND)
            for lane in lanes if number else ():
                lane.axvline(window[0], color=MUTED, lw=0.8, ls=(0, (3, 3)))
    time_axis(axes, seconds)
    for lane in lanes:
        lane.xaxis.set_major_locator(axes.xaxis.get_major_locator())
        lane.set_axisbelow(True)
        lane.grid(axis="x", color=LINE, lw=0.6)
        if seconds > scene.seconds + 0.5 / scene.fps:
            lane.axvspan(scene.seconds, seconds, color=BACKGROUND, alpha=0.75, lw=0, zorder=5)
            lane.axvline(scene.seconds, color=NOTICE, lw=1.5, zorder=6)
    if seconds > scene.seconds + 0.5 / scene.fps:
        lanes[0].text(scene.seconds, 0.78, "  end of the video", color=NOTICE, fontsize=9, va="center", zorder=6)
    for number, line in enumerate(notice_lines):
        page.text(MARGIN, height - MARGIN + 22 * number, line, 10, NOTICE, room=WIDTH - 2 * MARGIN)
    return page


def window_spans(scene: Scene, defaults: SceneDefaults) -> list[Span]:
    """(start, end) in seconds of the windows in which a scene is generated; one window if it is short enough."""
    windows = plan_windows(
        scene.num_frames, scene.windows.frames or defaults.max_frames, scene.windows.overlap, defaults.time_factor
    )
    return [(window.start / scene.fps, window.stop / scene.fps) for window in windows]


def assigned_speech(scene: Scene, index: int) -> int | None:
    """Index of the speech with the largest weight for character `index`; None = listener."""
    column = scene.matrix[:, index]
    return int(column.argmax()) if column.numel() and float(column.max()) > 0 else None


def _draw_header(page: Page, scene: Scene, room: float) -> None:
    """First frame, prompt and length."""
    left = MARGIN + LEFT
    if scene.first_frame is not None:
        height, width = scene.first_frame.shape[1:]
        _draw_image(
            page, scene.first_frame, MARGIN, MARGIN, min((HEADER - 20) * width / height, LEFT - 20), HEADER - 20
        )
    prompt = page.wrap(scene.prompt, 12, room, 2)
    page.text(left, MARGIN - 2, prompt, 12, TEXT, va="top", linespacing=1.3)
    facts = f"{scene.seconds:.2f} s, {scene.num_frames} frames, {scene.width}x{scene.height}"
    facts += ", voices are matched to faces" if scene.bind == "auto" else ""
    page.text(left, MARGIN + 16 + 22 * (1 + prompt.count("\n")), facts)


def _draw_character(page: Page, scene: Scene, index: int, top: float, spans: Sequence[Span]) -> None:
    """Reference image, name and facts to the left of a lane."""
    character, side = scene.characters[index], LANE_HEIGHT - 16
    page.axes(MARGIN, top + 5, side + 6, side + 6).set_facecolor(rgb(index))
    _draw_image(page, character.image, MARGIN + 3, top + 8, side, side)
    left, facts = MARGIN + side + 18, _facts(scene, index, spans)
    room, middle = LEFT - side - 26, top + LANE_HEIGHT / 2
    page.text(left, middle - 9 * len(facts), character.name, 12, TEXT, room=room)
    for number, line in enumerate(facts):
        page.text(left, middle - 9 * len(facts) + 22 + 18 * number, line, 9, room=room)


def _facts(scene: Scene, index: int, spans: Sequence[Span]) -> list[str]:
    assigned = assigned_speech(scene, index)
    speech = None if assigned is None else scene.speeches[assigned]
    if speech is None:
        facts = ["listener"]
    else:
        facts = [f"speaks {sum(end - start for start, end in spans):.1f} s" if spans else "silent"]
    if assigned is not None and assigned != index and speech is not None and scene.bind == "given":
        names = [character.name for character in scene.characters]
        facts.append(f"voice of {names[assigned]}" if assigned < len(names) else f"speech {assigned + 1}")
    if scene.speech_strength is not None and float(scene.speech_strength[index]) != 1:
        facts.append(f"strength {float(scene.speech_strength[index]):g}")
    return facts


def _draw_speech(
    axes: Axes, scene: Scene, index: int, spans: Sequence[Span], seconds: float, full: float, room: float
) -> None:
    """Loudness around the center, in full color during speech spans."""
    for start, end in spans:
        axes.axvspan(start, end, color=rgb(index, 0.22), lw=0)
        axes.axvspan(start, end, ymin=0.95, color=rgb(index), lw=0)
    assigned = assigned_speech(scene, index)
    speech = None if assigned is None else scene.speeches[assigned]
    if speech is None or not full:
        axes.axhline(0, color=LINE, lw=1)
        return
    hop = seconds * 2 / room
    values = np.clip(loudness(speech, hop)[: round(seconds / hop)] / full, 0.0, 1.0) ** 0.7
    times = (np.arange(len(values)) + 0.5) * hop
    spoken = np.zeros(len(values), dtype=bool)
    for start, end in spans:
        spoken |= (times > start - hop / 2) & (times < end + hop / 2)
    heights = np.maximum(0.02, 0.82 * values)
    for where, alpha in ((spoken, 1.0), (~spoken, 0.45)):
        axes.fill_between(times, -heights, heights, where=where, step="mid", color=rgb(index, alpha), lw=0)


def _draw_box(page: Page, axes: Axes, span: Span, vertical: Span, text: str, face: str, color: str) -> None:
    """A filled box over a time span, with as much of a text as fits."""
    start, end = span
    gap = 1.5 * (axes.get_xlim()[1] / (axes.bbox.width))
    axes.fill_between([start + gap, end - gap], vertical[0], vertical[1], color=face, lw=0)
    room = (end - start) / axes.get_xlim()[1] * axes.bbox.width - 16
    if room > 8:
        middle = (start + end) / 2, sum(vertical) / 2
        label = axes.text(*middle, " ".join(text.split()), ha="center", va="center_baseline", parse_math=False)
        label.set(color=color, fontsize=9 if vertical == (-1, 1) else 7)
        page.shorten(label, room)


def _draw_image(page: Page, image: Tensor, left: float, top: float, width: float, height: float) -> None:
    """An image [3, H, W] in 0..1, cropped to fill the box."""
    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    fitted = ImageOps.fit(Image.fromarray(pixels), (round(width), round(height)), Image.Resampling.LANCZOS)
    page.axes(left, top, round(width), round(height)).imshow(np.asarray(fitted), aspect="auto")
