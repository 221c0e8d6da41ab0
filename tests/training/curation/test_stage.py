"""Caching and errors of stages."""

from __future__ import annotations

import re

import numpy as np
import pytest

from training.curate import CurateOptions, curate
from training.curation.output import OutputLayout
from training.curation.pipeline import STAGE_NAMES
from training.curation.record import Record
from training.curation.speech import MatrixSettings
from training.curation.stage import MissingRequirements, Stage, result_key, run_stage
from training.curation.stats import stage_costs
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


def test_everything_missing_is_one_list_before_the_run(tmp_path, footage):
    path = tmp_path / "c.yaml"
    text = footage.config.read_text()
    for old, new in {
        "masks: {segmenter: puppet,": "masks: {segmenter: {name: sam2, options: {weights: /nowhere}},",
        "sync: {scorer: puppet,": "sync: {scorer: {name: syncnet, options: {weights: /nowhere/syncnet}},",
        "captions: {captioner: puppet}": "captions: {captioner: qwen2vl}",
    }.items():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    with pytest.raises(MissingRequirements) as error:
        curate(CurateOptions(footage.folder, tmp_path / "out", path, workers=0))
    message = str(error.value)
    for part in ("sync.scorer syncnet", "masks.segmenter sam2", "captions.captioner qwen2vl"):
        assert message.count(part) == 1
    assert len(error.value.problems) == 3 and not OutputLayout(tmp_path / "out").store.exists()
    path.write_text(text.replace("faces:", "until: faces\nfaces:"))  # none of them is needed
    stats = curate(CurateOptions(footage.folder, tmp_path / "out", path, workers=0))
    assert stats.kept["faces"] == 5 and not list((tmp_path / "out").glob("*.tar"))
    assert OutputLayout(tmp_path / "out").index.is_file()
    store = OutputLayout(tmp_path / "out").store
    summary = "\n".join(stats.summary({"faces": "detector puppet"}, STAGE_NAMES, store))
    seconds = re.search(r"faces \(detector puppet\): 5 kept, 0 rejected, ([\d.]+) s", summary)
    assert seconds and float(seconds[1]) == pytest.approx(stage_costs(store, ["faces"])["faces"][3], abs=0.06)
    assert "sync: not run (until: faces)" in summary
