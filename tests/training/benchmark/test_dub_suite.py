"""The dub suite: figures from rows, and the scene of a film."""

from __future__ import annotations

import numpy as np

from training.benchmark.dub_suite import aggregate, dub_table

ROW = {
    "characters": 2,
    "judged": True,
    "bound": True,
    "correlation": [0.9, 0.1, 0.3],
    "identity": True,
    "outside": 0,
    "kept": 0.0,
    "kept by the codec": 5.0,
}


def test_figures_over_films() -> None:
    rows = [ROW, ROW | {"bound": False, "kept": 2.0}, ROW | {"judged": False, "bound": False, "kept": 9.0}]
    found = aggregate([*rows, ROW | {"characters": 1, "kept": None, "outside": 3}])
    assert found["films"] == 4 and found["outside"] == 3
    assert found["bound"] == np.round(2 / 3, 4), "films that cannot be judged do not count"
    assert found["best other voice"] == 0.3 and found["own voice"] == 0.9
    assert found["kept"] == np.round(2 / 3, 4) and found["kept exactly"] == np.round(1 / 3, 4)


def test_table_without_others() -> None:
    alone = aggregate([ROW | {"characters": 1, "kept": None}])
    text = dub_table({"by characters": {"1": alone}, "all": alone, "required": {"bound": 0.9}})
    assert "| 1 character | 1 | 1.000 |" in text and "| - |" in text
