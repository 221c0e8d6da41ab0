"""Models, LoRAs and encoders in the folders of ComfyUI."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import folder_paths
import pytest
import torch
from conftest import Run
from safetensors.torch import save_file


def test_loras_are_merged_and_chained(run: Run, nodes: Any, tmp_path: Path) -> None:
    name = "transformer_blocks.0.attn1.to_q"
    weight = run("Loader")[0].bundle.transformer.state_dict()[f"{name}.weight"].clone()
    a, b = torch.ones(1, weight.shape[1]), torch.ones(weight.shape[0], 1)
    folder_paths.add_model_folder_path("loras", str(tmp_path))
    for file, factor in (("first", 1.0), ("second", 3.0)):
        pair = {f"transformer.{name}.lora_A.weight": a, f"transformer.{name}.lora_B.weight": factor * b}
        save_file(pair, tmp_path / f"{file}.safetensors")
    folder_paths.filename_list_cache.clear()
    options = nodes["LoadLora"].define_schema().inputs[0].options
    assert {"first.safetensors", "second.safetensors"} <= set(options)
    chain = run("LoadLora", lora_name="first.safetensors", strength=0.5)[0]
    chain = run("LoadLora", lora_name="second.safetensors", lora=chain)[0]
    bundle = run("Loader", lora=chain)[0].bundle
    assert torch.allclose(bundle.transformer.state_dict()[f"{name}.weight"], weight + 0.5 + 3.0, atol=1e-5)
    assert bundle.name == "toy + first:0.5 + second:1"
    save_file({"unet.lora_A.weight": a, "unet.lora_B.weight": b}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="fits none of the weights"):
        run("Loader", lora=run("LoadLora", lora_name="other.safetensors")[0])


def test_encoders_of_other_nodes(host: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    """Face encoders in models/insightface, and in the folders of extra_model_paths.yaml."""
    from bya_core.weights import cache
    from bya_core.weights.components import RECOGNITION

    monkeypatch.setattr(cache, "_foreign", [])
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    places = [tmp_path / "models" / "insightface" / "models" / "antelopev2", tmp_path / "elsewhere"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "facexlib", ([str(places[1])], set()))
    for place, file in zip(places, RECOGNITION.known, strict=True):
        place.mkdir(parents=True)
        with (place / Path(file.path).name).open("wb") as out:
            out.truncate(file.size)  # sparse
    assert len(cache.missing_files(RECOGNITION, tmp_path)) == 2
    host.local_model_paths()
    assert cache.missing_files(RECOGNITION, tmp_path) == []


def test_models_in_extra_folders(run: Run, nodes: Any, tmp_path: Path, host: ModuleType) -> None:
    """Folders of extra_model_paths.yaml are searched like models/bindyouravatar."""
    from bya_core.weights.registry import MODELS

    (tmp_path / "my puppets").symlink_to(MODELS["toy"].path, target_is_directory=True)
    (tmp_path / "no model").mkdir()
    folder_paths.add_model_folder_path(host.FOLDER, str(tmp_path))
    options = nodes["Loader"].define_schema().inputs[0].options
    assert "my puppets" in options and "no model" not in options
    assert run("Loader", model="my puppets")[0].bundle.name == "my puppets"
    assert any("models" in folder for folder in folder_paths.get_folder_paths(host.FOLDER))
