"""`bya speakers`: its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bya_core.cli.main as cli
import bya_core.evaluation.speakers as speakers
from bya_core.evaluation.speakers import Speakers
from bya_core.scene.timeline import Turn, read_timeline

NOTHING = np.zeros((1, 25), dtype=bool)
FOUND = Speakers(("face 1",), (Turn("face 1", 0.2, 0.9),), NOTHING, NOTHING * 1.0, NOTHING[0])


@pytest.mark.parametrize("scene", ["turns.json", "folder/../turns.json", "link.json"])
def test_two_outputs_in_one_file(tmp_path: Path, scene: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "film.mp4").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "turns.json").write_text("[]")
    (tmp_path / "link.json").symlink_to("turns.json")
    options = ["-o", str(tmp_path / "turns.json"), "--save-scene", str(tmp_path / scene)]
    assert cli.main(["speakers", str(tmp_path / "film.mp4"), *options]) == 2
    assert "a separate file for each output" in capsys.readouterr().err
    assert (tmp_path / "turns.json").read_text() == "[]"


def test_film_with_an_undecodable_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = f"{tmp_path}/b\udcff.mp4"
    Path(film).touch()
    monkeypatch.setattr(speakers, "find_speakers_in", lambda *_: FOUND)
    assert cli.main(["speakers", film, "-o", str(tmp_path / "turns.rttm")]) == 0
    (turn,) = read_timeline(tmp_path / "turns.rttm")
    assert (turn.start, turn.end) == pytest.approx((0.2, 0.9))
