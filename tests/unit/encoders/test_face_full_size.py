"""All face networks at their published sizes and under their published names, with random weights, from files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from bya_core.encoders.face.detection import Face
from bya_core.encoders.face.encoder import FaceModels, PhotoFaceEncoder
from bya_core.encoders.face.parsing import BiSeNet
from bya_core.encoders.face.retinaface import RetinaFace
from bya_core.io.media import read_image
from tests import torchvision_shim
from tests.parity.weight_rule import FIXTURES
from tests.unit.encoders.networks import POINTS, drawn, write_arcface

if not torchvision_shim.importable():
    pytest.skip("torchvision cannot be imported, and timm needs it", allow_module_level=True)
pytest.importorskip("timm")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SHARED = Path(__file__).resolve().parents[4] / "shared"
PHOTO = Path(os.environ.get("BYA_SAMPLES_DIR", SHARED / "samples")) / "004" / "face_1.jpg"
MANIFEST = Path(os.environ.get("BYA_MANIFEST") or FIXTURES / "state_dict_manifest.json")


@pytest.mark.slow
def test_a_photo_through_networks_of_the_real_size(tmp_path) -> None:
    if not PHOTO.is_file() or not MANIFEST.is_file():
        pytest.skip("the sample photos or the manifest of the released files are not here")
    files = json.loads(MANIFEST.read_text())["files"]
    entries = next(value for name, value in files.items() if name.startswith("EVA02_CLIP_L_336"))
    torch.manual_seed(0)
    shapes = {name: shape for name, (shape, _) in entries.items() if ".freqs_" not in name}
    tower = {name: torch.randn(shape).mul_(0.02).half() for name, shape in shapes.items()}
    torch.save(tower | {"logit_scale": torch.zeros(())}, tmp_path / "eva.pt")
    del tower
    torch.save(drawn(RetinaFace()), tmp_path / "detector.pth")
    torch.save(drawn(BiSeNet()), tmp_path / "parser.pth")
    write_arcface(tmp_path / "glintr100.onnx")
    names = ("detector.pth", "parser.pth", "glintr100.onnx", "eva.pt")
    parts = FaceModels.load(*(tmp_path / name for name in names))
    assert not any(weight.is_meta for weight in [*parts.vision.parameters(), *parts.vision.buffers()])

    def found(image: torch.Tensor) -> list[Face]:  # random weights find nothing sensible
        return [Face((60.0, 60.0, 380.0, 480.0), 0.99, POINTS["004/face_1"])]

    parts.detector.detect = found  # type: ignore[method-assign]
    made = PhotoFaceEncoder(parts).encode(read_image(PHOTO))
    assert made.identity.shape == (1280,) and made.hidden.shape == (5, 577, 1024)
    assert made.portrait.shape == (3, 512, 512) and bool((made.portrait == 1).all(dim=0).any())
    assert bool(torch.isfinite(made.hidden).all()) and made.hidden.std() > 0
    assert abs(float(made.identity[512:].norm()) - 1) < 1e-4
