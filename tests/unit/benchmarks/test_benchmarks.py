"""The profiler, and the memory tables of the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import plan_memory, profile
from bya_core.grid import TokenGrid
from bya_core.memory import sizes
from tests.unit.memory.test_planner import call, small

PAGE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "memory.md"


def test_profiler_attributes_costs_to_the_innermost_part() -> None:
    readings = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    profiler = profile.PartProfiler(lambda: next(readings))
    with profiler.part("other"), profiler.part("blocks"), profiler.part("face"):
        pass
    assert profiler.cost == {"other": 1 + 5, "blocks": 2 + 4, "face": 3}


@torch.no_grad()
def test_profiling_does_not_change_the_result() -> None:
    model = small()
    expected = call(model)
    profiler = profile.PartProfiler(iter(range(10**6)).__next__)
    with profile.profiled(model, profiler):
        assert torch.equal(call(model), expected)
    assert set(profiler.cost) == set(profile.PARTS)
    assert torch.equal(call(model), expected) and sum(profiler.cost.values()) > 0


def test_count_operations() -> None:
    """Two characters add about a fifth to the plain transformer; see docs/results/speed.md."""
    cost = profile.count_operations(2, 49)
    plain = cost["blocks"] + cost["other"]
    assert cost["total"] == pytest.approx(803, abs=3) and (cost["total"] - plain) / plain < 0.22


def test_computed_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    activations = plan_memory.count_activations()
    monkeypatch.setattr(plan_memory, "count_activations", lambda: activations)
    page = tmp_path / "memory.md"
    page.write_text(f"before\n{plan_memory.BEGIN}\nold\n{plan_memory.END}\nafter\n")
    assert plan_memory.main(["--document", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert all(line in PAGE.read_text() for line in text.splitlines() if line.startswith("| "))
    grid = TokenGrid.from_pixels(49, 480, 720, patch=2, space_factor=8, time_factor=4)
    step = activations["denoising step, 2 guidance branches"]
    assert step <= sizes.denoising_memory(grid, 3072, 2, 2) < 1.1 * step
    decoding = activations["decoding 49 frames"]
    assert decoding <= sizes.decoding_memory(grid, 2) < 1.15 * decoding  # the planner adds workspace
    assert activations["decoding 49 frames with tiling"] < sizes.TILING_SHARE * decoding
