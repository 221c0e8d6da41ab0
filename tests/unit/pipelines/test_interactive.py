"""Mask images, previews, cost estimates and preflight, as the nodes use them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.io.media import fit_image
from bya_core.pipelines.estimate import ModelFolder, _count, _transformer_cost, estimate
from bya_core.pipelines.interactive import (
    character_index,
    images_to_masks,
    masks_to_images,
    overlay_images,
    still_frame,
)
from bya_core.pipelines.preflight import preflight
from bya_core.pipelines.preview import latent_colors, preview_picture
from bya_core.scene.types import Speech
from bya_core.toy.demo import demo_names, load_demo
from bya_core.weights.loader import load_bundle
from bya_core.weights.registry import MODELS
from tests.fakes import RATE
from tests.unit.scene.test_compose import member, noise

GRID = TokenGrid(3, 4, 6, patch=2, space_factor=4)


def test_masks_to_images_and_back() -> None:
    masks = torch.rand(2, *GRID.shape)
    images = masks_to_images(masks, GRID)
    assert images.shape == (6, *GRID.pixels)
    assert torch.allclose(images_to_masks(images, GRID, 2), masks, atol=1e-6)
    assert torch.equal(images_to_masks(torch.ones(2, 7, 5), GRID, 2), torch.ones(2, *GRID.shape))
    per_frame = torch.zeros(2 * GRID.video_frames, 8, 8)
    per_frame[: GRID.video_frames] = 1
    assert images_to_masks(per_frame, GRID, 2).mean((1, 2, 3)).tolist() == [1, 0]
    for count in (1, 4, 7):
        with pytest.raises(InputError, match=r"2 images \(static\), 6 \(one per latent frame\) or 18"):
            images_to_masks(torch.ones(count, 8, 8), GRID, 2)


def test_character_index() -> None:
    assert character_index("Bo", ["Ada", "Bo"]) == character_index(" 2 ", ["Ada", "Bo"]) == 1
    assert character_index("1", ["2", "1"]) == 1, "names take precedence over numbers"
    with pytest.raises(InputError, match=r"1 \(Ada\), 2 \(Bo\)"):
        character_index("0", ["Ada", "Bo"])


def test_overlay_images() -> None:
    masks, gray = torch.zeros(2, *GRID.shape), still_frame(None, GRID)
    masks[0, :, :, :3] = 1
    overlay = overlay_images(masks, GRID, gray, [], opacity=1.0)
    assert overlay.shape[0] == GRID.video_frames and overlay.shape[1] * 6 == overlay.shape[2] * 4
    assert tuple(overlay[4, 5, 5].tolist()) == (230, 120, 0) and tuple(overlay[4, 5, -5].tolist()) == (128, 128, 128)
    assert overlay_images(masks, GRID, gray, ["Ada", "Bo"]).shape[1] > overlay.shape[1]
    with pytest.raises(InputError, match="2 images for masks of 9 frames"):
        overlay_images(masks, GRID, gray.expand(2, -1, -1, -1), [])


def test_preview_has_the_colors_of_the_first_frame() -> None:
    """The color map is fitted to the portraits only."""
    bundle, demo = load_bundle("toy"), load_demo(demo_names()[0])
    assert demo.first_frame is not None
    factors = latent_colors(bundle.codec, [image for image, _ in demo.characters], (64, 96))
    frame = fit_image(demo.first_frame, 64, 96)
    latents = bundle.codec.encode((frame * 2 - 1)[None, :, None])
    picture = preview_picture(latents, None, factors)
    preview = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    small = F.adaptive_avg_pool2d(frame, (8, 12))
    error = (F.adaptive_avg_pool2d(preview, (8, 12)) - small).abs().mean()
    assert error < 0.5 * (small - frame.mean((1, 2), keepdim=True)).abs().mean()
    outlined = preview_picture(latents, torch.eye(2).reshape(2, 1, 1, 2).expand(2, 1, 8, 2), factors)
    assert outlined.size == picture.size and outlined.tobytes() != picture.tobytes()


def test_estimate() -> None:
    folder = MODELS["toy"].folder
    assert folder is not None
    model = ModelFolder(folder)
    assert (model.defaults.height, model.defaults.size_unit, model.max_characters) == (64, 8, 4)
    sampling = model.defaults.sampling
    small = estimate(model, model.grid(17, 64, 96), 2, sampling)
    large = estimate(model, model.grid(17, 128, 192), 2, replace(sampling, steps=5 * sampling.steps))
    assert 0.1 < small.seconds < 1000 and large.seconds > 4 * small.seconds
    assert small.gigabytes < large.gigabytes < 10


def test_estimate_counts_some_layers_for_all() -> None:
    folder = MODELS["toy"].folder
    assert folder is not None
    model = ModelFolder(folder)
    grid, config = model.grid(5, 64, 96), model.settings("transformer", "config.json")
    operations, width, cached = _transformer_cost(model, grid, 2)
    assert (operations, cached) == _count(config, grid, 2)  # of all layers
    assert width == config["num_attention_heads"] * config["attention_head_dim"]


def test_preflight() -> None:
    cast = (member("Ada", noise(seed=1)), member("Bo", noise(seed=1)))
    result = preflight(cast, ("toy", None), frames=25, force=True)
    assert result.ok and "same recording" in result.text and "cost: about" in result.text
    faceless = replace(member("Cy", Speech(torch.zeros(1, RATE), RATE)), image=torch.ones(3, 32, 32))
    result = preflight((faceless,), ("toy", None), frames=25, masks=torch.ones(3, 8, 8))
    levels = {finding.subject: finding.level for finding in result.findings}
    assert levels["Cy"] == levels["masks"] == "error" and levels["speech of Cy"] == "warning"
    with pytest.raises(InputError, match="no face detected"):
        result.raise_errors()
    refused = preflight(cast, ("toy", None), frames=25)
    assert not refused.ok and "not a drawn puppet" in refused.text
    hours = preflight(
        cast, ("toy", None), frames=90_001, force=True
    )  # the cost is that of one window, times their number
    assert hours.ok and "cost: about" in hours.text
    result = preflight(cast, ("official", None))
    assert not result.ok and MODELS["official"].how_to_get in result.text
    assert not preflight(cast, ("no such model", None)).ok


def test_incomplete_model_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").touch()
    with pytest.raises(InputError, match=r"lacks transformer, vae"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(("side", "level"), [(1, "error"), (7, "error"), (30, "warning"), (96, "ok")])
def test_preflight_checks_the_size_of_faces(side: int, level: str) -> None:
    image = torch.ones(3, side, side)
    image[:, side // 8 :, side // 8 :] = 0.4
    found = preflight((replace(member("Ada"), image=image),), ("toy", None), frames=9, force=True)
    assert [finding.level for finding in found.findings if finding.subject == "Ada"] == [level]


def test_preflight_of_long_recordings_looks_at_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of the check does not grow with the recording: speech is looked for in its first seconds."""
    searched: list[float] = []

    def spans(speech: Speech) -> list[tuple[float, float]]:
        searched.append(speech.waveform.shape[1] / speech.sample_rate)
        return [(0.5, 1.0)]

    monkeypatch.setattr("bya_core.encoders.vad.speaking_spans", spans)
    found = preflight(
        (member("Ada", Speech(torch.rand(1, 90 * RATE) - 0.5, RATE, offset=-10.0)),), ("toy", None), frames=9
    )
    assert searched == [40.0]
    assert "0.50 s of speech in the first 30 s" in found.text
