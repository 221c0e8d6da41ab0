"""The comparison that speed is told by: the plain way computes the same, and is counted as the work it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import step_time
from benchmarks.naive import naive
from tests.unit.test_memory import call, small


@pytest.mark.parametrize("flavour", ["official", "paper"])
@torch.no_grad()
def test_the_plain_way_computes_the_same(flavour: str) -> None:
    model = small(flavour)
    forced = {"forced_masks": torch.rand(2, 2, 3, 4, 6, generator=torch.Generator().manual_seed(2))}
    for more in ({}, forced):
        expected = call(model, **more)
        with naive():
            made = call(model, **more)
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(call(model, **forced), expected)  # afterwards all is as before


def test_parts_add_up_and_each_character_costs_more() -> None:
    model = small().to("meta")
    plain = {n: step_time.operations(model, n, 9, plainly=True) for n in (1, 2)}
    shared = {n: step_time.operations(model, n, 9, plainly=False) for n in (1, 2)}
    for cost in (*plain.values(), *shared.values()):
        assert cost["total"] == pytest.approx(sum(cost[name] for name in step_time.PARTS))
        assert all(cost[name] > 0 for name in step_time.PARTS)
    assert plain[2]["blocks"] == shared[2]["blocks"] == shared[1]["blocks"]
    assert plain[2]["speech"] == pytest.approx(2 * plain[1]["speech"], rel=0.01)
    assert shared[2]["speech"] < 1.7 * shared[1]["speech"] and shared[2]["total"] < plain[2]["total"]


def test_what_the_page_says(tmp_path: Path) -> None:
    """Two characters at full size: the plain way costs what the released code was counted at, 888 TFLOP; shared, the
    characters cost at most 22 % of the plain transformer, and one more at most 6 %."""
    two, three, plainly = (step_time.full_size_operations(n, 49, way) for n, way in ((2, False), (3, False), (2, True)))
    assert plainly["total"] / 1e12 == pytest.approx(888.0, abs=0.5)
    assert two["total"] <= 1.22 * two["blocks"]
    assert three["total"] - two["total"] <= 0.06 * two["blocks"]
    line = step_time.row("exact", 2, 49, two, step_time.TERA, 1)
    assert line in step_time.DOCUMENT.read_text(encoding="utf-8")


def test_seconds_are_told(tmp_path: Path) -> None:
    model = small()
    rows, text = step_time.timed(model, 9, 1, (2,), "The small model.")
    assert [row["way"] for row in rows] == ["exact", "naive"]
    assert all(row["seconds"]["total"] > 0 and 0 < row["of_rate"] < 2 for row in rows)
    assert text.startswith("The small model.") and "% |" in text
