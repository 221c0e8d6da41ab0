"""Branches of guidance as one batch, in turns, and over two processes: the same video, whatever computes it."""

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


def alone(**more: str) -> dict[str, str]:
    """The environment of a process on its own: one quiet thread, this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "TORCHELASTIC"))}
    quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    return {**kept, **quiet, **more}


def torchrun(processes: int, *command: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    told: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 600, "env": alone(), "cwd": ROOT}
    return subprocess.run([*launcher, *command], **told)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, atol=2e-5, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture(scope="module")
def predict_batched() -> dict[str, Tensor]:
    return results("batch")


@pytest.fixture
def model() -> Model:
    return build()


@pytest.fixture
def batches(model: Model) -> list[int]:
    """The batch size of each call so far."""
    seen: list[int] = []
    with_hook = model.register_forward_pre_hook(
        lambda _, __, named: seen.append(len(named["hidden_states"])), with_kwargs=True
    )
    yield seen
    with_hook.remove()


def test_in_turns_it_is_the_same(predict_batched: dict[str, Tensor]) -> None:
    assert_same(results("sequential"), predict_batched)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of two processes ends with."""
    folder = tmp_path_factory.mktemp("two_processes")
    done = torchrun(2, str(ROOT / "tests" / "unit" / "sampling" / "parallel_run.py"), str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_two_processes_end_with_what_one_ends_with(predict_batched: dict[str, Tensor], two_processes: Path) -> None:
    """And with equal numbers, to the last digit, in both of them."""
    first, second = (load_file(two_processes / f"{rank}.safetensors") for rank in (0, 1))
    assert_same(first, predict_batched)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_leave_the_same_work_out(two_processes: Path) -> None:
    """Skipped blocks, frozen masks, less guidance: as one process does that computes the branches in turns."""
    first, second = (load_file(two_processes / f"skipping{rank}.safetensors") for rank in (0, 1))
    assert_same(first, skipping("sequential"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for threshold in (0.0, 1e9):  # some of the blocks were skipped, where none or all might be
        other = skipping("sequential", replace(PRESET, cache_threshold=threshold))
        assert not any(torch.allclose(first[f"{n}: latents"], other[f"{n}: latents"], atol=1e-2) for n in SKIPPING)


@pytest.mark.parametrize(("speech", "count"), [(3.0, 2), (6.0, 3), (1.0, 1)])
def test_in_turns_one_is_held_at_a_time(model: Model, batches: list[int], speech: float, count: int) -> None:
    text = min(speech, 3.0)
    _run(model, _conditions(model, 2), guidance_scale=text, audio_guidance_scale=speech)
    parallel.set_guidance_mode(model, "sequential")
    _run(model, _conditions(model, 2), guidance_scale=text, audio_guidance_scale=speech)
    assert batches == [count] * 3 + [1] * 3 * count


def test_where_memory_runs_out_they_take_turns(
    model: Model, batches: list[int], predict_batched: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    def small_device(_: Any, __: Any, named: dict[str, Tensor]) -> None:
        if len(named["hidden_states"]) > 1:
            raise torch.OutOfMemoryError("too little")

    conditions = _conditions(model, 2)
    expected = _run(model, conditions)
    batches.clear()
    model.register_forward_pre_hook(small_device, with_kwargs=True)
    with caplog.at_level(logging.WARNING):
        made = _run(model, conditions)
    assert batches == [2] + [1] * 6  # tried once
    assert caplog.text.count("one after the other") == 1
    torch.testing.assert_close(made.latents, expected.latents, atol=2e-5, rtol=1e-4)


def test_one_version_that_does_not_fit_is_an_error(model: Model) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("too little")

    model.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        _run(model, _conditions(model, 2), guidance_scale=1.0, audio_guidance_scale=1.0)


def test_each_version_has_cached_steps_of_its_own(model: Model) -> None:
    """A cache that never finds two calls alike computes all of them; were the versions one state, it would answer for
    one with what it keeps of the other."""
    conditions = _conditions(model, 2)
    expected = _run(model, conditions)
    ran: list[int] = []
    model.transformer_blocks[-1].ff.register_forward_hook(lambda *_: ran.append(1))
    parallel.set_guidance_mode(model, "sequential")
    model.enable_cache(FirstBlockCacheConfig(threshold=1e-9))
    exact = _run(model, conditions)
    assert len(ran) == 6
    torch.testing.assert_close(exact.latents, expected.latents, atol=2e-5, rtol=1e-4)
    model.disable_cache()
    ran.clear()
    model.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    _run(model, conditions)
    assert len(ran) == 2  # the first step of each
    ran.clear()
    _run(model, conditions)
    assert len(ran) == 2  # nothing is left of the run before


def test_a_card_too_small_for_both_versions_keeps_its_rung() -> None:
    parts = {"blocks": 10 * GIB, "text": 5 * GIB, "denoising": 4 * GIB, "denoising_sequential": 2 * GIB, "block": GIB}
    chosen = {gigabytes: plan_memory(str(gigabytes), parts) for gigabytes in (24, 16, 14, 12)}
    named = {gigabytes: (plan.name, plan.sequential_guidance) for gigabytes, plan in chosen.items()}
    assert named == {
        24: ("full", False),  # 19 GB
        16: ("component_offload", False),  # 14 GB
        14: ("component_offload", True),  # 12 GB
        12: ("block_offload", False),
    }


def test_such_a_rung_takes_turns(model: Model) -> None:
    part = SimpleNamespace()
    bundle = ModelBundle("small", model, part, part, part, part, {}, NativeSize(32, 48, 5))  # type: ignore[arg-type]
    apply_memory_plan(bundle, MemoryPlan("", offload_components=False, sequential_guidance=True), "cpu")
    assert parallel.predictor(model) is parallel.predict_sequential


def test_a_way_that_there_is_not(model: Model) -> None:
    with pytest.raises(InputError, match='expected "batch", "sequential" or "distributed"'):
        parallel.set_guidance_mode(model, "both")  # type: ignore[arg-type]
