"""Recipes: every key and value is checked, files can extend each other, `--set` replaces anything."""

from __future__ import annotations

import pytest
import yaml

from bya_core.errors import InputError
from training.engine.model_config import describe_differences, model_differences
from training.engine.recipe import RECIPES, load_recipe
from training.engine.yaml_files import dump_yaml, parse_yaml

NAMES = [path.stem for path in RECIPES.glob("*.yaml") if not path.stem.startswith("curation")]


def _load(tmp_path, text, *assignments):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_recipe(path, assignments)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_recipes_are_valid(name):
    assert set(load_recipe(name).stages) == {1, 2, 3}


@pytest.mark.parametrize(
    "section",
    [
        "stage: {3: {steps: 1}}",
        "seed: 4",
        "stages: {4: {steps: 1}}",
        "stages: {3: {number: 1}}",
        "model: {router_dimm: 8}",
        "model: {router_dim: 0}",
        "model: {num_layers: 2.5}",
        "model: {flavour: own}",
        "scheduler: {snr: 1}",
        "scheduler: {snr_shift_scale: big}",
        "text_encoder: {max_words: -1}",
        "all_stages: {lora: 16}",
        "all_stages: {lora: {rank: 0}}",
        "all_stages: {lora: {targets: []}}",
        "all_stages: {optimizer: {name: sgd}}",
        "all_stages: {optimizer: {lrr: 1}}",
        "all_stages: {optimizer: {lr: fast}}",
        "all_stages: {optimizer: {lr: .inf}}",
        "all_stages: {optimizer: {lr: -1}}",
        "all_stages: {optimizer: {betas: [0.9, 1.0]}}",
        "all_stages: {optimizer: {betas: [0.9]}}",
        "all_stages: {teacher: {noise: 1}}",
        "all_stages: {teacher: {noise_std: -1}}",
        "all_stages: {router_weights: {layers: 8}}",
        "all_stages: {scheduled_sampling: 1.5}",
        "all_stages: {copies: 0}",
        "all_stages: {steps: 0}",
        "all_stages: {batch_size: true}",
    ],
)
def test_unknown_keys_and_wrong_values_are_errors_at_every_level(tmp_path, section):
    with pytest.raises(InputError):
        _load(tmp_path, f"extends: toy\n{section}\n")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "stages:",
        "[1, 2]",
        "model: [",
        "extends: 3",
        "extends: curation",
        "a: 1\na: 2",
        "extends: toy\nstages: {3: {steps: 1}, '3': {steps: 2}}",
        "extends: toy\n1.5: 2",
        "\0",
    ],
)
def test_files_that_are_no_recipe_are_refused(tmp_path, text):
    with pytest.raises(InputError):
        _load(tmp_path, text)


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", "+1e-4"])
def test_numbers_with_an_exponent_are_numbers(tmp_path, text):
    recipe = _load(tmp_path, f"extends: toy\nstages: {{3: {{optimizer: {{lr: {text}}}}}}}\n")
    assert recipe.stages[3].optimizer.lr == 1e-4


def test_extends_is_looked_up_beside_the_file(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/base.yaml").write_text("extends: toy\nall_stages: {batch_size: 3}\n")
    (tmp_path / "a/mine.yaml").write_text("extends: base.yaml\nall_stages: {steps: 5}\n")
    monkeypatch.chdir(tmp_path)
    stage = load_recipe("a/mine.yaml").stages[1]
    assert (stage.batch_size, stage.steps) == (3, 5)


def test_cycles_name_the_files(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(InputError, match=r"a\.yaml -> b\.yaml -> a\.yaml"):
        load_recipe(tmp_path / "a.yaml")


def test_set_replaces_values_of_the_file(tmp_path):
    text = "extends: toy\nstages: {2: {batch_size: 7}}\n"
    changes = ("stage.3.optimizer.lr=1e-4", "all_stages.batch_size=2", "model.router_dim=32", "stages.1.lora={rank: 4}")
    recipe = _load(tmp_path, text, *changes)
    assert recipe.stages[3].optimizer.lr == 1e-4 and recipe.stages[1].optimizer.lr == 0.002
    assert [stage.batch_size for stage in recipe.stages.values()] == [2, 2, 2]
    assert recipe.model["router_dim"] == 32 and recipe.stages[1].lora.rank == 4


@pytest.mark.parametrize(
    "text", ["lr", "=3", "stage.9.lr=1", "stage.3.lr=1", "stage.x.steps=1", "stage=3", "extends=toy", "model.a=["]
)
def test_wrong_assignments_are_errors(tmp_path, text):
    with pytest.raises(InputError):
        _load(tmp_path, "extends: toy\n", text)


def test_differences_between_recipe_and_weights_are_listed():
    recipe, toy = load_recipe("ablation").model, load_recipe("toy").model
    assert model_differences(toy, toy) == {}
    assert model_differences(recipe, {**toy, "_class_name": "x"}) == {"num_router_layers": (2, 1)}
    assert describe_differences({"num_router_layers": (2, 1)}) == "num_router_layers 2 (init: 1)"


def test_written_yaml_reads_back():
    content = {"lr": 1e-5, "text": "1e-5", "none": None, "list": [1, 2.5, True], "name": "Jörg: #1"}
    assert parse_yaml(dump_yaml(content), "text") == content == yaml.safe_load(dump_yaml(content))


def test_recipe_paper_trains_with_forced_masks_only() -> None:
    stages = load_recipe("paper").stages
    assert stages[3].scheduled_sampling == 0
    assert [stages[n].steps for n in (1, 2, 3)] == [10_000, 40_000, 10_000]
    assert all(stage.optimizer.lr == 1e-5 and stage.batch_size == 16 for stage in stages.values())
    assert load_recipe("cogvideox5b").stages[3].scheduled_sampling == 0.5
