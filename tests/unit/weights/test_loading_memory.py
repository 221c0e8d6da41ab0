"""Loading released files holds hardly more of the host's memory than the largest of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from /proc")
def test_peak_memory_stays_below_the_largest_file(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/loading_memory.py", "--folder", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    report = json.loads(said)
    assert report["files_gb"] > 1.5 and report["times_the_largest_file"] < 1.2, report
