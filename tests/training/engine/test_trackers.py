"""Metrics and experiment trackers."""

from __future__ import annotations

import errno
from contextlib import closing
from dataclasses import replace

import pytest
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType

from bya_core.errors import InputError
from tests.training.run_parts import lines, run
from training.engine.distributed import build_accelerator
from training.engine.settings import RunSettings
from training.engine.stages import PUBLISHED
from training.engine.trackers import MetricLog


@pytest.fixture
def open_log(tmp_path):
    """Opens the log of a run in `tmp_path`."""

    def build(step=0, report_to=(), **options):
        return closing(
            MetricLog(tmp_path, build_accelerator(RunSettings(tmp_path, report_to=report_to)), step, **options)
        )

    yield build
    AcceleratorState._reset_state(reset_partial_state=True)


def test_log_and_tensorboard_have_every_step_once(data, tmp_path, caplog, open_log):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    caplog.set_level("INFO")
    for steps in (6, 9):
        stage = replace(PUBLISHED[1], batch_size=3, steps=steps)
        run(data, stage, tmp_path, report_to=("tensorboard",), allow_change=("steps",))
    assert {"loss", "lr", "samples_per_second", "minutes_left", "skipped"} <= lines(tmp_path)[2].keys()
    assert "samples_per_second" in caplog.text and "remaining" in caplog.text
    board = EventAccumulator(str(tmp_path / "tensorboard" / "bind-your-avatar")).Reload()
    assert [point.step for point in board.Scalars("train/diffusion")] == list(range(1, 10))
    config = board.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "batch_size: 3" in config and "fingerprint" in config


def test_entries_after_the_last_checkpoint_are_removed_on_resume(tmp_path, open_log):
    with open_log() as log:
        for step in (1, 2, 3):
            log.log({"loss": float(step)}, step)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # truncated by a kill
    with open_log(2) as log:
        log.log({"loss": 9.0}, 3)
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 9.0)]


class FullDisk:
    """A tracker that cannot write."""

    name = "tensorboard"

    def log(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    finish = log


def test_trackers_on_a_full_disk_end_the_run_with_one_sentence(tmp_path, open_log, caplog):
    with pytest.raises(InputError, match="No space left on device.*resume the run"), open_log() as log:
        log.accelerator.trackers = [FullDisk()]
        log.log({"loss": 1.0}, 1)
    assert "could not write its last entries" in caplog.text


class FakeWandb(GeneralTracker):
    """Records how accelerate uses the W&B tracker."""

    name, requires_logging_directory, main_process_only, started = "wandb", False, False, []
    tracker = None

    def __init__(self, project, **kwargs):
        super().__init__(_blank=True)
        self.values = []
        self.started.append((project, kwargs, self))

    def start(self):
        pass

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        self.values.append((step, values))

    def finish(self):
        pass


def test_wandb_gets_the_metrics_and_resumes_the_same_run(monkeypatch, open_log):
    monkeypatch.setattr("training.engine.trackers.is_wandb_available", lambda: True)
    monkeypatch.setattr("accelerate.tracking.is_wandb_available", lambda: True)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", FakeWandb)
    for _ in range(2):
        with open_log(report_to=("wandb",), project="mine", config={"lr": 0.1}) as log:
            log.log({"loss": 1.0}, 1)
        AcceleratorState._reset_state(reset_partial_state=True)
    (project, first, tracker), (_, second, _) = FakeWandb.started
    assert project == "mine" and first["resume"] == "allow" and first["id"] == second["id"]
    assert tracker.values == [(1, {"train/loss": 1.0})] and tracker.config == {"lr": 0.1}


def test_missing_tracker_raises(monkeypatch, open_log):
    monkeypatch.setattr("training.engine.trackers.is_wandb_available", lambda: False)
    with pytest.raises(InputError, match="pip install wandb"):
        open_log(report_to=("wandb",))
