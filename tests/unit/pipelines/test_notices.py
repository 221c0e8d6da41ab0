"""Notices about inputs without effect: cut prompts, photographs, missing people, empty masks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bya_core.config import ProbeConfig, RouterConfig
from bya_core.errors import InputError
from bya_core.masks import MaskControl, mask_notices
from bya_core.pipelines.generate import generate, prepare, route
from bya_core.pipelines.interactive import MaskEdit, edit_masks, routing_summary, set_router
from bya_core.pipelines.prepare import input_notices
from bya_core.routing import Routing
from bya_core.scene.types import Character, PromptSpan, Scene
from bya_core.weights.bundle import ModelBundle
from bya_core.weights.loader import load_bundle
from tests.unit.routing.puppet_scene import needs_toy, puppet_scene, two_puppets

pytestmark = needs_toy
LONG = " ".join(f"style{i}" for i in range(60)) + ". on the left an orange puppet"


@pytest.fixture(scope="module")
def toy() -> ModelBundle:
    return load_bundle("toy")


@pytest.fixture(scope="module")
def scene(toy: ModelBundle) -> Scene:
    return puppet_scene(toy, two_puppets(), 1)


def photograph(size: int = 96) -> torch.Tensor:
    """Texture as in a photograph: noise at several scales."""
    generator = torch.Generator().manual_seed(0)
    scales = [torch.rand(1, 3, side, side, generator=generator) for side in (4, 12, 32, size)]
    return torch.stack([F.interpolate(each, size=size, mode="bilinear")[0] for each in scales]).mean(0)


def test_ordinary_scene_has_no_notice(toy: ModelBundle, scene: Scene) -> None:
    assert prepare(scene, toy).scene.notices == ()


def test_cut_prompts(toy: ModelBundle, scene: Scene) -> None:
    short = "on the left an orange puppet"
    for fields, words in (
        ({"prompt": LONG}, ["The prompt", "has 63 words", "first 48"]),
        ({"negative_prompt": LONG}, ["The negative prompt", "has 63 words"]),
        ({"prompts": (PromptSpan(0, 9, LONG),), "prompt": short}, ["The prompt", "has 63 words"]),
    ):
        (notice,) = prepare(replace(scene, **fields), toy).scene.notices  # type: ignore[arg-type]
        assert all(word in notice for word in words)


def test_photograph(toy: ModelBundle, scene: Scene) -> None:
    white = torch.ones(3, 96, 96)
    white[:, 20:, 24:72] = photograph()[:, 20:, 24:72]
    for image in (photograph(), white):
        given = replace(scene, characters=(scene.characters[0], Character("Bo", image)))
        with pytest.raises(InputError, match=r"image of Bo: not drawn puppets.*toy.*--force"):
            prepare(given, toy)
        (notice,) = input_notices(replace(given, force=True), toy)
        assert "drawn puppets" in notice and "Bo" in notice and scene.names[0] not in notice


def test_person_left_out_of_the_first_frame(toy: ModelBundle, scene: Scene) -> None:
    frame = scene.first_frame
    assert frame is not None
    other = puppet_scene(toy, two_puppets(2_000_003), 1)
    characters = (scene.characters[0], Character("Bo", other.characters[1].image))
    (notice,) = input_notices(replace(scene, characters=characters), toy)
    assert "does not show Bo" in notice


def test_voices_are_not_matched_to_people_the_network_does_not_know(toy: ModelBundle, scene: Scene) -> None:
    auto = RouterConfig("intra", ProbeConfig(steps=1))
    routed = set_router(scene, auto, toy, "auto")
    assert any("Voices were matched to faces" in notice for notice in routed.notices)
    characters = (scene.characters[0], Character("Bo", photograph()))
    with pytest.raises(
        InputError, match=r'"auto" for Bo, but .* drawn puppets only.*provide the matrix.*reference_video'
    ):
        set_router(replace(scene, characters=characters), auto, toy, "auto")


def test_regions_of_no_size() -> None:
    masks = torch.zeros(3, 2, 10, 10)
    masks[0], masks[1, :, :2, :3] = 1, 1
    notices = mask_notices(["Ada", "Bo", "Cy"], masks)
    assert [notice.split()[0] for notice in notices] == ["Bo", "Cy"]


def test_notices_of_a_run_are_in_one_place(toy: ModelBundle, scene: Scene) -> None:
    """Video and summary of the router have those of scene, prompt and masks."""
    masks = torch.zeros(2, *toy.grid(scene.num_frames, scene.height, scene.width).shape)
    masks[0] = 1
    given = replace(scene, prompt=LONG, mask_control=MaskControl(masks), routing=RouterConfig("manual"), notices=("a",))
    video = generate(given, toy)
    assert video.notices[0] == "a" and any("63 words" in each for each in video.notices)
    assert any("puppet 2 covers 0.0%" in each for each in video.notices)
    prepared = prepare(given, toy)
    summary = routing_summary(prepared.scene, route(prepared, toy))
    assert all(f"note: {notice}" in summary for notice in video.notices)


def test_unpainted_masks(toy: ModelBundle, scene: Scene) -> None:
    """The MASK of a picture without transparency is 64x64 and black."""
    black, manual = torch.zeros(1, 64, 64), RouterConfig("manual")
    with pytest.raises(InputError, match="is empty"):
        set_router(scene, manual, toy, masks=torch.cat([black, black]))
    routed = set_router(scene, manual, toy, masks=torch.cat([black, 1 - black]))
    assert any("puppet 1" in notice and "empty" in notice for notice in routed.notices)
    grid = toy.grid(scene.num_frames, scene.height, scene.width)
    routing = Routing.of("pre", torch.ones(2, *grid.shape), scene.matrix, strength=1.0)
    with pytest.raises(InputError, match='"puppet 2" is empty'):
        edit_masks(routing, None, grid, MaskEdit(mask=black, character="2"), scene.names)
    edited, _ = edit_masks(routing, None, grid, MaskEdit(mask=black, character="PUPPET 2", strength=0.0), scene.names)
    assert torch.equal(edited.masks, routing.masks)


def test_no_drawn_puppet_is_taken_for_something_else(toy: ModelBundle) -> None:
    from training.puppets.looks import draw_look
    from training.puppets.world import draw_portrait

    meter: Any = toy.meter
    for seed in range(200):
        rng = np.random.default_rng(seed)
        drawn = draw_portrait(draw_look(rng), rng, (48, 96, 160)[seed % 3])
        assert meter.is_portrait(torch.from_numpy(drawn.copy()).permute(2, 0, 1).float() / 255), seed
