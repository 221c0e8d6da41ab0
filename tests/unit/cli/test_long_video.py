"""Videos of several windows: outputs, resuming, regenerating."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bya_core.cli import main as cli
from bya_core.cli.common import ProgressBar
from bya_core.io.media import read_audio, read_video
from bya_core.progress import Progress
from tests.fakes import tone, write_wav
from tests.unit.conftest import make_scene, registered  # noqa: F401 - fixtures

SceneMaker = Callable[..., Path]


@pytest.fixture
def scene(make_scene: SceneMaker, tmp_path: Path, registered: ModuleType) -> Path:  # noqa: F811
    """33 frames (1.3 s of speech, automatic length) in four windows of 9 that overlap by 1."""
    for name in ("ada", "bo"):
        write_wav(tmp_path / "scene" / f"{name}.wav", tone(1.3))
    return make_scene()


def count_frames(path: Path) -> int:
    return len(read_video(path)[0])


def test_long_scene_is_generated_in_windows(scene, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["-o", out / "a.mp4", "--overlay", out / "o.mp4", "--masks", out / "m.npz", "--json", out / "r.json"]
    assert cli.main(["generate", str(scene), *map(str, arguments)]) == 0
    assert {path.name for path in out.iterdir()} == {"a.mp4", "o.mp4", "m.npz", "r.json"}
    assert count_frames(out / "a.mp4") == count_frames(out / "o.mp4") == 33
    sound, rate = read_audio(out / "a.mp4")
    assert sound.shape[1] / rate == pytest.approx(33 / 25, abs=0.1)
    assert np.load(out / "m.npz")["masks"].shape == (2, 9, 4, 6)
    report = json.loads((out / "r.json").read_text())
    assert [row["frames"] for row in report["windows"]] == [[0, 9], [8, 17], [16, 25], [24, 33]]
    assert not any("cut" in warning for warning in report["warnings"])


def test_interrupted_run_is_resumed(scene, tmp_path, monkeypatch, capsys):
    command = ["generate", str(scene), "-o", str(tmp_path / "a.mp4")]

    def interrupt(bar: ProgressBar, progress: Progress) -> None:
        if progress.stage.startswith("Window 3/4"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "__call__", interrupt)
        assert cli.main(command) == cli.STOPPED
    assert f"2 finished windows kept in {tmp_path / 'a.windows'}" in capsys.readouterr().err
    assert not (tmp_path / "a.mp4").exists()
    assert cli.main(command) == 0
    printed = capsys.readouterr().err
    assert "Window 3/4" in printed and "Window 2/4" not in printed
    assert count_frames(tmp_path / "a.mp4") == 33 and not (tmp_path / "a.windows").exists()


def test_window_is_regenerated(scene, tmp_path, capsys):
    work, report = tmp_path / "work", tmp_path / "r.json"
    command = ["generate", str(scene), "-o", str(tmp_path / "a.mp4"), "--work-dir", str(work), "--json", str(report)]
    assert cli.main(command) == 0
    first = (tmp_path / "a.mp4").read_bytes()
    assert len(list(work.glob("window_*"))) == 4
    assert cli.main([*command, "--regenerate", "2"]) == 0
    windows = json.loads(report.read_text())["windows"]
    assert [row["generated"] for row in windows] == [False, True, False, False]
    assert (tmp_path / "a.mp4").read_bytes() != first
    capsys.readouterr()
    assert cli.main([*command, "--regenerate", "5"]) == cli.BAD_INPUT
    assert "from 1 to 4" in capsys.readouterr().err
    assert cli.main([*command[:4], "--regenerate", "1"]) == cli.BAD_INPUT
    assert "an existing window" in capsys.readouterr().err and not (tmp_path / "a.windows").exists()
    assert cli.main([*command, "--seed", "9"]) == cli.BAD_INPUT
    assert "another scene" in capsys.readouterr().err
