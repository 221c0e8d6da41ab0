"""The command that trains: printing the configuration, trying a few steps, help."""

from __future__ import annotations

import subprocess
import sys

import pytest
from accelerate.state import AcceleratorState

from tests.training.run_parts import SCRIPT, write_data, write_recipe
from training import run_stage
from training.engine.recipe import load_recipe
from training.engine.settings import RecipeOptions, RunSettings


@pytest.fixture(autouse=True)
def _single_process():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_dry_run_trains_and_writes_nothing(tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    recipe, data, output = write_recipe(tmp_path / "small.yaml"), write_data(tmp_path / "data"), tmp_path / "run"
    options = RecipeOptions(3, str(recipe), batch_size=2)
    settings = RunSettings(output, init=str(tmp_path / "init"))
    run_stage.main(run_stage.Arguments(options, str(data), settings, held_out=0.2, dry_run=2))
    shown = capsys.readouterr().out
    assert "batch_size: 2" in shown and "steps 2" in shown and "step 2" in caplog.text and "step 3" not in caplog.text
    assert not output.exists()


def test_printed_configuration_is_a_recipe_of_the_same_values(tmp_path, capsys):
    run_stage.print_config(["--print-config", "--stage", "3", "--recipe", "toy", "--set", "stage.3.optimizer.lr=1e-4"])
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    printed, toy = load_recipe(path), load_recipe("toy", ["stage.3.optimizer.lr=1e-4"])
    assert printed.stages[3] == toy.stages[3] and toy.model.items() <= printed.model.items()


@pytest.mark.parametrize("more", [(), ("--plan", "--stage", "3")])
def test_help_needs_no_pytorch(more):
    words = [sys.executable, "-X", "importtime", str(SCRIPT), *more, "--help"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and "--stage" in result.stdout
    assert not any(line.split("|")[-1].strip() == "torch" for line in result.stderr.splitlines())
