"""A run whose decoding fails keeps its denoised latents; the same command resumes with decoding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bya_core.cli import main as cli
from bya_core.cli.common import windows_beside
from bya_core.io.locks import folder_lock
from bya_core.pipelines import generate, long_video, sample
from bya_core.pipelines.kept_latents import REUSED
from bya_core.weights.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not MODELS["toy"].available, reason="toy weights are missing")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Number of denoised windows, and of decodings that will fail."""
    count = {"denoised": 0, "failures": 0}
    denoise, decode = sample.denoise_latents, sample.decode_latents

    def counted(*arguments):
        count["denoised"] += 1
        return denoise(*arguments)

    def failing(*arguments):
        if count["failures"]:
            count["failures"] -= 1
            raise torch.OutOfMemoryError("out of memory")
        return decode(*arguments)

    for module in (sample, long_video):
        monkeypatch.setattr(module, "denoise_latents", counted)
        monkeypatch.setattr(module, "decode_latents", failing)
    assert generate.sample is sample.sample
    return count


def _run(video: Path, *more: str) -> int:
    """Nine frames of the demo in one step; returns the exit code."""
    scene = json.loads((ROOT / "demo" / "scene.json").read_text()) | {"length": 9}
    for entry in scene["characters"]:
        entry |= {name: str(ROOT / "demo" / entry[name]) for name in ("image", "speech")}
    scene["first_frame"] = str(ROOT / "demo" / scene["first_frame"])
    inputs = video.parent / "inputs"
    inputs.mkdir(exist_ok=True)
    (inputs / "scene.json").write_text(json.dumps(scene))
    return cli.main(["generate", str(inputs / "scene.json"), "-o", str(video), "--steps", "1", *more])


def test_a_failed_decode_is_repeated_without_denoising(tmp_path, calls, capsys):
    video, folder = tmp_path / "talk.mp4", windows_beside(tmp_path / "talk.mp4")
    calls["failures"] = 1
    assert _run(video) != 0
    assert "resumes with decoding" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["latents_0001.safetensors"] and not video.exists()
    with folder_lock(folder, "the windows", "wait"):
        pass  # the failed run holds no lock
    assert _run(video, "--json", str(tmp_path / "report.json")) == 0 and calls["denoised"] == 1
    assert REUSED in json.dumps(json.loads((tmp_path / "report.json").read_text()))
    assert not folder.exists()
    whole = tmp_path / "whole.mp4"
    assert _run(whole) == 0 and calls["denoised"] == 2
    assert whole.read_bytes() == video.read_bytes() and not windows_beside(whole).exists()


def test_latents_of_other_inputs_are_not_used(tmp_path, calls):
    video = tmp_path / "talk.mp4"
    calls["failures"] = 1
    assert _run(video) != 0
    assert _run(video, "--seed", "7") == 0 and calls["denoised"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inputs", "talk.mp4"]


def test_a_long_video_resumes_with_decoding(tmp_path, calls):
    video, work = tmp_path / "talk.mp4", tmp_path / "work"
    calls["failures"] = 1
    assert _run(video, "--work-dir", str(work)) != 0
    assert [path.name for path in work.glob("latents_*")] == ["latents_0001.safetensors"]
    assert _run(video, "--work-dir", str(work)) == 0 and calls["denoised"] == 1
    assert not list(work.glob("latents_*")) and len(list(work.glob("window_*"))) == 1
