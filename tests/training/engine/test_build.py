"""The model of a run: from random weights, from a folder, or adapted from another model."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from bya_core.errors import InputError
from tests.training.run_parts import write_recipe
from training.engine.build import build_model, init_folder
from training.engine.recipe import load_recipe
from training.engine.settings import RunSettings

WEIGHTS = "diffusion_pytorch_model.safetensors"


def _build(tmp_path, *assignments, init="init", adapt=False, seed=0):
    path = tmp_path / "small.yaml"
    if not path.exists():
        write_recipe(path, lora=None)
    recipe = load_recipe(path, assignments)
    settings = RunSettings(tmp_path / "run", seed=seed, init=None if init is None else str(tmp_path / init))
    return build_model(recipe, 3, settings, adapt)


def test_a_recipe_with_another_model_is_refused_and_the_differences_are_listed(tmp_path):
    with pytest.raises(InputError, match=r"router_dim 8 \(init: \d+\), router_temperature 0\.5 \(init: 1\.0\)"):
        _build(tmp_path, "model.router_dim=8", "model.router_temperature=0.5")


def test_a_base_model_is_no_init(tmp_path):
    _build(tmp_path)
    config = tmp_path / "init" / "config.json"
    config.write_text(config.read_text().replace("BindYourAvatarTransformer3DModel", "CogVideoXTransformer3DModel"))
    with pytest.raises(InputError, match="use --base"):
        _build(tmp_path)


def test_adapt_takes_over_what_fits(tmp_path, caplog):
    caplog.set_level("INFO")
    same = _build(tmp_path)
    variant = _build(tmp_path, "model.router_dim=8", adapt=True)
    before, after = same.state_dict(), variant.state_dict()
    for name, value in after.items():
        if name in before and before[name].shape == value.shape:
            assert torch.equal(before[name], value), name
    assert any(before[name].shape != after[name].shape for name in after if name in before)
    assert variant.config.router_dim == 8 and "taken over" in caplog.text and "router" in caplog.text


def test_missing_weights_are_named(tmp_path):
    _build(tmp_path)
    file = tmp_path / "init" / WEIGHTS
    save_file({name: value for name, value in load_file(file).items() if not name.startswith("router.")}, file)
    with pytest.raises(InputError, match=r"lacks \d+ weights, such as router\."):
        _build(tmp_path)


def test_later_stages_from_random_weights_are_warned_about(tmp_path, caplog):
    _build(tmp_path, init=None)
    assert "random weights" in caplog.text


def test_models_are_found_by_name_and_missing_ones_are_named(tmp_path):
    assert init_folder("toy").is_dir()
    with pytest.raises(InputError, match="no model at --init .*gone"):
        _build(tmp_path, init="gone")
