"""Runs whose processes are killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.curation.conftest import outcome
from training.curation.output import OutputLayout

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_resume_after_killed_processes(reference, footage, tmp_path):
    """Kill the run twice and one of its workers once, then resume."""
    pytest.importorskip("pebble")
    psutil = pytest.importorskip("psutil")
    out = tmp_path / "out"
    command = [
        sys.executable, str(ROOT / "training" / "curate.py"), "--input", str(footage.folder), "--output", str(out),
        "--config", str(footage.config), "--workers", "2", "--resume",
    ]  # fmt: skip

    def count() -> int:
        return len(list(OutputLayout(out).store.glob("*/*/*.json")))

    for results in (4, 12):
        run = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
        wait_until(lambda results=results: count() >= results, run)
        run.kill()
        run.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    done = count()
    run = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: count() > done, run)
    workers = [p for p in psutil.Process(run.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    workers[-1].kill()
    _, messages = run.communicate(timeout=600)
    assert run.returncode == 0, messages
    assert outcome(out) == reference[2]
    assert "a worker crashed" in messages or "3 clips" in messages


def wait_until(condition, run, timeout: float = 600.0) -> None:
    end = time.monotonic() + timeout
    while not condition() and run.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.05)
