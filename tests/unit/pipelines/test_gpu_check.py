"""The checks of `bya doctor --gpu` on a small model on the CPU."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
import torch

from bya_core.cli.main import main
from bya_core.pipelines import full_size, gpu_check
from bya_core.pipelines.gpu_check import GpuCheck, check_gpu
from bya_core.weights.bundle import NativeSize
from tests.unit.cli.test_selftest import SMALL

SIZE = NativeSize(64, 96, 9)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small VAE, and no compilation, which takes minutes."""
    vae = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2}
    monkeypatch.setattr(full_size, "VAE", {**full_size.VAE, **vae})
    monkeypatch.setattr(gpu_check, "compiled", lambda _: nullcontext())


def test_every_check_is_reported(small: None) -> None:
    seen: list[GpuCheck] = []
    report = check_gpu("cpu", SMALL, SIZE, notify=seen.append)
    assert tuple(seen) == report.checks and report.healthy
    states = {check.name: check.state for check in report.checks}
    assert all(states[f"preset {name}"] == "ok" for name in ("exact", "balanced", "fast"))
    assert states["decoding"] == states["masked attention torch"] == "ok"
    assert states["attention sage"] == states["masked attention triton"] == "not available"
    exact = next(check for check in report.checks if check.name == "preset exact")
    assert exact.error is not None and 0 < exact.error < 0.05
    json.dumps(report.as_json())


def test_wrong_results_and_failures_are_found(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    run_steps = gpu_check.run_steps

    def broken(*arguments: object, preset: str = "exact", **options: object) -> torch.Tensor:
        if preset == "fast":
            raise RuntimeError("CUDA error: no kernel image is available\nmore")
        latents = run_steps(*arguments, **options)
        return latents * 2 if preset == "balanced" else latents

    monkeypatch.setattr(gpu_check, "run_steps", broken)
    report = check_gpu("cpu", SMALL, SIZE)
    found = {check.name: check for check in report.checks}
    assert not report.healthy and report.recommended["preset"] == "exact"
    assert found["preset balanced"].state == "inaccurate"
    assert found["preset fast"].state == "failed"
    assert found["preset fast"].detail == "RuntimeError: CUDA error: no kernel image is available"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--gpu"]) == 2
    assert "without a CUDA GPU" in capsys.readouterr().err
