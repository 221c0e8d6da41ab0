"""The comparison that speed is told by: the plain way computes the same, and each way is counted as the work it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import step_time
from benchmarks.meter import PARTS, Gpu, Meter, Moved, attending_as_one, boxes, covering, metered
from benchmarks.naive import naive
from bya_core.models import audio_attention as audio
from bya_core.models import face_attention as face
from bya_core.models.masked_attention import masked_attention
from tests.unit.memory.test_planner import call, small


@pytest.mark.parametrize("flavour", ["official", "paper"])
@torch.no_grad()
def test_the_plain_way_computes_the_same(flavour: str) -> None:
    model = small(flavour)
    forced = {"mask_override": torch.rand(2, 2, 3, 4, 6, generator=torch.Generator().manual_seed(2))}
    for more in ({}, forced):
        expected = call(model, **more)
        with naive():
            made = call(model, **more)
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(call(model, **forced), expected)  # afterwards all is as before


@torch.no_grad()
def test_being_measured_changes_nothing() -> None:
    model = small()
    expected = call(model)
    with metered(model, meter := Meter(lambda: 0.0)), meter:
        made = call(model)
    assert torch.equal(made, expected) and torch.equal(call(model), expected)
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.transformer_blocks)


def test_each_moment_belongs_to_the_innermost_part() -> None:
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0, 28.0])
    with Meter(lambda: next(now)) as meter, meter.part("blocks"), meter.part("face"), meter.part("router"):
        pass
    assert meter.costs() == {"rest": 1 + 7, "blocks": 2 + 6, "face": 3 + 5, "router": 4, "speech": 0, "total": 28}


def test_parts_add_up_and_each_character_costs_more() -> None:
    model = small().to("meta")
    plain = {n: step_time.operations(model, n, 9, "naive") for n in (1, 2)}
    shared = {n: step_time.operations(model, n, 9, "exact") for n in (1, 2)}
    for cost in (*plain.values(), *shared.values()):
        assert cost["total"] == pytest.approx(sum(cost[name] for name in PARTS))
        assert all(cost[name] > 0 for name in PARTS)
    assert plain[2]["blocks"] == shared[2]["blocks"] == shared[1]["blocks"]
    assert plain[2]["speech"] == pytest.approx(2 * plain[1]["speech"], rel=0.01)
    assert shared[2]["speech"] < 1.7 * shared[1]["speech"] and shared[2]["total"] < plain[2]["total"]


def test_presets_do_less_the_less_is_covered() -> None:
    model = small("paper").to("meta")
    exact = step_time.operations(model, 2, 9, "exact")
    whole, half, little = (step_time.operations(model, 2, 9, "balanced", share) for share in (1.0, 0.5, 0.1))
    assert little["face"] < half["face"] < whole["face"] == pytest.approx(exact["face"])
    assert whole["router"] < exact["router"] and whole["blocks"] == exact["blocks"]
    assert step_time.operations(model, 2, 9, "fast")["router"] == 0


@torch.no_grad()
def test_masks_are_the_boxes_that_are_said() -> None:
    masks = boxes(torch.empty(1, 2, 3, 4, 6), 0.5)
    assert masks.mean() == 0.25 and masks.sum(1).max() == 1 and masks[0, 0, 0, 2:, :3].all()
    with covering(0.5, True):
        used = call(small())[-2 * 2 * 3 * 4 * 6 :]
    assert torch.equal(used.view(2, 2, 3, 4, 6), masks.expand(2, -1, -1, -1, -1))


def test_what_the_page_says() -> None:
    """Two characters at full size: the plain way costs what the released code was counted at, 888 TFLOP; shared, the
    characters cost at most 22 % of the plain transformer, and one more at most 6 %; presets at most 12 % and 3 %."""
    two, three, plainly = (
        step_time.full_size_operations(n, 49, way) for n, way in ((2, "exact"), (3, "exact"), (2, "naive"))
    )
    assert plainly["total"] / 1e12 == pytest.approx(888.0, abs=0.5)
    assert step_time.on_top(two) <= 0.22
    assert three["total"] - two["total"] <= 0.06 * (two["blocks"] + two["rest"])
    quick, more = (step_time.full_size_operations(n, 49, "balanced") for n in (2, 3))
    assert step_time.on_top(quick) <= 0.12
    assert more["total"] - quick["total"] <= 0.03 * (quick["blocks"] + quick["rest"])
    line = step_time.row("exact", 2, 49, two, step_time.TERA, 1)
    assert line in step_time.DOCUMENT.read_text(encoding="utf-8")


@torch.no_grad()
def test_bytes_and_memory_are_counted_without_computing() -> None:
    size, model = dict(small().config), small()
    expected = call(model)
    found = {way: step_time.memory(way, **size) for way in ("naive", "exact")}
    assert torch.equal(call(model), expected)  # nothing without values is left behind
    for kinds in found.values():
        assert kinds["bytes"]["total"] == pytest.approx(sum(kinds["bytes"][part] for part in PARTS))
        assert all(kinds[kind][part] > 0 for kind in ("bytes", "alive") for part in PARTS)
        assert kinds["alive"]["total"] == max(kinds["alive"][part] for part in PARTS)
    assert found["exact"]["bytes"]["total"] < found["naive"]["bytes"]["total"]


def test_attention_to_characters_is_counted_as_one_kernel() -> None:
    """It reads queries, keys, values and masks, writes what comes out, and keeps its weights to itself."""
    query, key, value, mask = (torch.zeros(*shape) for shape in ((2, 50, 8), (2, 3, 16, 8), (2, 3, 16, 8), (50, 3)))
    told = 4 * (2 * 50 * 8 + 2 * 2 * 3 * 16 * 8 + 50 * 3 + 2 * 50 * 8)
    with torch.no_grad(), Moved(Gpu(rate=1.0, bandwidth=1.0)) as moved:
        face.masked_attention(query, key, value, mask)
        apart, products = moved.bytes, moved.operations
        with attending_as_one(moved):
            face.masked_attention(query, key, value, mask)
    assert moved.bytes - apart == told < apart
    assert moved.operations == 2 * products == 2 * (2 * 2 * 2 * 50 * 3 * 16 * 8)
    assert face.masked_attention is masked_attention and audio.masked_attention is masked_attention


def test_seconds_are_told(tmp_path: Path) -> None:
    rows, text = step_time.timed(small("paper"), [(2, 9)], 1, 0.4, "The small model.")
    assert [row["way"] for row in rows] == list(step_time.WAYS)
    for row in rows:
        cost = row["seconds"]
        assert all(cost[part] >= 0 for part in PARTS) and cost["total"] == pytest.approx(sum(cost[p] for p in PARTS))
        assert 0 < row["of_rate"] < 2
    assert rows[1]["of_exact"] == 1.0
    assert text.startswith("The small model.") and "% |" in text
