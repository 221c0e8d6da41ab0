"""A window of a long video is looked at before the rest is generated, and the video continues from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bya_core.config import ProbeConfig, RouterConfig
from bya_core.errors import InputError
from bya_core.masks import MaskControl
from bya_core.pipelines.interactive import MaskEdit, edit_masks, probe_window, sample_windows, window_routing
from bya_core.pipelines.long_video import generate_long
from bya_core.progress import Progress
from bya_core.scene.types import Scene
from bya_core.weights.bundle import ModelBundle
from tests.unit.pipelines.conftest import LongScene
from tests.unit.routing.calls import record_calls

ROUTER = RouterConfig("intra", ProbeConfig(steps=1, num_seeds=1))


@pytest.fixture
def scene(long_scene: LongScene) -> Scene:
    """Four windows, two steps each, of which the router takes one."""
    return long_scene(routing=ROUTER)


@pytest.mark.parametrize("number", [1, 3])
def test_video_continues_from_the_probed_window(number: int, bundle: ModelBundle, scene: Scene, tmp_path: Path) -> None:
    """The frames are those of an uninterrupted run, and nothing is computed twice."""
    whole = generate_long(scene, bundle, tmp_path / "whole").load()
    with record_calls(bundle.transformer) as probed:
        window, routing = probe_window(scene, bundle, number, tmp_path)
    assert (window.window.index, window.count) == (number - 1, 4) and routing.state is not None
    reports: list[Progress] = []
    resume = window_routing(number - 1, routing, scene)
    with record_calls(bundle.transformer) as sampled:
        video = sample_windows(scene, bundle, tmp_path, reports.append, resume=resume)
    assert torch.equal(video.frames, whole.frames) and torch.equal(video.masks, whole.masks)
    assert len(probed) == 2 * (number - 1) + 1 and len(probed) + len(sampled) == 8
    assert reports[-1].overall == pytest.approx(1, abs=0.1) and ", about 0:0" in reports[-1].stage
    kept = {path.name for path in tmp_path.rglob("window_*") if "whole" not in str(path)}
    assert kept == {f"window_{index + 1:04d}.safetensors" for index in range(number - 1)}


def test_edited_masks_change_this_window_and_later_ones(bundle: ModelBundle, scene: Scene, tmp_path: Path) -> None:
    window, routing = probe_window(scene, bundle, 2, tmp_path)
    grid, latent = window.prepared.grid, window.window.latent
    images = torch.zeros(grid.frames, 8, 8)
    images[:, :, :4] = 1
    edited, later = edit_masks(routing, scene, grid, MaskEdit(mask=images, restart=True), scene.names, latent)
    assert later is scene, "the masks are those of this window"
    video = sample_windows(scene, bundle, tmp_path, resume=window_routing(1, edited, scene))
    whole = generate_long(scene, bundle, tmp_path / "whole").load()
    own = slice(window.window.start + window.window.lead, window.window.stop)
    assert torch.equal(video.frames[: window.window.start], whole.frames[: window.window.start])
    assert not torch.equal(video.frames[own], whole.frames[own])
    middle = latent.start + window.window.latent_lead
    left = torch.tensor([1.0, 1, 1, 0, 0, 0]).expand(4, 6)
    assert torch.equal(video.masks[0, middle], left)


def test_masks_of_one_window_keep_the_windows_before(bundle: ModelBundle, scene: Scene, tmp_path: Path) -> None:
    """Given masks that act from window 3 on leave windows 1 and 2 as they are."""
    first = generate_long(scene, bundle, tmp_path)
    start = 8
    masks, strength = torch.zeros(2, 12, 4, 6), torch.zeros(2, 12)
    masks[0, start:], strength[:, start:] = 1, 1
    again = generate_long(replace(scene, mask_control=MaskControl(masks, strength)), bundle, tmp_path)
    assert [row["generated"] for row in first.windows] == [True] * 4
    assert [row["generated"] for row in again.windows] == [False, False, True, True]


def test_unknown_window(bundle: ModelBundle, scene: Scene, tmp_path: Path) -> None:
    for number in (0, 5):
        with pytest.raises(InputError, match=f"window {number}; expected a number from 1 to 4"):
            probe_window(scene, bundle, number, tmp_path)
    with pytest.raises(InputError, match="the video is one window"):
        probe_window(replace(scene, num_frames=9), bundle, 2, tmp_path)
