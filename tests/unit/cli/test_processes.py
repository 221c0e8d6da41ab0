"""`bya generate` with torchrun."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bya_core.cli.generate import Generate, TakeOptions, WindowOptions
from bya_core.cli.main import main
from bya_core.cli.processes import _redirected, distribute_guidance
from bya_core.config import SamplingConfig
from bya_core.errors import InputError
from bya_core.io.media import read_video
from tests.unit.sampling.test_cfg_parallel import ROOT, torchrun

SCENE = str(ROOT / "demo" / "scene.json")


def processes(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    environment = {"RANK": "0", "WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_two_processes_give_the_same_video(tmp_path):
    command = ["generate", SCENE, "--steps", "2"]
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    assert main([*command, "-o", str(one / "a.mp4"), "--masks", str(one / "a.npz")]) == 0
    done = torchrun(2, "-m", "bya_core", *command, "-o", str(two / "a.mp4"), "--masks", str(two / "a.npz"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert sorted(file.name for file in two.iterdir()) == ["a.mp4", "a.npz"]
    assert done.stdout.count("Saved") == 2 and done.stderr.count("Decoding") == 1
    frames = [read_video(folder / "a.mp4")[0].float() for folder in (one, two)]
    # compression amplifies rounding differences
    assert frames[0].shape == frames[1].shape and (frames[0] - frames[1]).abs().mean() < 3
    masks = [np.load(folder / "a.npz") for folder in (one, two)]
    assert np.allclose(masks[0]["masks"], masks[1]["masks"], atol=1e-3)


def test_other_processes_write_elsewhere(tmp_path):
    command, folder = Generate(Path(SCENE), tmp_path / "a.mp4"), tmp_path / "other"
    (tmp_path / "a.windows").mkdir()
    (tmp_path / "a.windows" / "window_0001.safetensors").touch()
    redirected = _redirected(command, folder)
    assert redirected.output == folder / "a.mp4" and redirected.long_video.work_dir == folder / "windows"
    assert [path.name for path in (folder / "windows").iterdir()] == ["window_0001.safetensors"]
    takes = _redirected(replace(command, best_take=TakeOptions(2)), folder)
    assert takes.output == folder / "a.mp4" and takes.long_video == WindowOptions()  # --work-dir would be refused


@pytest.mark.parametrize(
    ("count", "text", "speech", "sentence"),
    [
        (3, 7.0, 7.0, "3 processes for guidance with 2 branches; expected 2 processes, or one"),
        (2, 7.0, 5.0, "2 processes for guidance with 3 branches; expected 3 processes, or one"),
        (2, 1.0, 1.0, "2 processes for guidance with 1 branch; expected one process"),
    ],
)
def test_wrong_number_of_processes_raises(monkeypatch, count, text, speech, sentence):
    processes(monkeypatch, count)
    with pytest.raises(InputError, match=sentence):
        distribute_guidance(SamplingConfig(guidance_scale=text, audio_guidance_scale=speech), None)  # type: ignore[arg-type]


def test_other_commands_need_one_process(monkeypatch, capsys):
    processes(monkeypatch, 2)
    assert main(["probe", SCENE, "-o", "state.safetensors"]) == 2
    assert "2 processes; expected one" in capsys.readouterr().err
