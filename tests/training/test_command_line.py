"""Training commands do not write into the package."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import pytest

import bya_core
from training.command_line import run_command

PACKAGE = Path(bya_core.__file__).parent
COMMANDS = {
    "training.run_stage": ("Arguments", "--stage 1 --data puppets:n=1 -o"),
    "training.run_voice_face": ("Arguments", "-o"),
    "training.evaluate": ("EvaluateOptions", "--json"),
    "training.curate": ("CurateOptions", "--input . --config recipe.yaml --output"),
    "training.benchmark.ablations": ("AblationOptions", "-o"),
    "training.benchmark.listeners": ("ListenerOptions", "-o"),
    "training.curation.puppet_footage": ("Arguments", ""),
    "training.data.convert": ("Arguments", "--entries list.txt -o"),
    "training.data.fill_cache": ("Arguments", "--data . --cache"),
    "training.data.puppet_plan": ("Arguments", "-o"),
    "training.puppets.__main__": ("Arguments", "--scene"),
    "training.toy.assemble": ("Arguments", "--encoders . --transformer . -o"),
    "training.toy.average": ("Arguments", ". -o"),
    "training.toy.backbones": ("Arguments", "-o"),
    "training.toy.benchmark": ("BenchmarkOptions", "--json"),
    "training.toy.clips": ("ClipOptions", "--clips 1 -o"),
    "training.toy.preview": ("PreviewOptions", "--run . -o"),
    "training.toy.vae": ("Arguments", "-o"),
}


@pytest.mark.parametrize("module", COMMANDS)
def test_outputs_inside_the_package_are_refused(module, tmp_path, monkeypatch, capsys):
    name, options = COMMANDS[module]
    (tmp_path / "link").symlink_to(PACKAGE)
    kind = getattr(importlib.import_module(module), name)
    monkeypatch.setattr(sys, "argv", [module, *options.split(), str(tmp_path / "link/toy/weights/x")])
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda arguments: pytest.fail("the command ran"), kind)
    assert stopped.value.code == 2 and "inside the folder bya_core" in capsys.readouterr().err


def test_every_command_is_checked():
    root = Path(importlib.import_module("training").__file__).parent
    commands = {path.relative_to(root.parent) for path in root.rglob("*.py") if "run_command(" in path.read_text()}
    listed = {Path(*module.split(".")).with_suffix(".py") for module in COMMANDS}
    without_outputs = {Path("training/data/check.py"), Path("training/command_line.py")}
    assert commands == listed | without_outputs


def test_a_folder_beside_the_package_is_accepted(tmp_path, monkeypatch):
    kind = importlib.import_module("training.data.puppet_plan").Arguments
    ran = []
    monkeypatch.setattr(sys, "argv", ["puppet_plan", "-o", str(tmp_path / "bya_core")])
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda arguments: ran.append(arguments), kind)
    assert stopped.value.code == 0 and ran
    shutil.rmtree(tmp_path / "bya_core", ignore_errors=True)
