"""`bya faces`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bya_core.cli import faces as cli_faces
from bya_core.cli import main as cli
from bya_core.encoders.face.encoder import FaceModels, PhotoFaceEncoder
from tests.unit.encoders.face_scenes import person
from tests.unit.encoders.networks import POINTS, picture
from tests.unit.encoders.test_face_encoder import EllipseParser, FixedDetector, face

BO = POINTS["004/face_1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images and a scene; the encoder finds two faces in images that are 389 pixels wide."""
    for name, width in (("ada", 389), ("bo", 389), ("wall", 300)):
        Image.fromarray(picture(489, width, name)).save(tmp_path / f"{name}.png")
    characters = [{"name": name, "image": f"{name.lower()}.png"} for name in ("Ada", "Bo")]
    (tmp_path / "scene.json").write_text(json.dumps({"prompt": "", "characters": characters}))

    def encoder(models_dir: Path | None, select: str) -> PhotoFaceEncoder:
        detector = FixedDetector({389: [face(BO, 0.99), face(BO, 0.999)]})
        return PhotoFaceEncoder(FaceModels(detector, EllipseParser(), None, None), select=select)  # type: ignore[arg-type]

    monkeypatch.setattr(cli_faces, "face_encoder", encoder)
    return tmp_path


def test_characters_of_a_scene(folder, capsys):
    assert cli.main(["faces", str(folder / "scene.json"), "-o", str(folder / "faces.png")]) == 0
    preview = Image.open(folder / "faces.png")
    assert preview.size == (round(389 * 512 / 489) + 512, 1024)
    assert np.asarray(preview)[20, -20].tolist() == [255, 255, 255]  # outside of the parsed face
    printed = capsys.readouterr().err
    assert "warning: Ada: 2 faces detected: the largest one is used" in printed and "warning: Bo: 2 faces" in printed


def test_image_without_face(folder, capsys):
    images = [str(folder / "wall.png"), str(folder / "ada.png")]
    assert cli.main(["faces", *images, "-o", str(folder / "faces.png"), "--select", "most_confident"]) == 1
    printed = capsys.readouterr().err
    assert "wall.png: no face detected" in printed and "ada.png: 2 faces" in printed
    assert Image.open(folder / "faces.png").height == 512


def test_missing_weights_in_the_given_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.fromarray(picture(64, 64)).save(tmp_path / "ada.png")
    options = ["-o", str(tmp_path / "faces.png"), "--models-dir", str(tmp_path)]
    assert cli.main(["faces", str(tmp_path / "ada.png"), *options]) == 2
    printed = capsys.readouterr().err
    assert "detection_Resnet50_Final.pth" in printed and "download official --components faces" in printed
    assert not (tmp_path / "faces.png").exists()


def test_without_released_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BYA_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, pixels in (("ada", person(192)), ("wall", picture(64, 64))):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    out = tmp_path / "faces.png"
    assert cli.main(["faces", str(tmp_path / "ada.png"), "-o", str(out)]) == 0
    preview = np.asarray(Image.open(out))
    assert preview.shape == (512, 1024, 3) and (preview[5, 5:500] < 255).any()
    assert preview[300, 768].min() < 250 and preview[5, -5].tolist() == [255, 255, 255]  # the face on white
    assert "BlazeFace" in capsys.readouterr().err
    out.unlink()
    assert cli.main(["faces", str(tmp_path / "wall.png"), "-o", str(out)]) == 1 and not out.exists()
