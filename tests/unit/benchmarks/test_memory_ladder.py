"""The script that measures the ladder: what it computes without a GPU, and that its way through one holds together."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import memory_ladder
from bya_core.grid import TokenGrid
from bya_core.memory import planner as memory
from bya_core.memory.planner import LADDER
from bya_core.pipelines import full_size
from tests.unit.cli.test_selftest import SIZE, SMALL

MARKS = "before\n<!-- computed -->\nold\n<!-- end of computed -->\n<!-- measured -->\n<!-- end of measured -->\nafter\n"


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "memory.md"
    path.write_text(MARKS)
    return path


def test_sizes_are_computed_without_a_gpu(document: Path, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    assert memory_ladder.main(["--count", "--document", str(document), "--json", str(figures)]) == 0
    text = document.read_text()
    assert text.startswith("before\n<!-- computed -->\n| weights | GB |") and text.endswith("after\n")
    assert "old" not in text and "| text encoder (T5-XXL) | 9.52 |" in text
    told = json.loads(figures.read_text())
    assert [rung["rung"] for rung in told["rungs"]] == [rung.name for rung in LADDER]
    alive = told["alive"]
    two, one = (alive[f"a step, {name} of the video"] for name in ("2 versions", "1 version"))
    assert two == pytest.approx(2 * one, rel=0.02)
    grid = TokenGrid.from_pixels(49, 480, 720, patch=2, space_factor=8, time_factor=4)
    # what the ladder reckons with is what is alive, and little more
    assert alive["a step, 2 versions of the video"] <= memory.held_while_denoising(grid, 3072, 2, 2) < 1.1 * two
    whole = alive["decoding 49 frames"]
    assert whole <= memory.held_while_decoding(grid, 2) < 1.1 * whole
    assert alive["decoding 49 frames in tiles"] < memory.TILE * alive["decoding 49 frames"]
    # the page of the project says the same
    assert all(line in memory_ladder.DOCUMENT.read_text() for line in text.splitlines() if line.startswith("| "))


def test_measuring_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        memory_ladder.main([])
    assert "--count" in capsys.readouterr().err


def test_rungs_are_measured_and_told(monkeypatch: pytest.MonkeyPatch, document: Path) -> None:
    """With the small model on the CPU in place of a GPU: two rungs run, one does not fit; the clock counts calls."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    def build(layers: int | None, dtype: torch.dtype, ruled: bool) -> Any:
        made = full_size.build(2, torch.float32, SMALL, codec=False, native=SIZE, ruled=ruled)
        made.codec.decode = lambda latents: latents  # type: ignore[method-assign, assignment]
        made.transformer.register_forward_pre_hook(count)
        return made

    def full(*_: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(memory_ladder, "build", build)
    monkeypatch.setattr(memory_ladder, "ENCODERS", {"text": 1000})
    for name in ("reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    for name in ("max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: 5 * 10**9)
    monkeypatch.setattr(memory_ladder, "time", SimpleNamespace(perf_counter=lambda: float(calls)))
    cpu = torch.device("cpu")
    rows = [memory_ladder.measure(rung, None, 1, cpu) for rung in (LADDER[0], LADDER[2])]
    assert [row["step_s"] for row in rows] == [1.0, 1.0] and all(row["denoising_gb"] == 5.0 for row in rows)
    monkeypatch.setattr(memory_ladder.memory, "apply_rung", full)
    rows.append(memory_ladder.measure(LADDER[3], None, 1, cpu))
    text = memory_ladder.measured(rows, "Measured on a card.")
    assert "| resident | " in text and "| 1.00 | 5.0 |" in text and "| streamed, tiled | did not fit |" in text
    memory_ladder.write_between(document, "measured", text)
    assert "Measured on a card." in document.read_text() and "old" in document.read_text()
