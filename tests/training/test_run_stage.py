"""The command that trains: printing the configuration, trying a few steps, help."""

from __future__ import annotations

import subprocess
import sys

import pytest
from accelerate.state import AcceleratorState

from bya_core.errors import InputError
from tests.training.run_parts import SCRIPT, write_data, write_recipe
from training import run_stage
from training.engine.plan import main as print_plan
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


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--stage", "3", "--lr", "1e-4"], "unknown option or value --lr"),
        (["--stage", "3", "--steps", "0"], "steps is 0; expected at least 1; use a larger value"),
        (["--stage", "3", "--threads", "-1"], "threads is -1; expected at least 0; use a larger value"),
        (["--stage", "4"], '--stage is "4"'),
        ([], "no --stage"),
    ],
)
def test_wrong_options_are_one_sentence_in_every_mode(words, problem, capsys):
    for action in (run_stage.print_config, lambda words: print_plan(words, run_stage.check_options)):
        with pytest.raises(InputError) as error:
            action(words)
        assert problem in str(error.value) and "Error parsing" not in str(error.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("more", [(), ("--plan", "--stage", "3")])
def test_help_needs_no_pytorch(more):
    words = [sys.executable, "-X", "importtime", str(SCRIPT), *more, "--help"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and "--stage" in result.stdout
    assert not any(line.split("|")[-1].strip() == "torch" for line in result.stderr.splitlines())
