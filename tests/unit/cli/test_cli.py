"""The command line: outputs, exit codes, and no partial files after an error."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from bya_core.cli import main as cli
from bya_core.errors import InputError
from bya_core.io.media import read_audio
from bya_core.pipelines import sample
from bya_core.weights import loader, registry
from tests.fakes import tone, write_wav

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_generate_writes_all_outputs(make_scene, out, registered, capsys, tmp_path):
    write_wav(tmp_path / "scene" / "ada.wav", np.stack([tone(0.3, rate=44100)] * 2, axis=1), 44100)
    names = {"-o": "talk.mp4", "--masks": "masks.npz", "--overlay": "masks.mp4", "--json": "report.json"}
    options = [part for flag, name in names.items() for part in (flag, str(out / name))]
    assert cli.main(["generate", str(make_scene()), *options, "--steps", "3", "--seed", "5"]) == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(names.values())
    with av.open(str(out / "talk.mp4")) as container:
        video = container.streams.video[0]
        assert (video.frames, video.width, video.height, video.average_rate) == (9, 96, 64, 25)
    sound, rate = read_audio(out / "talk.mp4")
    assert (rate, sound.shape[0]) == (44100, 2)
    report = json.loads((out / "report.json").read_text())
    assert report["seed"] == 5 and report["sampling"]["steps"] == 3
    assert report["seconds"]["Denoising"] > 0 and report["peak_memory"]["ram_gb"] > 0
    with np.load(out / "masks.npz") as saved:
        assert saved["masks"].shape == (2, 3, 4, 6) and saved["names"].tolist() == ["Ada", "Bo"]
    printed = capsys.readouterr()
    assert all(str(out / name) in printed.out for name in names.values())
    assert "Denoising: step 3/3" in printed.err and "left" in printed.err


def test_saved_masks_can_be_loaded(make_scene, out, registered, tmp_path):
    masks, copy = tmp_path / "scene" / "masks.npz", out / "copy.npz"
    assert cli.main(["generate", str(make_scene()), "-o", str(out / "a.mp4"), "--masks", str(masks)]) == 0
    scene = make_scene(router={"mode": "manual", "masks": "masks.npz"})
    assert cli.main(["generate", str(scene), "-o", str(out / "b.mp4"), "--masks", str(copy)]) == 0
    with np.load(masks) as first, np.load(copy) as second:
        np.testing.assert_allclose(first["masks"], second["masks"], atol=1e-6)


def test_warnings_are_printed_and_reported(make_scene, out, registered, capsys, tmp_path):
    write_wav(tmp_path / "scene" / "ada.wav", tone(2.0))
    write_wav(tmp_path / "scene" / "bo.wav", np.zeros(1000))
    report = out / "r.json"
    assert cli.main(["generate", str(make_scene(length=9)), "-o", str(out / "a.mp4"), "--json", str(report)]) == 0
    printed = capsys.readouterr().err
    warnings = json.loads(report.read_text())["warnings"]
    assert any("1.64 s of speech are cut" in warning for warning in warnings)
    assert any("silent" in warning for warning in warnings)
    assert all(printed.count(f"warning: {warning}") == 1 for warning in warnings)


def test_a_fallback_is_shown_once_and_reported(make_scene, out, registered, capsys, monkeypatch):
    denoise, text = sample.denoise, "FP8 is not used: no GPU."

    def falls_back(*arguments, **options):
        logging.getLogger("bya_core.sampling.fp8").warning("FP8 is not used: %s.", "no GPU")
        return denoise(*arguments, **options)

    monkeypatch.setattr(sample, "denoise", falls_back)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # those of pytest: the command adds its own
    report = out / "r.json"
    assert cli.main(["generate", str(make_scene()), "-o", str(out / "a.mp4"), "--json", str(report)]) == 0
    assert json.loads(report.read_text())["warnings"].count(text) == 1
    assert capsys.readouterr().err.count(text) == 1


def test_timeline(make_scene, out, registered, capsys, tmp_path):
    write_wav(tmp_path / "scene" / "bo.wav", np.zeros(1000))
    assert cli.main(["timeline", str(make_scene()), "-o", str(out / "t.png")]) == 0
    with Image.open(out / "t.png") as picture:
        assert picture.size[0] == 1440 and picture.size[1] > 300
    printed = capsys.readouterr()
    assert "warning: The speech of Bo (bo.wav) is silent" in printed.err and str(out / "t.png") in printed.out
    assert cli.main(["timeline", str(make_scene()), "-o", str(out / "t.jpg")]) == 2
    assert cli.main(["timeline", str(make_scene(dialogue="no.wav")), "-o", str(out / "u.png")]) == 2
    assert [path.name for path in out.iterdir()] == ["t.png"]


@pytest.mark.parametrize(
    "scene",
    [
        {"colour": "red"},
        {"characters": [{"name": "Ada", "image": "no.png"}]},
        {"characters": [{"name": "Ada", "image": "ada.png", "speech": "ada.png"}]},
        {"characters": [{"name": "Ada", "image": "ada.png", "speech": "empty.wav"}]},
        {"characters": [{"name": "Ada", "image": "flat.png", "speech": "ada.wav"}]},
    ],
)
def test_invalid_scene_returns_2(scene, make_scene, out, registered, capsys, tmp_path):
    write_wav(tmp_path / "scene" / "empty.wav", np.zeros(0))
    Image.new("RGB", (8, 8), "red").save(tmp_path / "scene" / "flat.png")
    options = ["-o", str(out / "a.mp4"), "--json", str(out / "r.json")]
    assert cli.main(["generate", str(make_scene(**scene)), *options]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].endswith(".")
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        "-o nowhere/b/a.mp4",
        "-o a.mp4 --json nowhere/b/r.json",
        "-o a.mp4 --overlay nowhere/b/o.mp4",
        "-o a.mp4 --masks nowhere/b/m.npz",
        "-o a.gif",
        "-o a.mp4 --masks m.txt",
        "-o a.mp4 --overlay a.mp4",
        "-o a.mp4 --overlay ./sub/../a.mp4",
        "-o a.mp4 --json scene.json",
        "-o folder.mp4",
        "-o a.mp4 --model unknown",
        "-o a.mp4 --model official",
        "-o a.mp4 --steps 0",
        "-o a.mp4 --seed -1",
    ],
)
def test_invalid_options_return_2(options, make_scene, registered, capsys, monkeypatch):
    folder = make_scene().parent
    monkeypatch.chdir(folder)
    (folder / "sub").mkdir()
    (folder / "folder.mp4").mkdir()
    before = sorted(folder.rglob("*"))
    assert cli.main(["generate", "scene.json", *options.split()]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: ")
    assert sorted(folder.rglob("*")) == before
    assert json.loads((folder / "scene.json").read_text())["prompt"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that not even root can write to")
def test_missing_scene_and_read_only_folder_return_2(make_scene, out, registered, capsys):
    assert cli.main(["generate", str(make_scene()), "-o", "/proc/a.mp4"]) == 2
    assert "a folder that can be written to" in capsys.readouterr().err
    assert cli.main(["generate", str(out / "no.json"), "-o", str(out / "a.mp4")]) == 2
    assert "no.json does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["generate"], ["dance"], ["generate", "s.json"], ["generate", "-x"]])
def test_invalid_usage_returns_2(arguments, capsys):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1 and printed.err.startswith("error: ") and not printed.out


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, OSError(28, "No space left on device")])
def test_failure_while_saving_leaves_no_outputs(error, make_scene, out, registered, monkeypatch):
    """The overlay fails after the video has been written: no output is left, and an error keeps the latents."""
    import bya_core.pipelines.outputs as output

    def failing(*_: object) -> Any:
        raise error
        yield

    monkeypatch.setattr(output, "render_overlay", failing)
    (out / "a.mp4").write_bytes(b"older")
    arguments = ["generate", str(make_scene()), "-o", str(out / "a.mp4"), "--overlay", str(out / "b.mp4")]
    assert cli.main(arguments) == (130 if error is KeyboardInterrupt else 1)
    kept = [] if error is KeyboardInterrupt else ["a.windows"]
    assert sorted(path.name for path in out.iterdir()) == ["a.mp4", *kept]
    assert (out / "a.mp4").read_bytes() == b"older"


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_cancels_denoising(number, make_scene, out):
    program = """
