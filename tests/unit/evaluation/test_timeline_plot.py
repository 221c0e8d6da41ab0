"""The drawn timeline: what is at which second, in whose colour."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from bya_core.config import WindowConfig
from bya_core.evaluation import timeline_plot as timeline_picture
from bya_core.evaluation.timeline_plot import GAP, HEADER, LANE_HEIGHT, LEFT, LINE, MARGIN, draw_timeline, window_spans
from bya_core.io.overlay import character_color
from bya_core.scene.types import Character, PromptSpan, Scene, Speech
from tests.fakes import RATE, tone
from tests.unit.scene.test_loader import DEFAULTS


@pytest.fixture
def scene() -> Scene:
    """2 s (51 frames), Ada speaks in the first half, Bo in the second, Cleo listens."""
    picture = torch.linspace(0, 1, 3 * 32 * 24).reshape(3, 32, 24)
    half = torch.from_numpy(tone(1.0)).float()[None]
    speeches = [Speech(half, RATE), Speech(half, RATE, offset=1.0), None]
    names = ("Ada", "Bo", "Cleo")
    return Scene("They talk", [Character(name, picture) for name in names], speeches, 64, 96, 50)


def lanes(picture: np.ndarray, count: int, top: int = MARGIN + HEADER) -> list[np.ndarray]:
    """[LANE_HEIGHT, width, 3] each, from second 0 on."""
    tops = [top + index * (LANE_HEIGHT + GAP) for index in range(count)]
    return [picture[y : y + LANE_HEIGHT, MARGIN + LEFT : -MARGIN] for y in tops]


def share(lane: np.ndarray, wanted: tuple[int, int, int]) -> np.ndarray:
    """Of each column, the share of pixels that have nearly that colour."""
    return (np.abs(lane.astype(int) - wanted).max(axis=-1) < 40).mean(axis=0)


def test_each_voice_stands_in_its_lane_at_its_time(scene: Scene) -> None:
    spans = [[(0.0, 1.0)], [(1.0, 2.0)], []]
    shown = lanes(np.asarray(draw_timeline(scene, spans=spans)), 3)
    for index, (first, second) in enumerate(((True, False), (False, True), (False, False))):
        seen = share(shown[index], character_color(index))
        middle = len(seen) // 2
        assert (seen[20 : middle - 20].mean() > 0.2) == first
        assert (seen[middle + 20 : -20].mean() > 0.2) == second


def test_spans_are_found_where_none_are_given(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline_picture, "spans_of", lambda _: [[(0.0, 1.0)], [(1.0, 2.0)], []])
    found, given = draw_timeline(scene), draw_timeline(scene, spans=[[(0.0, 1.0)], [(1.0, 2.0)], []])
    assert np.array_equal(np.asarray(found), np.asarray(given))


def test_a_swapped_matrix_swaps_the_lanes(scene: Scene) -> None:
    swapped = dataclasses.replace(scene, audio_character_matrix=torch.eye(3)[[1, 0, 2]])
    shown = lanes(np.asarray(draw_timeline(swapped, spans=[[(1.0, 2.0)], [(0.0, 1.0)], []])), 3)
    seen = share(shown[0], character_color(0))
    assert seen[: len(seen) // 2 - 20].mean() < 0.1 < seen[len(seen) // 2 + 20 :].mean()


def test_prompts_windows_and_warnings_take_their_room(scene: Scene) -> None:
    spans: list[list[tuple[float, float]]] = [[], [], []]
    plain = draw_timeline(scene, spans=spans)
    prompts = (PromptSpan(0, 1, "They talk"), PromptSpan(1.5, 2, "They laugh"))
    told = dataclasses.replace(scene, prompts=prompts, notices=("The speech of Bo is silent.",))
    full = draw_timeline(told, spans=spans, windows=[(0, 1.2), (0.8, 2)])
    assert full.size[1] > plain.size[1] + 80
    strip = np.asarray(full)[MARGIN + HEADER + 3, MARGIN + LEFT : -MARGIN]
    drawn = np.abs(strip.astype(int) - LINE).max(axis=-1) < 12
    width = len(drawn)
    assert drawn[10 : width // 2 - 10].all() and drawn[round(0.77 * width) : -10].all()
    assert drawn[width // 2 + 10 : round(0.73 * width)].mean() < 0.1


def test_speech_after_the_end_is_dimmed(scene: Scene) -> None:
    short = dataclasses.replace(scene, num_frames=25)
    shown = lanes(np.asarray(draw_timeline(short, spans=[[(0, 1)], [(1, 2)], []])), 3)
    early, late = (lane.max(axis=(0, 2)) for lane in shown[:2])
    assert early[: len(early) // 2 - 10].max() > 200 and late[-100:].max() < 110


def test_windows_are_those_of_the_video(scene: Scene) -> None:
    assert window_spans(dataclasses.replace(scene, num_frames=17), DEFAULTS) == [(0, 0.68)]
    long = dataclasses.replace(scene, num_frames=49, windows=WindowConfig(None, 5))
    spans = window_spans(long, DEFAULTS)
    assert len(spans) == 4 and spans[0][0] == 0 and spans[-1][1] == 49 / 25
    assert all(after[0] < before[1] for before, after in zip(spans, spans[1:], strict=False))
