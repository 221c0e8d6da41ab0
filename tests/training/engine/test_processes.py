"""Two processes on one machine (gloo) against one process."""

from __future__ import annotations

import sys

import pytest
from safetensors.torch import load_file

from tests.training.run_parts import ROOT, command, finish, lines, losses, write_data, write_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    # without dropout, whose random numbers depend on the process
    return write_recipe(tmp_path_factory.mktemp("recipe") / "small.yaml", dropout=0.0)


@pytest.fixture(scope="module")
def expected(data, recipe, tmp_path_factory):
    """Losses of one process with two accumulation steps."""
    output = tmp_path_factory.mktemp("one") / "run"
    finish(command(recipe, data, output, "--gradient-accumulation-steps", "2"))
    return losses(output)


def finish_in_two(arguments: list[str]) -> None:
    """Run to the end and check that two processes were connected."""
    assert "2 processes (MULTI_CPU)" in finish(arguments)


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for step, values in expected.items():
        assert actual[step] == pytest.approx(values, abs=1e-4), step


def test_two_processes_match_one_with_accumulation(data, recipe, expected, tmp_path):
    finish_in_two(command(recipe, data, tmp_path / "run", processes=2))
    assert_same(losses(tmp_path / "run"), expected)


def test_resume_with_another_number_of_processes(data, recipe, expected, tmp_path):
    finish_in_two(command(recipe, data, tmp_path / "run", "--steps", "5", processes=2))
    finish(command(recipe, data, tmp_path / "run"))
    assert_same(losses(tmp_path / "run"), expected)


def test_steps_with_unused_parameters(tmp_path):
    """Clips of one latent frame do not use the speech projection of later frames, whose weights get no gradient.

    The learning rate is low because AdamW turns rounding errors of zero gradients into full steps.
    """
    slow = {"lr": 0.001, "warmup_steps": 3, "ema_decay": 0.9, "lr_schedule": "constant"}
    recipe = write_recipe(tmp_path / "small.yaml", dropout=0.0, optimizer=slow, trainable=["*"], lora=None)
    data = write_data(tmp_path / "data", ((2, 1), (2, 3)))
    finish(command(recipe, data, tmp_path / "one", "--gradient-accumulation-steps", "2"))
    finish_in_two(command(recipe, data, tmp_path / "two", processes=2))
    assert_same(losses(tmp_path / "two"), losses(tmp_path / "one"))


def test_fsdp2_matches_and_resumes_with_one_process(data, recipe, expected, tmp_path):
    output, launcher = tmp_path / "run", [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    script = str(ROOT / "tests" / "training" / "engine" / "sharded_run.py")
    for steps in ("6", "9"):
        finish([*launcher, "--nproc_per_node", "2", script, str(recipe), str(data), str(output), steps])
    finish(command(recipe, data, output))
    assert_same(losses(output), expected)
    validations = [line for line in lines(output) if line.get("kind") == "validation"]
    assert [line["step"] for line in validations] == [4, 8] and all(line["power"] > 0 for line in validations)
    weights = load_file(output / "final" / "diffusion_pytorch_model.safetensors")
    assert weights.keys() == load_file(recipe.parent / "init" / "diffusion_pytorch_model.safetensors").keys()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_fsdp2_in_bf16(data, recipe, tmp_path, stage):
    """Every stage runs with nearly the losses of one process in bfloat16; the last one also resumes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = str(ROOT / "tests" / "training" / "engine" / "sharded_run.py")
    for steps in ("4", "5") if stage == 3 else ("5",):
        arguments = [str(recipe), str(data), str(tmp_path / "run"), steps, "bf16", str(stage)]
        finish([*launcher, script, *arguments])
    one = command(recipe, data, tmp_path / "one", "--mixed-precision", "bf16", "--steps", "5", stage=stage)
    finish(one)
    sharded, expected = losses(tmp_path / "run"), losses(tmp_path / "one")
    assert list(sharded) == [1, 2, 3, 4, 5]
    for step, values in expected.items():
        assert sharded[step] == pytest.approx(values, rel=0.05), step
