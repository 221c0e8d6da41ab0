"""`generate` started by torchrun: one video, written once, and plain words where the number of processes is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bya_core.cli.main import main
from bya_core.cli.processes import distribute_guidance
from bya_core.config import SamplingConfig
from bya_core.errors import InputError
from bya_core.io.media import read_video
from tests.unit.sampling.test_cfg_parallel import ROOT, torchrun

SCENE = str(ROOT / "demo" / "scene.json")


def processes(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """As if a launcher had started so many."""
    told = {"RANK": "0", "WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    given = ["generate", SCENE, "--steps", "2"]
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    assert main([*given, "-o", str(one / "a.mp4"), "--masks", str(one / "a.npz")]) == 0
    done = torchrun(2, "-m", "bya_core", *given, "-o", str(two / "a.mp4"), "--masks", str(two / "a.npz"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert sorted(file.name for file in two.iterdir()) == ["a.mp4", "a.npz"]
    assert done.stdout.count("Saved") == 2 and done.stderr.count("Decoding") == 1
    frames = [read_video(folder / "a.mp4")[0].float() for folder in (one, two)]
    # what differs in the last digits, the video format makes more of
    assert frames[0].shape == frames[1].shape and (frames[0] - frames[1]).abs().mean() < 3
    masks = [np.load(folder / "a.npz") for folder in (one, two)]
    assert np.allclose(masks[0]["masks"], masks[1]["masks"], atol=1e-3)


@pytest.mark.parametrize(
    ("count", "text", "speech", "sentence"),
    [
        (3, 7.0, 7.0, "3 processes for guidance with 2 branches; expected 2 processes, or one"),
        (2, 7.0, 5.0, "2 processes for guidance with 3 branches; expected 3 processes, or one"),
        (2, 1.0, 1.0, "2 processes for guidance with 1 branch; expected one process"),
    ],
)
def test_a_number_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, count: int, text: float, speech: float, sentence: str
) -> None:
    processes(monkeypatch, count)
    with pytest.raises(InputError, match=sentence):
        distribute_guidance(SamplingConfig(guidance_scale=text, audio_guidance_scale=speech), None)  # type: ignore[arg-type]


def test_other_commands_run_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    processes(monkeypatch, 2)
    assert main(["probe", SCENE, "-o", "state.safetensors"]) == 2
    assert (
        capsys.readouterr().err == "error: 2 processes; expected one, except for generate; start it without torchrun.\n"
    )
