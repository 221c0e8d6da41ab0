"""Interrupted runs, full disks, damaged files and non-finite losses."""

from __future__ import annotations

import math
import resource
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from bya_core.errors import InputError
from tests.training import run_parts
from tests.training.run_parts import command, finish, losses, start, write_recipe
from tests.training.stage_parts import small_model
from training.data.clip_folder import ClipFolder
from training.engine.checkpointing import Checkpoints
from training.engine.recipe import load_recipe


@pytest.fixture
def stage(tmp_path):
    return load_recipe(write_recipe(tmp_path / "small.yaml")).stages[3]


def run(*arguments, **settings):
    return run_parts.run(*arguments, **{"checkpointing_steps": 3, **settings})


def checkpoints(output):
    return [path.name for path in Checkpoints(output).all()]


KILLED_AT = """import os, runpy, signal, sys
from training.engine.trackers import MetricLog
log = MetricLog.log
def log_and_die(self, values, step):
    log(self, values, step)
    if step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
MetricLog.log = log_and_die
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_killed_run_resumes_bit_for_bit(data, tmp_path):
    recipe = write_recipe(tmp_path / "small.yaml", steps=20)
    finish(command(recipe, data, tmp_path / "whole", "--checkpointing-steps", "4"))
    expected = losses(tmp_path / "whole")
    assert len(expected) == 20
    killed = tmp_path / "killed"
    arguments = command(recipe, data, killed, "--checkpointing-steps", "4")
    program = f"import sys; sys.argv = sys.argv[1:]\n{KILLED_AT.format(step=10)}"
    process = start([arguments[0], "-c", program, *arguments[1:]])
    output, _ = process.communicate(timeout=900)
    assert process.returncode == -signal.SIGKILL, output[-3000:]
    assert len(losses(killed)) == 10
    finish(arguments)
    assert losses(killed) == expected
    assert not list(killed.rglob("*.part*"))


def test_stopped_run_resumes_to_the_same_weights(data, tmp_path, stage):
    run(data, stage, tmp_path / "whole")
    run(data, replace(stage, steps=7), tmp_path / "parts")
    run(data, stage, tmp_path / "parts")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    for name in ("diffusion_pytorch_model.safetensors", "pytorch_lora_weights.safetensors"):
        whole, parts = ((tmp_path / folder / "final" / name).read_bytes() for folder in ("whole", "parts"))
        assert whole == parts, name


def test_checkpoints_store_trained_weights_only_and_are_limited(data, tmp_path, stage):
    model = small_model()
    run(data, stage, tmp_path, model)
    assert checkpoints(tmp_path) == ["step-00000009", "step-00000012"]
    weights = load_file(tmp_path / "checkpoints" / "step-00000012" / "weights.safetensors")
    assert set(weights) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(".lora_A." in name for name in weights)
    assert not any("transformer_blocks.0.ff" in name for name in weights)


def test_full_disk_raises_and_the_last_checkpoint_is_intact(data, tmp_path, stage):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step, means, model):
        if step == 4:  # files may not grow beyond 8 kB from here on, so that writing fails as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))

    try:
        with pytest.raises(InputError, match=r"step 6 cannot be written.*resume from step-00000003"):
            run(data, stage, tmp_path / "run", callback=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    for name in ("run", "whole"):
        run(data, stage, tmp_path / name)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_damaged_checkpoint_raises_and_the_previous_one_resumes(data, tmp_path, stage):
    run(data, stage, tmp_path)
    newest = tmp_path / "checkpoints" / "step-00000012"
    content = (newest / "weights.safetensors").read_bytes()
    (newest / "weights.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="step-00000012.*remove that folder"):
        run(data, stage, tmp_path)
    before = losses(tmp_path)
    shutil.rmtree(newest)
    run(data, stage, tmp_path)
    assert losses(tmp_path) == before


def test_checkpoint_of_another_run_raises(data, tmp_path, stage):
    run(data, replace(stage, steps=2), tmp_path)
    with pytest.raises(InputError, match="seed was 0, is 1"):
        run(data, stage, tmp_path, seed=1)
    other = small_model()
    other.transformer_blocks[0].ff.net[2].weight.data += 1
    with pytest.raises(InputError, match="init.fingerprint was"):
        run(data, stage, tmp_path, other)


class NanBatches:
    """Clips whose latents are NaN in some batches."""

    def __init__(self, folder, batches):
        self.inner, self.nan_batches = ClipFolder(folder), batches
        self.clips, self.description = self.inner.clips, self.inner.description

    def batches(self, size, seed, start=0, rank=0, world_size=1):
        for number, batch in enumerate(self.inner.batches(size, seed, start, rank, world_size), start):
            if number in self.nan_batches:
                batch["latents"] = batch["latents"] * float("nan")
            yield batch


def test_non_finite_losses_are_skipped_and_counted(data, tmp_path, stage):
    model = small_model()
    summary = run(NanBatches(data, {2, 5}), stage, tmp_path, model)
    assert summary["skipped"] == 2 and summary["steps"] == 12
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(map(math.isfinite, summary.values()))


def test_too_many_consecutive_skips_end_the_run(data, tmp_path, stage):
    with pytest.raises(InputError, match="no finite loss or gradient in the last 3 steps"):
        run(NanBatches(data, range(4, 99)), stage, tmp_path / "run", max_skipped_steps=3, checkpointing_steps=4)
    assert checkpoints(tmp_path / "run") == ["step-00000004"]
    for name in ("run", "whole"):
        run(data, stage, tmp_path / name)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_unreadable_data_raises_and_the_checkpoint_is_intact(data, tmp_path, stage):
    copy = shutil.copytree(data, tmp_path / "data")
    clips = ClipFolder(copy)

    def delete(step, means, model):
        if step == 5:
            shutil.rmtree(copy)
            clips._open.cache_clear()

    with pytest.raises(InputError, match="batch 5 cannot be read.*repair or remove the shard"):
        run(clips, stage, tmp_path / "run", callback=delete)
    assert checkpoints(tmp_path / "run") == ["step-00000003"]
