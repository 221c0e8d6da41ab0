"""A run is on record before its first step, and a restart that would change the experiment is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from bya_core.errors import InputError
from bya_core.weights.comparison import weights_fingerprint
from tests.training.run_parts import ROOT, run, write_data
from tests.training.stage_parts import small_model
from training.data.clip_folder import ClipFolder
from training.data.dataset import open_data
from training.engine.record import check_record, describe_run, write_record
from training.engine.settings import RunSettings
from training.engine.stages import PUBLISHED
from training.engine.yaml_files import read_yaml

HOLD = """import sys, time; sys.path.insert(0, "{root}")
from pathlib import Path
from bya_core.io.locks import folder_lock
with folder_lock(Path("{folder}"), "the checkpoints", "wait"):
    print("locked", flush=True)
    time.sleep(60)
"""
STAGE = replace(PUBLISHED[1], batch_size=3, steps=2)


@pytest.fixture
def describe(data, tmp_path):
    """Describes a run of the small model; keyword arguments replace parts of it."""
    given, model = ClipFolder(data), small_model()

    def build(stage=STAGE, clips=given, weights="a" * 16, **settings):
        return describe_run(model, weights, stage, RunSettings(tmp_path / "run", **settings), clips)

    return build


def test_the_record_is_written_before_the_first_step(data, tmp_path):
    seen = {}

    def look(step, means, model):
        seen.setdefault(step, read_yaml(tmp_path / "config.yaml"))

    run(data, STAGE, tmp_path, callback=look)
    record = seen[1]
    assert record["stage"]["optimizer"]["lr"] == 1e-5 and record["model"]["num_layers"] == 3
    assert record["data"]["clips"] == 18 and record["data"]["source"] == str(data)
    (start,) = record["starts"]
    assert start["step"] == 0 and start["command"] and start["versions"]["torch"] == torch.__version__
    assert "commit" in start and record["init"]["path"] is None and len(record["init"]["fingerprint"]) == 16


CHANGES = {
    "lr": lambda describe: describe(replace(STAGE, optimizer=replace(STAGE.optimizer, lr=1e-4))),
    "batch_size": lambda describe: describe(replace(STAGE, batch_size=4)),
    "steps": lambda describe: describe(replace(STAGE, steps=9)),
    "seed": lambda describe: describe(seed=1),
    "init": lambda describe: describe(weights="b" * 16),
    "condition_dropout": lambda describe: describe(
        replace(STAGE, condition_dropout=replace(STAGE.condition_dropout, text=0.5))
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_refused_unless_they_are_named(describe, tmp_path, name):
    write_record(tmp_path, describe(), {"step": 0}, {})
    changed = CHANGES[name](describe)
    with pytest.raises(InputError, match="--allow-change"):
        check_record(tmp_path, changed, ())
    with pytest.raises(InputError):
        check_record(tmp_path, changed, ("model",))
    (difference,) = check_record(tmp_path, changed, (name,)).items()
    write_record(tmp_path, changed, {"step": 2}, dict([difference]))
    stored = read_yaml(tmp_path / "config.yaml")
    assert [start["step"] for start in stored["starts"]] == [0, 2] and difference[0] in stored["starts"][1]["changed"]
    assert check_record(tmp_path, changed, ()) == {}


def test_other_data_is_noticed_and_a_moved_folder_is_not(describe, tmp_path):
    write_record(tmp_path, describe(), {}, {})
    moved = ClipFolder(write_data(tmp_path / "moved"))
    assert check_record(tmp_path, describe(clips=moved), ()) == {}
    fewer = ClipFolder(write_data(tmp_path / "fewer", ((2, 2), (1, 2))))
    with pytest.raises(InputError, match="--allow-change data"):
        check_record(tmp_path, describe(clips=fewer), ())


def test_settings_that_do_not_change_the_result_may_differ(describe, tmp_path):
    constant = replace(STAGE, optimizer=replace(STAGE.optimizer, lr_schedule="constant"))
    write_record(tmp_path, describe(constant), {}, {})
    other = describe(replace(constant, steps=7), logging_steps=3, gradient_checkpointing=True, report_to=())
    assert check_record(tmp_path, other, ()) == {}


def test_puppets_are_described_by_their_values():
    first, same, other = (open_data(f"puppets:n=1,clips={count}", "toy").description for count in (4, 4, 5))
    assert first == same and first["fingerprint"] != other["fingerprint"]


def test_fingerprint_depends_on_the_weights_and_not_on_the_precision():
    model = small_model()
    before = weights_fingerprint(model)
    assert weights_fingerprint(model.to(torch.bfloat16)) == before
    next(model.parameters()).data.view(-1)[0] += 1
    assert weights_fingerprint(model) != before


def test_a_damaged_record_is_named(tmp_path, describe):
    (tmp_path / "config.yaml").write_text("stage: [")
    with pytest.raises(InputError, match=r"config\.yaml"):
        check_record(tmp_path, describe(), ())


def test_two_runs_do_not_share_a_folder(data, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(root=ROOT, folder=tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match="in use"):
            run(data, STAGE, tmp_path)
    finally:
        holder.kill()
        holder.communicate()
    run(data, STAGE, tmp_path)  # a lock ends with its process


def test_files_of_a_run_are_readable_by_the_group(data, tmp_path):
    run(data, STAGE, tmp_path)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert len(modes) > 6 and {name for name, mode in modes.items() if not mode & 0o040} == set()
