"""Models in folders that are shared with other programs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bya_core.weights import cache, official
from bya_core.weights.components import OFFICIAL
from bya_core.weights.registry import find_path
from bya_core.weights.single_file import FORMAT, write_single_file


def test_only_converted_files_of_a_shared_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_shared", [])
    weights = {"a": torch.zeros(2)}
    save_file(weights, tmp_path / "flux.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"")
    written = tmp_path / "official-bf16.safetensors"
    write_single_file(written, weights.items(), {"a": (2,)}, {"a": torch.float32}, {"bya_format": FORMAT})
    assert written.name not in cache.local_models()
    cache.add_shared_folder(tmp_path)
    found = cache.local_models()
    assert found[written.name] == written == find_path(written.name)
    assert not {"flux.safetensors", "broken.safetensors"} & found.keys()
    save_file(weights, written)  # replaced by another model
    assert written.name not in cache.local_models()


def test_encoders_of_other_applications_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name and size, such as ComfyUI's models/insightface/models/antelopev2."""
    monkeypatch.setattr(cache, "_foreign", [])
    root, foreign = tmp_path / "official", tmp_path / "insightface"
    component = next(component for component in OFFICIAL if component.name == "recognition")
    for file in component.known:
        path = foreign / "models" / "antelopev2" / Path(file.path).name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            assert file.size is not None
            out.truncate(file.size)  # sparse
    paths = [file.path for file in component.known]
    assert cache.missing_files(component, root) == paths
    cache.add_foreign_folder(tmp_path / "no such folder")
    cache.add_foreign_folder(foreign)
    assert cache.missing_files(component, root) == []
    found = foreign / "models" / "antelopev2" / "glintr100.onnx"
    assert official._find(root, official.RECOGNIZER) == found
    assert official._find(root, official.VISION) == root / official.VISION
    own = root / official.RECOGNIZER
    own.parent.mkdir(parents=True)
    own.touch()
    assert official._find(root, official.RECOGNIZER) == own
    own.unlink()
    found.write_bytes(b"another file of that name")
    assert cache.missing_files(component, root) == paths[:1]
