"""Interrupted runs, full disks, damaged files and non-finite losses."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import time
from dataclasses import replace

import pytest
import torch

from bya_core.errors import InputError
from tests.training.run_parts import command, finish, losses, start, write_data, write_recipe
from tests.training.stage_parts import small_model
from training.data.dataset import ClipFolder
from training.engine.checkpointing import Checkpoints
from training.engine.loop import RunSettings, train
from training.engine.stages import load_recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("clips") / "data")


@pytest.fixture
def stage(tmp_path):
    return load_recipe(write_recipe(tmp_path / "small.yaml")).stages[3]


def settings(output, **changes):
    return RunSettings(output, report_to=(), **{"logging_steps": 1, "checkpointing_steps": 3, **changes})


def test_killed_run_resumes_bit_for_bit(data, tmp_path):
    recipe = write_recipe(tmp_path / "small.yaml", steps=30)
    finish(command(recipe, data, tmp_path / "whole", "--checkpointing-steps", "4"))
    expected = losses(tmp_path / "whole")
    assert len(expected) == 30
    killed = tmp_path / "killed"
    arguments = command(recipe, data, killed, "--checkpointing-steps", "4")
    process, last = start(arguments), random.Random(time.time_ns()).randint(5, 25)
    try:
        while not (killed / "log.jsonl").is_file() or len((killed / "log.jsonl").read_text().splitlines()) < last:
            assert process.poll() is None, process.communicate()[0][-3000:]
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    before = losses(killed) if killed.exists() else {}
    assert len(before) < 30, "the run was over before it could be killed"
    finish(arguments)
    assert losses(killed) == expected
    assert not list(killed.rglob("*.part*"))


def test_stopped_run_resumes_to_the_same_weights(data, tmp_path, stage):
    clips = ClipFolder(data)
    train(small_model(), clips, stage, settings(tmp_path / "whole"))
    train(small_model(), clips, replace(stage, steps=7), settings(tmp_path / "parts"))
    train(small_model(), clips, stage, settings(tmp_path / "parts"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    for name in ("diffusion_pytorch_model.safetensors", "pytorch_lora_weights.safetensors"):
        whole, parts = ((tmp_path / run / "final" / name).read_bytes() for run in ("whole", "parts"))
        assert whole == parts, name


def test_checkpoints_store_trained_weights_only_and_are_limited(data, tmp_path, stage):
    model = small_model()
    train(model, ClipFolder(data), stage, settings(tmp_path / "run"))
    kept = Checkpoints(tmp_path / "run").all()
    assert [path.name for path in kept] == ["step-00000009", "step-00000012"]
    from safetensors.torch import load_file

    weights = load_file(kept[-1] / "weights.safetensors")
    assert set(weights) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert any(".lora_A." in name for name in weights)
    assert not any("transformer_blocks.0.ff" in name for name in weights)


def test_full_disk_is_an_error_and_the_last_checkpoint_is_intact(data, tmp_path, stage):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step, means, model):
        if step == 4:  # from here on no file may grow beyond 8 kB: writing fails as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))

    try:
        with pytest.raises(InputError, match=r"step 6 cannot be written.*resume from step-00000003"):
            train(small_model(), ClipFolder(data), stage, settings(tmp_path / "run"), callback=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    train(small_model(), ClipFolder(data), stage, settings(tmp_path / "run"))
    train(small_model(), ClipFolder(data), stage, settings(tmp_path / "whole"))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_damaged_checkpoint_is_an_error_and_the_previous_one_resumes(data, tmp_path, stage):
    train(small_model(), ClipFolder(data), stage, settings(tmp_path / "run"))
    newest = tmp_path / "run" / "checkpoints" / "step-00000012"
    content = (newest / "weights.safetensors").read_bytes()
    (newest / "weights.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="step-00000012.*remove that folder"):
        train(small_model(), ClipFolder(data), stage, settings(tmp_path / "run"))
    before = losses(tmp_path / "run")
    shutil.rmtree(newest)
    train(small_model(), ClipFolder(data), stage, settings(tmp_path / "run"))
    assert losses(tmp_path / "run") == before


def test_checkpoint_of_another_run_is_rejected(data, tmp_path, stage):
    train(small_model(), ClipFolder(data), replace(stage, steps=2), settings(tmp_path / "run"))
    with pytest.raises(InputError, match="seed 0"):
        train(small_model(), ClipFolder(data), stage, settings(tmp_path / "run", seed=1))
    other = small_model()
    other.transformer_blocks[0].ff.net[2].weight.data += 1
    with pytest.raises(InputError, match="frozen"):
        train(other, ClipFolder(data), stage, settings(tmp_path / "run"))


class NanBatches:
    """Clips whose latents are no numbers in some batches."""

    def __init__(self, clips, batches):
        self.inner, self.nan_batches, self.clips = clips, batches, clips.clips

    def batches(self, size, seed, start=0, rank=0, world_size=1):
        for number, batch in enumerate(self.inner.batches(size, seed, start, rank, world_size), start):
            if number in self.nan_batches:
                batch["latents"] = batch["latents"] * float("nan")
            yield batch


def test_non_finite_losses_are_skipped_and_counted(data, tmp_path, stage):
    model = small_model()
    summary = train(model, NanBatches(ClipFolder(data), {2, 5}), stage, settings(tmp_path / "run"))
    assert summary["skipped"] == 2 and summary["steps"] == 12
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(value == value for name, value in summary.items())


def test_too_many_consecutive_skips_end_the_run(data, tmp_path, stage):
    clips = NanBatches(ClipFolder(data), set(range(4, 99)))
    with pytest.raises(InputError, match="no finite loss or gradient in the last 3 steps"):
        train(small_model(), clips, stage, settings(tmp_path / "run", max_skipped_steps=3, checkpointing_steps=4))
    assert [path.name for path in Checkpoints(tmp_path / "run").all()] == ["step-00000004"]
    train(small_model(), ClipFolder(data), stage, settings(tmp_path / "run"))
    train(small_model(), ClipFolder(data), stage, settings(tmp_path / "whole"))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def test_broken_data_ends_the_run_and_keeps_the_checkpoint(data, tmp_path, stage):
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    clips = ClipFolder(copy)

    def damage(step, means, model):
        if step == 5:
            for path in copy.iterdir():
                path.unlink()
            clips._open.cache_clear()

    with pytest.raises(InputError, match="batch 5 cannot be read.*repair or remove the shard"):
        train(small_model(), clips, stage, settings(tmp_path / "run"), callback=damage)
    assert [path.name for path in Checkpoints(tmp_path / "run").all()] == ["step-00000003"]
