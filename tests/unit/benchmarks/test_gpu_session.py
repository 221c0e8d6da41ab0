"""The prepared GPU session: limits, results after each part."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks import gpu_session
from benchmarks.gpu_session import PARTS, Part, main


def test_results_are_kept_after_each_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def part(name: str, code: str, limit: int = 60) -> Part:
        return Part(name, (sys.executable, "-c", code), (), limit)

    written = "import json; print([r['name'] for r in json.load(open(r'{output}/results.json'))])"
    parts = (part("good", "print('fine')"), part("slow", "import time; time.sleep(60)", 1), part("last", written))
    monkeypatch.setattr(gpu_session, "PARTS", parts)
    assert main(Namespace(output=tmp_path / "out", only=None, small=False)) == 1
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(result["name"], result["exit_code"]) for result in results] == [("good", 0), ("slow", None), ("last", 0)]
    assert (tmp_path / "out" / "good.txt").read_text() == "fine\n"
    assert "['good', 'slow']" in (tmp_path / "out" / "last.txt").read_text()


def test_session_is_short() -> None:
    assert sum(part.limit for part in PARTS) <= 10 * 60
