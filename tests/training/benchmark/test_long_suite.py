"""Long suite."""

from __future__ import annotations

import pytest
import torch

import bya_core.pipelines.long_video as long_video
from bya_core.routing import Routing
from bya_core.weights.bundle import ModelBundle
from bya_core.weights.loader import load_bundle
from bya_core.weights.registry import MODELS
from training.benchmark.long_suite import LongSettings, long_report, long_scene, long_table
from training.benchmark.targets import as_video

pytestmark = pytest.mark.slow
SETTINGS = LongSettings(scenes=1, seed_base=2_000_010, num_frames=89)


@pytest.fixture(scope="module")
def toy() -> ModelBundle:
    if not MODELS["toy"].available:
        pytest.skip("the weights of the toy model are not available")
    return load_bundle("toy")


@pytest.mark.parametrize("drift", [0.0, 0.3])
def test_color_drift(toy, tmp_path, monkeypatch, drift):
    """Replace the model by the VAE reconstruction of the ground truth, darkened after the first window."""
    scene, truth = long_scene(SETTINGS, 0, toy)
    masks = toy.grid(89, 64, 96).pixels_to_tokens(torch.from_numpy(truth.clip.masks))
    starts = [window.start for window in long_video.plan(scene, toy)]

    def ground_truth(prepared, routing, *_):
        start = starts.pop(0)
        video = as_video(truth.clip)[:, :, start : start + prepared.grid.video_frames] - (drift if start else 0.0)
        return toy.codec.encode(video.clamp(-1, 1)), masks[:, start // 4 :][:, : prepared.grid.frames]

    routing = Routing.of("intra", masks, torch.eye(2), strength=0.0)
    monkeypatch.setattr(long_video, "route", lambda prepared, *_: routing)
    monkeypatch.setattr(long_video, "denoise_latents", ground_truth)
    monkeypatch.setattr(long_video, "match_statistics", lambda latents, _: latents)
    report = long_report(toy, SETTINGS, folder=tmp_path)
    assert len(report["windows"]) == 2 and "| 2 |" in long_table(report)
    assert report["passed"]["binding"] and report["passed"]["identity"]
    assert report["passed"]["color"] == (drift == 0.0)
    if drift == 0.0:
        assert report["seam"] < 1.3
