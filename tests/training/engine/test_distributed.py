"""Preparation of a model for several processes, without any."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from training.engine import distributed
from training.engine.settings import RunSettings


def test_buffers_come_from_the_main_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DeepSpeed sends parameters only, and the other processes start with empty memory."""
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(distributed, "broadcast", sent.append)
    accelerator: Any = SimpleNamespace(is_fsdp2=False, mixed_precision="no", prepare=lambda *values: values)
    model = nn.BatchNorm1d(2)
    wrapper, optimizers = distributed.prepare(accelerator, model, ["optimizer"], RunSettings(output=tmp_path / "run"))
    assert optimizers == ["optimizer"] and wrapper(lambda net: net) is model
    assert [tensor.data_ptr() for tensor in sent] == [buffer.data_ptr() for buffer in model.buffers()] and sent
