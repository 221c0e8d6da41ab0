"""Shards and index of complete runs, and resuming."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from bya_core.errors import InputError
from tests.training.curation.conftest import outcome
from training.curate import CurateOptions, curate
from training.curation.output import read_index
from training.curation.store import Store
from training.data.shards.reader import read_shards


def test_index_and_stats(reference):
    _, stats, (shards, rows) = reference
    assert sorted(shards) == ["clips-000000.tar", "clips-000001.tar"]
    kept = [row for row in rows if row["kept"]]
    assert len(kept) == 3 and stats.clips == 3 and {row["level"] for row in kept} == {"clip"}
    assert [row["shard"] for row in kept] == ["clips-000000.tar"] * 2 + ["clips-000001.tar"]
    rejected = {(row["name"], row["stage"]) for row in rows if not row["kept"]}
    assert rejected == {("a film.mp4", "segments"), ("ein zweiter Film äöü.mp4", "segments")}
    line = stats.line()
    assert "2/2 files  3 clips" in line and "clips/s" in line and "segments 3/2" in line and "captions 3/0" in line


def test_shards(reference):
    out, _, (_, rows) = reference
    samples = list(read_shards(out))
    assert [s.key for s in samples] == [row["key"] for row in rows if row["kept"]]
    for sample in samples:
        frames = len(sample.frames)
        assert sample.frames.shape[1:] == (64, 96, 3) and frames in (17, 33) and sample.fps == 25
        assert sample.masks.shape == (2, frames, 64, 96) and sample.speeches.shape == (2, frames * 640)
        assert sample.speech_features.shape[:2] == (2, frames + 4) and sample.portraits[0].shape == (48, 48, 3)
        assert sample.matrix.tolist() == [[1, 0], [0, 1]] and "puppet" in sample.caption
        assert sample.measured["puppet_models"] and sample.measured["sync_mean"] > 0.5
        boxes = np.array(sample.measured["boxes"])
        assert boxes.shape == (2, frames, 4) and (boxes[..., 2] > boxes[..., 0]).all()


class Interrupted(BaseException):
    """Raised in place of a kill."""


def test_resume_after_interruptions(reference, footage, tmp_path, monkeypatch):
    """Interrupt after every fourth result, and while writing a shard."""
    from training.curation import output

    put, write, results, interruptions = Store.put, output.write_shard, [0], 0

    def interrupting_put(self, *args):
        results[0] += 1
        if results[0] % 4 == 0:
            raise Interrupted
        return put(self, *args)

    monkeypatch.setattr(Store, "put", interrupting_put)
    monkeypatch.setattr(output, "write_shard", lambda *args: (_ for _ in ()).throw(Interrupted))
    while True:
        try:
            curate(CurateOptions(footage.folder, tmp_path / "out", footage.config, workers=0, resume=True))
            break
        except Interrupted:
            interruptions += 1
            if interruptions > 8:
                monkeypatch.setattr(output, "write_shard", write)
            assert interruptions < 40
    assert interruptions > 9
    assert outcome(tmp_path / "out") == reference[2]


def test_resume_of_a_finished_run(reference, footage, monkeypatch):
    out, _, expected = reference
    written = []
    monkeypatch.setattr("training.curation.output.write_shard", lambda *args: written.append(args))
    monkeypatch.setattr(Store, "put", lambda *args: pytest.fail("a stage was run again"))
    with pytest.raises(InputError, match="not empty"):
        curate(CurateOptions(footage.folder, out, footage.config, workers=0))
    curate(CurateOptions(footage.folder, out, footage.config, workers=0, resume=True))
    assert not written and outcome(out) == expected


def test_changed_settings_rerun_later_stages(reference, footage, tmp_path, monkeypatch):
    shutil.copytree(reference[0], tmp_path / "out")
    changed = tmp_path / "curation.yaml"
    changed.write_text(footage.config.read_text().replace("min_confidence: 0.5", "min_confidence: 99.0"))
    put, stages = Store.put, set()

    def recording_put(self, stage, *args):
        stages.add(stage)
        return put(self, stage, *args)

    monkeypatch.setattr(Store, "put", recording_put)
    curate(CurateOptions(footage.folder, tmp_path / "out", changed, workers=0, resume=True))
    assert stages == {"sync"} and not any(row["kept"] for row in read_index(tmp_path / "out" / "index.parquet"))
    assert not list((tmp_path / "out").glob("*.tar"))  # shards of the earlier settings are deleted
