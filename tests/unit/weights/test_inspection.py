"""Inspection of model files without loading them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bya_core.cli.main import main
from bya_core.weights.inspection import inspect_model
from bya_core.weights.registry import MODELS

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the toy transformer."""
    return Path(shutil.copytree(MODELS["toy"].path / "transformer", tmp_path / "model"))


def test_complete_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspection = inspect_model(folder)
    assert inspection.loads and inspection.comparison.matches and inspection.encoders == "toy"
    assert inspection.parameters == sum(weight.numel() for weight in load_file(folder / WEIGHTS).values())
    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["loads"] is True


def test_differences_are_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(folder / WEIGHTS)
    missing, misshapen = sorted(weights)[:2]
    del weights[missing]
    weights[misshapen] = torch.cat([weights[misshapen]] * 2)
    save_file(weights | {"surplus": torch.zeros(1)}, folder / WEIGHTS)
    inspection = inspect_model(folder)
    assert not inspection.loads
    assert inspection.comparison.missing == (missing,) and inspection.comparison.unexpected == ("surplus",)
    assert set(inspection.comparison.misshapen) == {misshapen}
    assert main(["inspect", str(folder)]) == 1
    text = capsys.readouterr().out
    assert all(name in text for name in (missing, misshapen, "surplus", "cannot be loaded"))


def test_folder_of_another_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(MODELS["toy"].path / "vae")]) == 2
    assert "arguments that this transformer does not have" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["speech.safetensors", "voice_face.safetensors", "vae/config.json", f"vae/{WEIGHTS}"])
def test_damaged_encoders_of_a_bundle(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(MODELS["toy"].path, tmp_path / "model"))
    assert main(["inspect", str(folder)]) == 0
    with (folder / name).open("r+b") as file:
        file.truncate((folder / name).stat().st_size // 2)
    assert main(["inspect", str(folder)]) == 1
    assert Path(name).name in capsys.readouterr().out.split("error")[-1]


def test_missing_encoder_of_a_bundle(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(MODELS["toy"].path, tmp_path / "model"))
    (folder / "face.safetensors").unlink()
    (error,) = inspect_model(folder).errors
    assert "face.safetensors" in error