import dataclasses, pathlib, sys, time
from bya_core.cli import main as cli
from bya_core.weights import registry
from tests.fakes import fake_bundle
bundle = fake_bundle()
forward = bundle.transformer.forward
def slow(**inputs):
    time.sleep(0.2)
    return forward(**inputs)
bundle.transformer.forward = slow
folder = pathlib.Path(sys.argv[1]).parent
registry.MODELS["toy"] = dataclasses.replace(
    registry.MODELS["toy"], folder=folder, loader=lambda _: bundle, required_files=())
sys.exit(cli.main(["generate", sys.argv[1], "-o", sys.argv[2], "--steps", "500"]))
"""
    command = [sys.executable, "-c", program, str(make_scene()), str(out / "a.mp4")]
    # background processes ignore SIGINT, and so would their children
    reset = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=reset)
    assert process.stderr is not None
    printed, limit = "", time.monotonic() + 120
    while "step 1/500" not in printed and time.monotonic() < limit:
        printed += process.stderr.read(1)
    process.send_signal(number)
    rest = process.stderr.read()
    assert process.wait(60) == 130, printed + rest
    assert "no unfinished files" in rest
    assert list(out.iterdir()) == []


def test_deleted_working_directory_is_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["doctor"]) == 2
    assert "a working directory that was deleted" in capsys.readouterr().err


def test_models(capsys):
    assert cli.main(["models"]) == 0
    printed = capsys.readouterr().out
    for entry in registry.MODELS.values():
        assert all(text in printed for text in (entry.name, entry.purpose, entry.size, entry.license))


def test_doctor(monkeypatch, capsys, tmp_path):
    assert cli.main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out
    assert cli.main(["doctor", "--json", "-o", str(tmp_path / "report.json")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert cli.main(["doctor", "-o", str(tmp_path / "report.txt")]) == 2
    assert ".json" in capsys.readouterr().err
    states = {finding["name"]: finding["state"] for finding in report["findings"]}
    assert report["healthy"] and report["machine"]["device"]
    assert states["torch"] == states["python"] == states["video writing"] == "ok"
    assert all(finding["advice"] for finding in report["findings"] if finding["state"] != "ok")

    find = importlib.util.find_spec
    missing = ("av", "timm", "torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in missing else find(name, *rest))
    assert cli.main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    states = {finding["name"]: finding["state"] for finding in report["findings"]}
    assert (states["av"], states["torch"], states["timm"]) == ("problem", "problem", "missing")
    assert not report["healthy"]


def test_unavailable_model_raises(bundle, registered, monkeypatch):
    assert loader.load_bundle("toy").transformer is bundle.transformer
    with pytest.raises(InputError, match="use --model toy"):
        registry.find_model("toyy")
    monkeypatch.setenv("BYA_MODELS_DIR", str(registered.TOY_WEIGHTS / "nowhere"))
    with pytest.raises(InputError, match="official lacks transformer.* bya download official"):
        loader.load_bundle("official")
    folder = registry.MODELS["toy"].folder
    assert folder is not None
    (folder / "weights").unlink()
    with pytest.raises(InputError, match="not complete .* weights"):
        loader.load_bundle("toy")


def test_help_does_not_import_torch():
    program = "import sys; from bya_core.cli import main as cli; cli.main(['models']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True).returncode == 0


def test_help_lists_every_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in cli.COMMANDS)
    assert max(map(len, printed.splitlines())) <= 100
