"""Commands that are interrupted or killed: what is left in the folder, and what the next run does."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bya_core.weights.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals"),
    pytest.mark.skipif(not MODELS["toy"].available, reason="the weights of the toy model are missing"),
    pytest.mark.slow,
]
TERMINATING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OUTPUTS = ["-o", "talk.mp4", "--overlay", "masks.mp4", "--masks", "masks.npz", "--json", "report.json"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a short and a long scene, and an earlier result."""
    for file in DEMO.glob("*.*"):
        if file.suffix in (".png", ".wav"):
            shutil.copy(file, tmp_path)
    scene = json.loads((DEMO / "scene.json").read_text())
    (tmp_path / "scene.json").write_text(json.dumps(scene | {"length": 5, "steps": 1}))
    windows = {"frames": 9, "overlap": 1}
    (tmp_path / "long.json").write_text(json.dumps(scene | {"length": 41, "steps": 1, "windows": windows}))
    (tmp_path / "talk.mp4").write_text("earlier")
    (tmp_path / "tmp").mkdir()
    return tmp_path


# The command with a second between writing a file and putting it in place, in which a test sends its signal.
SLOWED = """
import os, runpy, time
sync = os.fsync
os.fsync = lambda file: (time.sleep(1), sync(file))
runpy.run_module("bya_core", run_name="__main__", alter_sys=True)
"""


def start(folder: Path, *arguments: str, slowed: bool = False, **options: Any) -> subprocess.Popen[str]:
    def as_in_a_terminal() -> None:  # background processes ignore SIGINT, and those of nohup SIGHUP
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")}
    command = [sys.executable, *(["-c", SLOWED] if slowed else ["-m", "bya_core"]), *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, preexec_fn=as_in_a_terminal, **options,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], text: str) -> str:
    """Read stderr up to a text."""
    assert process.stderr is not None
    printed = ""
    while text not in printed:
        letter = process.stderr.read(1)
        assert letter, printed
        printed += letter
    return printed


def wait_for_file(folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until an unfinished file exists."""
    limit = time.monotonic() + 300
    while True:
        try:
            if list(folder.glob(".bya-*.part/[0-9]*")):
                return
        except FileNotFoundError:  # the folder was removed meanwhile
            pass
        assert process.poll() is None and time.monotonic() < limit, process.communicate()
        time.sleep(0.002)


def contents(folder: Path) -> set[str]:
    paths = [path for path in folder.rglob("*") if "torchinductor" not in str(path)]
    return {str(path.relative_to(folder)) for path in paths}


@pytest.mark.parametrize("number", TERMINATING)
@pytest.mark.parametrize("moment", ["Denoising", "Saving", "file"])
def test_interrupted_generation_leaves_nothing(number: signal.Signals, moment: str, folder: Path) -> None:
    before = contents(folder)
    process = start(folder, "generate", "scene.json", *OUTPUTS, slowed=moment == "file")
    if moment == "file":
        wait_for_file(folder, process)
    else:
        wait_for(process, moment)
    process.send_signal(number)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130 and "Cancelled" in error and "Traceback" not in error
    assert contents(folder) == before and (folder / "talk.mp4").read_text() == "earlier"


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "scene.json", *OUTPUTS],
        ["convert", "toy", "-o", "toy.safetensors"],
        ["report", "video.mp4", "--scene", "scene.json", "-o", "report.png"],
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_while_writing(number: signal.Signals, arguments: list[str], folder: Path) -> None:
    if arguments[0] == "report":
        assert start(folder, "generate", "scene.json", "-o", "video.mp4").wait(300) == 0
    before = contents(folder)
    process = start(folder, *arguments, slowed=True)
    wait_for_file(folder, process)
    process.send_signal(number)
    process.communicate(timeout=300)
    if number == signal.SIGKILL:
        assert len([name for name in contents(folder) - before if re.fullmatch(r"\.bya-[0-9a-f-]+\.part", name)]) == 1
        assert start(folder, "timeline", "scene.json", "-o", "timeline.png").wait(300) == 0
        (folder / "timeline.png").unlink()
        if arguments[0] == "generate":  # for a run that resumes with decoding
            kept = {"talk.windows", "talk.windows/.lock", "talk.windows/latents_0001.safetensors"}
            assert contents(folder) - before == kept
            assert start(folder, *arguments).wait(300) == 0
            assert not (folder / "talk.windows").exists()
            return
    assert contents(folder) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_long_video_resumes_after_a_signal(number: signal.Signals, folder: Path) -> None:
    before = contents(folder) - {"talk.mp4"}
    process = start(folder, "generate", "long.json", "-o", "talk.mp4")
    wait_for(process, "Window 3")
    process.send_signal(number)
    _, error = process.communicate(timeout=300)
    if number != signal.SIGKILL:
        assert process.returncode == 130 and "2 finished windows kept in talk.windows" in error
        windows = {"talk.windows/window_0001.safetensors", "talk.windows/window_0002.safetensors"}
        assert contents(folder) - before == windows | {"talk.mp4", "talk.windows", "talk.windows/speech.safetensors"}
    process = start(folder, "generate", "long.json", "-o", "talk.mp4")
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0 and "Window 3/5" in error and "Window 2/5" not in error
    assert contents(folder) == before | {"talk.mp4"} and (folder / "talk.mp4").stat().st_size > 1000


def test_second_run_of_a_long_scene_names_the_first(folder: Path) -> None:
    first = start(folder, "generate", "long.json", "-o", "talk.mp4")
    wait_for(first, "Window 1")
    first.send_signal(signal.SIGSTOP)  # it must not finish before the second one has started
    second = start(folder, "generate", "long.json", "-o", "talk.mp4")
    _, error = second.communicate(timeout=300)
    assert second.returncode == 2 and re.search(rf"in use by process {first.pid} on .* since \d", error), error
    first.send_signal(signal.SIGCONT)
    assert first.communicate(timeout=300) and first.returncode == 0
    assert "talk.windows" not in contents(folder)
