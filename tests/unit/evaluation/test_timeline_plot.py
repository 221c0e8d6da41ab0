"""Timeline plot: positions and colors of its elements."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from bya_core.config import WindowConfig
from bya_core.evaluation import timeline_plot
from bya_core.evaluation.plots import Page
from bya_core.evaluation.timeline_plot import timeline_page, window_spans
from bya_core.io.overlay import character_color
from bya_core.scene.types import Character, PromptSpan, Scene, Speech
from tests.fakes import RATE, tone
from tests.unit.scene.test_loader import DEFAULTS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def scene() -> Scene:
    """2 s (51 frames), Ada speaks in the first half, Bo in the second, Cleo listens."""
    picture = torch.linspace(0, 1, 3 * 32 * 24).reshape(3, 32, 24)
    half = torch.from_numpy(tone(1.0)).float()[None]
    speeches = [Speech(half, RATE), Speech(half, RATE, offset=1.0), None]
    names = ("Ada", "Bo", "Cleo")
    return Scene("They talk", [Character(name, picture) for name in names], speeches, 64, 96, 50)


def rows(page: Page) -> dict[str, Axes]:
    return {axes.get_label(): axes for axes in page.figure.axes if axes.get_label()}


def filled(axes: Axes) -> list[tuple[float, float, float]]:
    """(start, end, opacity) of the loudness curves of a lane."""
    found = []
    for collection in axes.collections:
        for path in collection.get_paths():
            if len(path.vertices):
                x = path.vertices[:, 0]
                found.append((float(x.min()), float(x.max()), float(collection.get_facecolor()[0, 3])))
    return found


def test_speech_lanes(scene: Scene) -> None:
    page = timeline_page(scene, spans=[[(0.0, 1.0)], [(1.0, 2.0)], []])
    assert list(rows(page)) == ["Ada", "Bo", "Cleo"]
    for name, span in (("Ada", (0, 1)), ("Bo", (1, 2))):
        ((start, end, _),) = [each for each in filled(rows(page)[name]) if each[2] == 1]
        assert (start, end) == pytest.approx(span, abs=0.02)
        color = rows(page)[name].collections[0].get_facecolor()[0, :3] * 255
        assert color.round().tolist() == list(character_color(["Ada", "Bo"].index(name)))
    assert not filled(rows(page)["Cleo"])


def test_spans_default_to_voice_activity(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline_plot, "spans_of", lambda _: [[(0.0, 1.0)], [(1.0, 2.0)], []])
    spans = [[(0.0, 1.0)], [(1.0, 2.0)], []]
    assert np.array_equal(
        np.asarray(timeline_page(scene).image()), np.asarray(timeline_page(scene, spans=spans).image())
    )


def test_swapped_matrix(scene: Scene) -> None:
    swapped = dataclasses.replace(scene, audio_character_matrix=torch.eye(3)[[1, 0, 2]])
    page = timeline_page(swapped, spans=[[(1.0, 2.0)], [(0.0, 1.0)], []])
    ((start, end, _),) = [each for each in filled(rows(page)["Ada"]) if each[2] == 1]
    assert (start, end) == pytest.approx((1, 2), abs=0.02)
    assert "voice of Bo" in {text.get_text() for text in page.figure.texts}


def test_prompts_windows_and_notices(scene: Scene) -> None:
    prompts = (PromptSpan(0, 1, "They talk"), PromptSpan(1.5, 2, "They laugh"))
    full = dataclasses.replace(scene, prompts=prompts, notices=("The speech of Bo is silent.",))
    page = timeline_page(full, spans=[[], [], []], windows=[(0, 1.2), (0.8, 2)])
    boxes = [each[:2] for each in filled(rows(page)["prompts"])]
    assert boxes == [pytest.approx((0, 1), abs=0.01), pytest.approx((1.5, 2), abs=0.01)]
    assert [each[:2] for each in filled(rows(page)["windows"])] == [
        pytest.approx((0, 1.2), abs=0.01),
        pytest.approx((0.8, 2), abs=0.01),
    ]
    assert [text.get_text() for text in rows(page)["prompts"].texts] == ["They talk", "They laugh"]
    assert any("The speech of Bo is silent." in text.get_text() for text in page.figure.texts)


def test_speech_after_the_end_is_marked(scene: Scene) -> None:
    page = timeline_page(dataclasses.replace(scene, num_frames=25), spans=[[(0, 1)], [(1, 2)], []])
    assert rows(page)["Ada"].get_xlim() == (0, pytest.approx(2))
    assert any("end of the video" in text.get_text() for text in rows(page)["Ada"].texts)


@pytest.mark.parametrize("count", [1, 8])
def test_long_names_are_shortened(count: int) -> None:
    image = torch.zeros(3, 8, 8)
    characters = [Character(f"{'Bartholomew ' * 7}{k} $x_1$", image) for k in range(count)]
    page = timeline_page(Scene("a prompt " * 80, characters, [None] * count, 64, 96, 50), spans=[[]] * count)
    assert page.image().size[0] == 1440
    names = [text for text in page.figure.texts if text.get_text().startswith("Barth")]
    lane = next(iter(rows(page).values())).get_window_extent()
    assert len(names) == count
    assert all(text.get_window_extent(page.canvas.get_renderer()).x1 < lane.x0 for text in names)


def test_plots_without_display_and_home(scene: Scene) -> None:
    program = (
        "import sys; import bya_core.evaluation.plots as plots; page = plots.Page(96, 96); page.text(4, 4, 'a');"
        "page.image(); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLCONFIGDIR", "XDG_CONFIG_HOME")}
    environment |= {"HOME": "/nonexistent"}
    assert subprocess.run([sys.executable, "-c", program], env=environment, cwd=ROOT).returncode == 0


def test_window_spans(scene: Scene) -> None:
    assert window_spans(dataclasses.replace(scene, num_frames=17), DEFAULTS) == [(0, 0.68)]
    long = dataclasses.replace(scene, num_frames=49, windows=WindowConfig(None, 5))
    spans = window_spans(long, DEFAULTS)
    assert len(spans) == 4 and spans[0][0] == 0 and spans[-1][1] == 49 / 25
    assert all(after[0] < before[1] for before, after in zip(spans, spans[1:], strict=False))
