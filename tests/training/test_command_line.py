"""Training commands do not write into the package."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import bya_core
from bya_core.io.atomic import write_text
from training.command_line import run_command

PACKAGE = Path(bya_core.__file__).parent
COMMANDS = {
    "training.run_stage": ("Arguments", "--stage 1 --data puppets:n=1 -o"),
    "training.run_voice_face": ("Arguments", "-o"),
    "training.evaluate": ("EvaluateOptions", "--json"),
    "training.curate": ("CurateOptions", "--input . --config recipe.yaml --output"),
    "training.benchmark.ablations": ("AblationOptions", "-o"),
    "training.benchmark.listeners": ("ListenerOptions", "-o"),
    "training.puppets.footage": ("Arguments", ""),
    "training.data.check": ("Arguments", "--shards . --fix -o"),
    "training.data.view": ("Arguments", ". -o"),
    "training.data.convert": ("Arguments", "--entries list.txt -o"),
    "training.data.fill_cache": ("Arguments", "--data . --cache"),
    "training.data.puppet_plan": ("Arguments", "-o"),
    "training.lip_sync.__main__": ("Arguments", "-o"),
    "training.lip_sync.clips": ("Arguments", ". -o"),
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
    without_outputs = {Path("training/command_line.py")}
    assert commands == listed | without_outputs


def test_a_folder_beside_the_package_is_accepted(tmp_path, monkeypatch):
    kind = importlib.import_module("training.data.puppet_plan").Arguments
    ran = []
    monkeypatch.setattr(sys, "argv", ["puppet_plan", "-o", str(tmp_path / "bya_core")])
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda arguments: ran.append(arguments), kind)
    assert stopped.value.code == 0 and ran
    shutil.rmtree(tmp_path / "bya_core", ignore_errors=True)


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("training.puppets.__main__", "--recordings a.mp4 -o a.mp4"),
        ("training.puppets.__main__", "--recordings a.mp4 -o link.mp4"),
        ("training.evaluate", "--data data --json data/../data/report.json"),
        ("training.run_voice_face", "--checkpoint a.mp4 -o hard.mp4"),
        ("training.data.convert", "--entries a.mp4 -o a.mp4"),
        ("training.curate", "--input data --config data/report.json --output out --report data/report.json"),
        ("training.toy.benchmark", "--json fifo"),
        ("training.evaluate", "-o same --json same"),
        ("training.curate", "--input data --config data/report.json --output /no/such/folder"),
    ],
)
def test_outputs_that_are_inputs_or_unusable_are_refused(module, options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "a.mp4").write_text("input")
    (tmp_path / "data" / "report.json").write_text("input")
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    os.link(tmp_path / "a.mp4", tmp_path / "hard.mp4")
    os.mkfifo(tmp_path / "fifo")
    kind = getattr(importlib.import_module(module), COMMANDS[module][0])
    monkeypatch.setattr(sys, "argv", [module, *options.split()])
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda arguments: pytest.fail("the command ran"), kind)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and "Traceback" not in error
    assert (tmp_path / "a.mp4").read_text() == (tmp_path / "data" / "report.json").read_text() == "input"


def test_an_output_inside_an_input_folder_is_accepted(tmp_path, monkeypatch):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "log.jsonl").write_text("earlier")
    written = []

    def main(arguments: Any) -> None:
        write_text(arguments.output / "log.jsonl", "new")
        written.append(arguments)

    monkeypatch.setattr(
        sys, "argv", ["x", "--input", str(tmp_path / "runs"), "--output", str(tmp_path / "runs/one"), "--config", "x"]
    )
    with pytest.raises(SystemExit) as stopped:
        run_command(main, importlib.import_module("training.curate").CurateOptions)
    assert stopped.value.code == 0 and written
