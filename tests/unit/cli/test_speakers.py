"""`bya speakers`: its files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import bya_core.cli.main as cli
import bya_core.evaluation.speakers as speakers
from bya_core.encoders.face.tracking import FaceTrack
from bya_core.evaluation.speakers import Speakers
from bya_core.io.audio import Recording
from bya_core.io.video import Video
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


def test_character_who_is_not_in_the_film(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = Video(torch.zeros(4, 32, 32, 3, dtype=torch.uint8), 25.0, torch.arange(4), 4)
    face = FaceTrack(np.zeros((4, 4)), np.ones(4), np.zeros((4, 468, 3)), np.ones(4))
    scene = SimpleNamespace(characters=[SimpleNamespace(name="Ada", image="ada.png")])
    monkeypatch.setattr(speakers, "read_recording", lambda *_: Recording(torch.zeros(1, 2560), 16_000, 0.0, 0.16))
    monkeypatch.setattr(speakers, "read_frames", lambda *_: frames)
    monkeypatch.setattr(speakers, "track_faces", lambda *_: [face])
    monkeypatch.setattr(speakers, "read_scene_file", lambda *_: scene)
    monkeypatch.setattr(speakers, "read_image", lambda *_: torch.zeros(3, 8, 8))
    monkeypatch.setattr(speakers, "cast_faces", lambda *_: ([[]], None, ("Ada is not found",)))
    tracks: list[FaceTrack] = []

    def found(given: list[FaceTrack], *_: object, **__: object) -> Speakers:
        tracks.extend(given)
        return FOUND

    monkeypatch.setattr(speakers, "find_speakers", found)
    result = speakers.find_speakers_in(Path("film.mp4"), Path("scene.json"), SimpleNamespace(mesh=None, lip_sync=None))  # type: ignore[arg-type]
    assert not tracks[0].visible.any() and tracks[1].visible.all() and "Ada is not found" in result.notices
