"""Files of tensors, and the host memory that sharded checkpoints need."""

from __future__ import annotations

import os
import subprocess
import sys
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
def test_a_failure_of_one_process_ends_all(tmp_path: Path) -> None:
    """A full disk in the main process or in another one, and a folder that cannot be created; nothing waits forever."""
    script = Path(__file__).parent / "failing_write.py"
    arguments = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=600, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    failures = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert failures.keys() == {f"{n} {case}" for n in (0, 1) for case in ("tensors", "between", "other", "folder")}
    for name, text in failures.items():
        if not name.endswith("folder"):
            assert "checkpoint" in text and "No space left on device" in text
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["file", "none"]
    stored = load_file(tmp_path / "none" / "second.safetensors")
    assert torch.equal(stored["b"], torch.arange(24.0).view(8, 3) + 1) and len(stored) == 4


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_sharded_checkpoints_need_less_than_one_copy_in_host_memory(tmp_path: Path) -> None:
    """Before, every process gathered weights and optimizer state as a whole: 6 copies for two processes."""
    used = measure(400, tmp_path)
    assert used["megabytes"] > 300
    assert all(used[name] <= 1.3 for name in PHASES), used
