"""Files of tensors, and the host memory that sharded checkpoints need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.checkpoint_memory import PHASES, measure
from training.engine import tensor_files
from training.engine.checkpointing import TrainerState
from training.engine.settings import RunSettings
from training.engine.stages import PUBLISHED
from training.engine.tensor_files import TensorFile, write_tensors
from training.engine.timer import RunTimer


def test_tensors_of_all_kinds_are_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "READ_BYTES", 64)  # several pieces
    tensors = {
        "matrix": torch.randn(7, 5),
        "half": torch.randn(3, 2).bfloat16(),
        "step": torch.tensor(3.0),
        "bytes": torch.arange(6, dtype=torch.uint8),
        "turned": torch.randn(4, 6).T,
    }
    write_tensors(tmp_path / "file.safetensors", tensors, True, {"values": "{}"})
    write_tensors(tmp_path / "none.safetensors", tensors, False)
    assert not (tmp_path / "none.safetensors").exists()
    stored = load_file(tmp_path / "file.safetensors")
    assert stored.keys() == tensors.keys() and all(torch.equal(stored[name], tensors[name]) for name in tensors)
    with TensorFile(tmp_path / "file.safetensors") as file:
        assert file.metadata["values"] == "{}"
        for name, tensor in tensors.items():
            assert torch.equal(file.like(name, torch.zeros_like(tensor, dtype=torch.float64)), tensor), name
        target = torch.zeros(7, 5)
        file.copy_to("matrix", target)
        assert torch.equal(target, tensors["matrix"])
        with pytest.raises(ValueError, match=r"matrix has the shape \(7, 5\) instead of \(7, 4\)"):
            file.copy_to("matrix", torch.zeros(7, 4))


@pytest.mark.parametrize(("size", "given", "expected"), [(1e9, None, 5.0), (75e9, None, 50.0), (75e9, 2.0, 2.0)])
def test_large_checkpoints_are_written_less_often(tmp_path, size, given, expected) -> None:
    settings = RunSettings(tmp_path, checkpointing_minutes=given)
    timer = RunTimer(PUBLISHED[1], settings, TrainerState(), int(size))
    timer.state.minutes = expected - 0.01
    assert not timer.checkpoint_due()
    timer.state.minutes = expected + 0.01
    assert timer.checkpoint_due() and not timer.checkpoint_due()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_sharded_checkpoints_need_less_than_one_copy_in_host_memory(tmp_path: Path) -> None:
    """Before, every process gathered weights and optimizer state as a whole: 6 copies for two processes."""
    used = measure(400, tmp_path)
    assert used["megabytes"] > 300
    assert all(used[name] <= 1.3 for name in PHASES), used
