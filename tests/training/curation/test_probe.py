"""Malformed files do not stop a run: each file is processed or rejected with a reason."""

from __future__ import annotations

import re

import pytest

from tests.training.curation.hostile import VALID, make_hostile, video
from training.curate import CurateOptions, curate
from training.curation.footage import read_frame
from training.curation.output import read_index
from training.curation.probe import inspect_file


def test_malformed_files(tmp_path, footage):
    reasons = make_hostile(tmp_path / "in")
    text = footage.config.read_text().replace("min_side: 64", "min_side: 64, max_seconds: 3600.0")
    (tmp_path / "curation.yaml").write_text(text)
    curate(CurateOptions(tmp_path / "in", tmp_path / "out", tmp_path / "curation.yaml", workers=0))
    rows = read_index(tmp_path / "out" / "index.parquet")
    assert {row["name"] for row in rows} == set(reasons)
    wrong = [(row["name"], row["reason"]) for row in rows if not re.search(reasons[row["name"]], row["reason"] or "")]
    assert not wrong, wrong
    assert not any(row["failed"] for row in rows)
    assert sum(reason != VALID for reason in reasons.values()) >= 30


@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_rotated_videos(tmp_path, angle):
    path = str(video(tmp_path / "x.mp4", rotation=angle))
    info, size = inspect_file(path), (96, 128) if angle % 180 else (128, 96)
    assert (info.width, info.height) == size and read_frame(path, 3).shape == (size[1], size[0], 3)
