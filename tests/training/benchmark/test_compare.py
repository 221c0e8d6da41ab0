"""Two reports in one table, with differences and their standard errors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bya_core.errors import InputError
from training.benchmark.compare import compare_reports
from training.benchmark.suites import EvaluateOptions
from training.evaluate import main


def write(path, model, values, **changes):
    report = {
        "suite": "puppets",
        "model": model,
        "generated": {"identity": float(np.mean(values)), "binding": {"judged": 4}},
        "settings": {"seed_base": 1, "scenes": len(values), "transformer_sha256": model, "points": [1, 2]},
        "scenes": [{"seed": k, "iou": v, "right": [True, v > 0.5], "note": "x"} for k, v in enumerate(values)],
        **changes,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report))
    return path


def test_differences_and_standard_errors_are_those_of_paired_scenes(tmp_path, capsys):
    a, b = [0.2, 0.4, 0.9], [0.3, 0.7, 0.8, 0.1]
    write(tmp_path / "a/results.json", "before", a)
    write(tmp_path / "b/results.json", "after", b)
    main(EvaluateOptions(compare=(tmp_path / "a", tmp_path / "b"), output=tmp_path / "c"))
    difference = np.array(b[:3]) - np.array(a)
    stored = json.loads((tmp_path / "c/results.json").read_text())["metrics"]
    paired = stored["iou (scenes)"]
    assert paired["difference"] == pytest.approx(difference.mean()) and paired["count"] == 3
    assert paired["error"] == pytest.approx(difference.std(ddof=1) / np.sqrt(3))
    assert stored["right (scenes)"]["first"] == pytest.approx(4 / 6)
    assert stored["generated.identity"]["difference"] == pytest.approx(np.mean(b) - np.mean(a))
    assert stored["generated.identity"]["error"] is None
    table = (tmp_path / "c/table.md").read_text()
    assert table.startswith("| metric | before | after |") and table in capsys.readouterr().out + "\n"


def test_reports_that_cannot_be_compared_are_refused(tmp_path):
    a = write(tmp_path / "a.json", "a", [0.5])
    for changes in ({"suite": "routers"}, {"settings": {"seed_base": 2, "points": [1, 2]}}, {"suite": 3}):
        with pytest.raises(InputError):
            compare_reports(a, write(tmp_path / "b.json", "b", [0.5], **changes))
    with pytest.raises(InputError, match="no report"):
        compare_reports(a, tmp_path / "gone.json")
