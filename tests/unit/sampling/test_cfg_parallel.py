"""Guidance branches as one batch, sequentially, and distributed over two processes: equal results."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig
from safetensors.torch import load_file
from torch import Tensor

from bya_core.errors import InputError
from bya_core.memory.planner import GIB, MemoryPlan, apply_memory_plan, plan_memory
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.sampling import cfg_parallel as parallel
from bya_core.weights.bundle import ModelBundle, NativeSize
from tests.unit.sampling.parallel_run import PRESET, SKIPPING, results, skipping
from tests.unit.sampling.test_denoise_small_model import _conditions, _run, build

ROOT = Path(__file__).resolve().parents[3]
Model = BindYourAvatarTransformer3DModel


def torchrun(processes: int, *command: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    outer = ("ACCELERATE", "TORCHELASTIC")  # of a launcher that runs these tests
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outer)} | {
        "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""
    }  # fmt: skip
    return subprocess.run([*launcher, *command], capture_output=True, text=True, timeout=600, env=environment, cwd=ROOT)


CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def batched() -> dict[str, Tensor]:
    return results("batch")


@pytest.fixture
def model() -> Model:
    return build()


@pytest.fixture
def batches(model: Model) -> list[int]:
    """Batch size of each call."""
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, __, kwargs: sizes.append(len(kwargs["hidden_states"])), with_kwargs=True)
    return sizes


def test_sequential_equals_batched(batched: dict[str, Tensor]) -> None:
    torch.testing.assert_close(results("sequential"), batched, **CLOSE)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of two processes."""
    folder = tmp_path_factory.mktemp("two_processes")
    done = torchrun(2, str(ROOT / "tests" / "unit" / "sampling" / "parallel_run.py"), str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_distributed_equals_batched(batched: dict[str, Tensor], two_processes: Path) -> None:
    first, second = (load_file(two_processes / f"{rank}.safetensors") for rank in (0, 1))
    torch.testing.assert_close(first, batched, **CLOSE)
    torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_distributed_processes_skip_the_same_steps(two_processes: Path) -> None:
    first, second = (load_file(two_processes / f"skipping{rank}.safetensors") for rank in (0, 1))
    torch.testing.assert_close(first, skipping("sequential"), **CLOSE)
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    for threshold in (0.0, 1e9):  # with PRESET, some blocks are skipped, not none or all
        other = skipping("sequential", replace(PRESET, cache_threshold=threshold))
        assert not any(torch.allclose(first[f"{n}: latents"], other[f"{n}: latents"], atol=1e-2) for n in SKIPPING)


@pytest.mark.parametrize(("speech", "count"), [(3.0, 2), (6.0, 3), (1.0, 1)])
def test_batch_sizes(model: Model, batches: list[int], speech: float, count: int) -> None:
    text = min(speech, 3.0)
    _run(model, _conditions(model, 2), guidance_scale=text, audio_guidance_scale=speech)
    parallel.set_guidance_mode(model, "sequential")
    _run(model, _conditions(model, 2), guidance_scale=text, audio_guidance_scale=speech)
    assert batches == [count] * 3 + [1] * 3 * count


def test_out_of_memory_falls_back_to_sequential(
    model: Model, batches: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    def out_of_memory(_: Any, __: Any, kwargs: dict[str, Tensor]) -> None:
        if len(kwargs["hidden_states"]) > limit:
            raise torch.OutOfMemoryError("too little")

    conditions = _conditions(model, 2)
    expected = _run(model, conditions)
    batches.clear()
    limit = 1
    model.register_forward_pre_hook(out_of_memory, with_kwargs=True)
    with caplog.at_level(logging.WARNING):
        made = _run(model, conditions)
    assert batches == [2] + [1] * 6  # tried once
    assert caplog.text.count("run one after another") == 1
    torch.testing.assert_close(made.latents, expected.latents, **CLOSE)
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        _run(model, conditions, guidance_scale=1.0, audio_guidance_scale=1.0)


def test_sequential_branches_have_separate_step_caches(model: Model) -> None:
    conditions = _conditions(model, 2)
    expected = _run(model, conditions)
    ran: list[int] = []
    model.transformer_blocks[-1].ff.register_forward_hook(lambda *_: ran.append(1))
    parallel.set_guidance_mode(model, "sequential")
    model.enable_cache(FirstBlockCacheConfig(threshold=1e-9))  # never skips, unless the branches shared one state
    exact = _run(model, conditions)
    assert len(ran) == 6
    torch.testing.assert_close(exact.latents, expected.latents, **CLOSE)
    model.disable_cache()
    model.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    for _ in range(2):  # each run starts with an empty cache
        ran.clear()
        _run(model, conditions)
        assert len(ran) == 2  # the first step of each branch


def test_memory_plan_selects_sequential_guidance() -> None:
    parts = {"blocks": 10 * GIB, "text": 5 * GIB, "denoising": 4 * GIB, "denoising_sequential": 2 * GIB, "block": GIB}
    plans = {gigabytes: plan_memory(str(gigabytes), parts) for gigabytes in (24, 16, 14, 12)}
    assert {gigabytes: (plan.name, plan.sequential_guidance) for gigabytes, plan in plans.items()} == {
        24: ("full", False),  # 19 GB
        16: ("component_offload", False),  # 14 GB
        14: ("component_offload", True),  # 12 GB
        12: ("block_offload", False),
    }


def test_memory_plan_sets_the_guidance_mode(model: Model) -> None:
    part = SimpleNamespace()
    bundle = ModelBundle("small", model, part, part, part, part, {}, NativeSize(32, 48, 5))  # type: ignore[arg-type]
    apply_memory_plan(bundle, MemoryPlan("", offload_components=False, sequential_guidance=True), "cpu")
    assert model.guidance_mode == "sequential"


def test_unknown_guidance_mode_raises(model: Model) -> None:
    with pytest.raises(InputError, match="guidance mode 'both'"):
        parallel.set_guidance_mode(model, "both")  # type: ignore[arg-type]
