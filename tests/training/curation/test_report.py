"""Report and clips for manual review."""

from __future__ import annotations

import os
import re

import av

from training.curate import CurateOptions, curate


def test_report_and_audit(reference, footage, tmp_path):
    out, report = reference[0], tmp_path / "report.html"
    curate(CurateOptions(footage.folder, out, footage.config, workers=0, resume=True, report=report, audit=2))
    page = report.read_text()
    assert "Puppet-only models were used" in page and page.count("data:image/jpeg;base64,") == 3
    assert re.search(r"<td>segments<td>5<td>3<td>2", page) and "exactly 2 characters" in page
    assert "data:image/png;base64," in page and "http" not in page and "<script" not in page
    exported = sorted((out / "audit").glob("*.mp4"))
    assert len(exported) == 2 and "number of people correct: ?" in exported[0].with_suffix(".txt").read_text()
    with av.open(os.fspath(exported[0])) as video:
        assert video.streams.audio and video.streams.video
