"""The table of values that are ours in docs/explanation/fidelity.md is that of the recipe `paper`."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from training.engine.recipe import load_recipe
from training.engine.record import flatten

PAGE = Path(__file__).resolve().parents[3] / "docs" / "explanation" / "fidelity.md"
FROM_THE_PAPER = {
    "number", "trainable", "flavour", "speech", "router", "condition_dropout.reference",
    "condition_dropout.first_frame", "condition_dropout.speech",
    "copies", "static_masks", "router_weights.cross_entropy", "router_weights.smoothness",
    "router_weights.layer_variance", "optimizer.lr", "steps", "batch_size", "lora.targets",
    "scheduled_sampling", "scheduled_sampling_warmup",
}  # fmt: skip
UNUSED = {"teacher.layer_dropout", "official_weights"}  # of the flavour "official"


def shown(value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def test_table_has_every_value_that_the_paper_does_not_name():
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| ([^|]+?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    recipe = load_recipe("paper")
    values: dict[str, list[str]] = {}
    for number in (1, 2, 3):
        stage = asdict(recipe.stages[number])
        joint = stage["condition_dropout"].pop("joint")
        flat = flatten(stage) | {"condition_dropout.joint": len(joint) or None}
        for name in rows:
            values.setdefault(name, []).append(shown(flat.get(name)))
        names = {name for name in flat if name not in FROM_THE_PAPER and name.partition(".")[0] not in UNUSED}
        assert names - UNUSED - {"lora"} <= rows.keys(), "values that are not marked"
    for name, expected in values.items():
        listed = re.split(r"; ", rows[name])
        if name == "condition_dropout.joint":
            assert expected == ["None", "3", "None"] and listed[1].startswith("three combinations")
            continue
        listed = [text.replace("none", "None") for text in (listed if len(listed) == 3 else listed * 3)]
        assert listed == expected, name


@pytest.mark.parametrize("number", [1, 2, 3])
def test_values_of_the_paper(number):
    stage = load_recipe("paper").stages[number]
    assert stage.optimizer.lr == 1e-5 and stage.batch_size == 16 and stage.scheduled_sampling == 0.0
    assert stage.steps == {1: 10_000, 2: 40_000, 3: 10_000}[number]
