"""Caching and errors of stages."""

from __future__ import annotations

import numpy as np
import pytest

from bya_core.errors import InputError
from training.curate import CurateOptions, curate
from training.curation.output import OutputLayout
from training.curation.record import Record
from training.curation.speech import MatrixSettings
from training.curation.stage import Stage, result_key, run_stage
from training.curation.store import Store, StoreError


class Doubling(Stage):
    """Returns two records and counts its calls."""

    name = "doubling"

    def __init__(self):
        super().__init__(MatrixSettings())
        self.calls = 0

    def __call__(self, record):
        self.calls += 1
        if record.data.get("bad"):
            raise ZeroDivisionError("no")
        return [record.with_data(half=n).with_arrays(values=np.arange(3)) for n in range(2)]


def test_results_are_cached_by_content_version_and_settings(tmp_path):
    stage, store = Doubling(), Store(tmp_path)
    first = run_stage(stage, Record("a", "a", lineage="x"), store)
    again = run_stage(stage, Record("moved/a", "moved", lineage="x"), store)
    assert stage.calls == 1 and [r.lineage for r in first] == [r.lineage for r in again]
    assert again[1].source == "moved/a" and again[1].array("values").tolist() == [0, 1, 2]
    assert result_key(stage, first[0]) != result_key(stage, first[1])
    for name, value in (("version", 2), ("settings", MatrixSettings(margin=2.0))):
        setattr(stage, name, value)
        run_stage(stage, Record("a", "a", lineage="x"), store)
    run_stage(stage, Record("b", "b", lineage="y"), store)
    assert stage.calls == 4


def test_errors_of_stages(tmp_path):
    stage, store = Doubling(), Store(tmp_path / "store")
    for calls in (1, 2):  # not cached
        (failed,) = run_stage(stage, Record("a", "a", lineage="x", data={"bad": True}), store)
        assert failed.failed and "ZeroDivisionError in doubling" in failed.rejected and stage.calls == calls
    (tmp_path / "doubling").write_text("not a folder")
    with pytest.raises(StoreError):
        run_stage(stage, Record("a", "a", lineage="x"), Store(tmp_path))


def test_missing_models_raise_before_the_run(tmp_path, footage):
    path = tmp_path / "c.yaml"
    path.write_text(footage.config.read_text().replace("masks: {segmenter: puppet,", "masks: {segmenter: sam2,"))
    with pytest.raises(InputError, match="SAM 2"):
        curate(CurateOptions(footage.folder, tmp_path / "out", path, workers=0))
    assert not OutputLayout(tmp_path / "out").store.exists()
