"""Models in folders that are shared with other programs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bya_core.weights import cache
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
