"""The long suite measures what it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import bya_core.pipelines.long_video as long_video
from bya_core.routing import Routing
from bya_core.weights.bundle import ModelBundle
from bya_core.weights.loader import load_bundle
from bya_core.weights.registry import MODELS
from training.benchmark.long_suite import LongSettings, long_scene, long_table, measure_long
from training.benchmark.subjects import as_video

pytestmark = pytest.mark.slow
SETTINGS = LongSettings(scenes=1, seed_base=2_000_010, num_frames=89)


@pytest.fixture(scope="module")
def toy() -> ModelBundle:
    if not MODELS["toy"].available:
        pytest.skip("the toy model's weights are not here")
    return load_bundle("toy")


@pytest.mark.parametrize("shade", [0.0, 0.3])
def test_drawn_windows_pass_and_shaded_ones_show_as_drift(
    toy: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shade: float
) -> None:
    """The drawn video, through the codec, in place of the model: a perfect one, and one that darkens."""
    scene, suite = long_scene(SETTINGS, 0, toy)
    scene_masks = toy.grid(89, 64, 96).pixels_to_tokens(torch.from_numpy(suite.clip.masks))
    starts: list[int] = []

    def drawn(prepared, routing, *_):
        frames = prepared.grid.video_frames
        start = starts.pop(0)
        video = as_video(suite.clip)[:, :, start : start + frames] - (shade if start else 0.0)
        return toy.codec.encode(video.clamp(-1, 1)), scene_masks[:, start // 4 :][:, : prepared.grid.frames]

    starts += [window.start for window in long_video.plan(scene, toy)]
    monkeypatch.setattr(
        long_video, "route", lambda prepared, *_: Routing.of("intra", scene_masks, torch.eye(2), strength=0.0)
    )
    monkeypatch.setattr(long_video, "denoised", drawn)
    monkeypatch.setattr(long_video, "_with_statistics", lambda latents, _: latents)
    report = measure_long(toy, replace(SETTINGS), folder=tmp_path)
    assert len(report["windows"]) == 2 and "| 2 |" in long_table(report)
    assert report["passed"]["binding"] and report["passed"]["identity"]
    assert report["passed"]["colour"] == (shade == 0.0)
    if shade == 0.0:
        assert report["seam"] < 1.3
