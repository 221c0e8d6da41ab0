"""The command that shows which face would be taken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bya_core.cli import faces as cli_faces
from bya_core.cli import main as cli
from bya_core.encoders.face.encoder import FaceModels, PhotoFaceEncoder
from tests.unit.encoders.networks import POINTS, picture
from tests.unit.encoders.test_face_encoder import Keeps, Told, face

BO = POINTS["004/face_1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three pictures, a scene of two of them, and a face path that knows the width of the picture with a face."""
    for name, width in (("ada", 389), ("bo", 389), ("wall", 300)):
        Image.fromarray(picture(489, width, name)).save(tmp_path / f"{name}.png")
    characters = [{"name": name, "image": f"{name.lower()}.png"} for name in ("Ada", "Bo")]
    (tmp_path / "scene.json").write_text(json.dumps({"prompt": "", "characters": characters}))

    def encoder(models_dir: Path | None, select: str) -> PhotoFaceEncoder:
        found = Told({389: [face(BO, 0.99), face(BO, 0.999)]})
        return PhotoFaceEncoder(FaceModels(found, Keeps(), None, None), select=select)  # type: ignore[arg-type]

    monkeypatch.setattr(cli_faces, "face_encoder", encoder)
    return tmp_path


def test_the_characters_of_a_scene_are_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["faces", str(folder / "scene.json"), "-o", str(folder / "faces.png")]) == 0
    made = Image.open(folder / "faces.png")
    assert made.size == (round(389 * 512 / 489) + 512, 1024)
    white = np.asarray(made)[20, -20]
    assert white.tolist() == [255, 255, 255], "around the face that is kept"
    told = capsys.readouterr().err
    assert "warning: Ada: 2 faces detected: the largest one is used" in told and "warning: Bo: 2 faces" in told


def test_a_picture_without_a_face_is_told_and_the_others_are_shown(folder: Path, capsys) -> None:
    pictures = [str(folder / "wall.png"), str(folder / "ada.png")]
    assert cli.main(["faces", *pictures, "-o", str(folder / "faces.png"), "--select", "most_confident"]) == 1
    told = capsys.readouterr().err
    assert "wall.png: no face detected" in told and "ada.png: 2 faces" in told
    assert Image.open(folder / "faces.png").height == 512


def test_missing_networks_are_told_of(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("BYA_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.fromarray(picture(64, 64)).save(tmp_path / "ada.png")
    assert cli.main(["faces", str(tmp_path / "ada.png"), "-o", str(tmp_path / "faces.png")]) == 2
    told = capsys.readouterr().err
    assert "detection_Resnet50_Final.pth" in told and "download official --components faces" in told
    assert not (tmp_path / "faces.png").exists() and torch.is_grad_enabled()
