"""No file stops a run: each is worked on or rejected with a reason."""

from __future__ import annotations

import re

import pytest

from tests.training.curation.hostile import KEPT, make_hostile
from training.curate import Arguments, curate
from training.curation.index import read_index

REJECTED = 30


def test_hostile_files_are_rejected_with_a_reason_and_sound_ones_are_worked_on(tmp_path, small):
    verdicts = make_hostile(tmp_path / "in")
    text = small.config.read_text().replace("shorter_side: 64", "shorter_side: 64, most_seconds: 3600.0")
    (tmp_path / "curation.yaml").write_text(text)
    curate(Arguments(tmp_path / "in", tmp_path / "out", tmp_path / "curation.yaml", workers=0))
    rows = read_index(tmp_path / "out" / "index.parquet")
    told = {name: [row for row in rows if row["name"] == name] for name in verdicts}
    wrong = {
        name: [row["reason"] for row in told[name]] or "nothing is told"
        for name, reason in verdicts.items()
        if not told[name] or not all(re.search(reason, row["reason"] or "") for row in told[name])
    }
    assert not wrong, "\n".join(f"{name}: {reasons}" for name, reasons in wrong.items())
    assert not any(row["broken"] for row in rows)
    assert set(told) == {row["name"] for row in rows}
    early = [name for name, reason in verdicts.items() if reason != KEPT]
    assert len(early) >= REJECTED, len(early)


def test_a_turned_film_is_measured_upright(tmp_path):
    from tests.training.curation.hostile import video
    from training.curation import footage
    from training.curation.facts import look

    for angle, size in ((0, (128, 96)), (90, (96, 128)), (180, (128, 96)), (270, (96, 128))):
        facts = look(str(video(tmp_path / f"{angle}.mp4", rotation=angle)))
        assert (facts.width, facts.height) == size
        assert footage.still(str(tmp_path / f"{angle}.mp4"), 3).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("fps", [23.976, 25, 29.97, 50])
def test_frames_of_any_rate_come_at_their_time(tmp_path, fps):
    """Frame k of the common time line is the last picture at or before k / 25, also when read from the middle."""
    import numpy as np

    from tests.training.curation.hostile import video
    from training.curation.footage import on_time_line

    path = str(video(tmp_path / "x.mp4", frames=90, fps=fps))
    whole = [picture.time for _, picture in on_time_line(path, 0, 40)]
    wanted = np.floor((np.arange(40) / 25 + 1e-3) * fps + 1e-6) / fps  # a millisecond early is in time
    np.testing.assert_allclose(whole, wanted, atol=2e-3)
    middle = [picture.time for _, picture in on_time_line(path, 23, 31)]
    np.testing.assert_allclose(middle, whole[23:31], atol=1e-9)
