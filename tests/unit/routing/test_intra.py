"""The intra router's probe: when it stops, and that going on from it is the same as never having stopped."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bya_core.config import ProbeConfig, RefineConfig, RouterConfig
from bya_core.errors import Cancelled
from bya_core.pipelines.generate import generate, prepare, sample
from bya_core.progress import ProgressTracker
from bya_core.routing.intra import MaskConvergence, max_probe_steps, probe
from bya_core.routing.route import route
from bya_core.sampling import StepInfo, build_scheduler, denoise
from bya_core.weights.loader import load_bundle
from bya_core.weights.registry import MODELS
from tests.fakes import fake_bundle
from tests.unit.routing.calls import counted
from tests.unit.routing.puppet_scene import puppet_scene, two_puppets

STEPS = 6

pytestmark = pytest.mark.skipif(not MODELS["toy"].available, reason="the toy model's weights are not here")


@pytest.fixture(scope="module")
def bundle():
    return load_bundle("toy")


@pytest.fixture(scope="module")
def clip():
    return two_puppets()


@pytest.fixture(scope="module")
def prepared(bundle, clip):
    return prepare(puppet_scene(bundle, clip, STEPS), bundle)


@pytest.fixture(scope="module")
def uninterrupted(bundle, prepared):
    """One run from noise to the end: latents, and the masks of every step."""
    masks = []
    made = denoise(
        bundle.transformer,
        build_scheduler("dpm", bundle.scheduler_config),
        prepared.conditions,
        prepared.scene.sampling,
        callback=lambda progress: masks.append(progress.info.masks.clone()),
    )
    return made.latents, masks


def probing(prepared, **config):
    routing = RouterConfig(probe=ProbeConfig(**config))
    return replace(prepared, scene=replace(prepared.scene, routing=routing))


def info(masks: torch.Tensor) -> StepInfo:
    return StepInfo(1, 9, masks, masks, 0, masks)


def told(monkeypatch, prepared, areas: dict[int, tuple[int, int]], first_frame: bool = False, tries: int = 3):
    """(routing, seeds asked for) of a router that gives two people so many of 12 tokens, by seed."""
    asked = []

    def denoised(transformer, scheduler, conditions, sampling, **_):
        asked.append(sampling.seed)
        masks = torch.zeros(2, 1, 3, 4)
        for mask, area in zip(masks.flatten(1), areas[sampling.seed], strict=True):
            mask[:area] = 1.0
        return SimpleNamespace(masks=masks, state=SimpleNamespace(step=2))

    monkeypatch.setattr("bya_core.routing.intra.denoise", denoised)
    given = prepared.conditions.canvas_latents if first_frame else None
    open_scene = replace(prepared.scene, sampling=replace(prepared.scene.sampling, seed=7))
    asking = replace(prepared, scene=open_scene, conditions=replace(prepared.conditions, first_frame_latents=given))
    return probe(
        probing(asking, num_seeds=tries), SimpleNamespace(transformer=None, scheduler_config={}), ProgressTracker()
    ), asked


def test_while_somebody_has_no_place_the_next_seed_is_tried(monkeypatch, prepared):
    routing, asked = told(monkeypatch, prepared, {7: (6, 0), 8: (5, 4)})
    assert asked == [7, 8] and routing.calls == 4
    assert routing.masks.sum((1, 2, 3)).tolist() == [5, 4]
    assert routing.notices == ("Seed 8 was used: with seed 7, a character had no region.",)


def test_one_try_is_enough_where_all_have_a_place_or_a_picture_says_where(monkeypatch, prepared):
    assert told(monkeypatch, prepared, {7: (6, 1)})[1] == [7], "small is a place, too"
    routing, asked = told(monkeypatch, prepared, {7: (6, 0)}, first_frame=True)
    assert asked == [7] and not routing.notices
    assert told(monkeypatch, prepared, {7: (0, 0)})[1] == [7], "a router that knows nothing is not asked again"


def test_after_the_last_try_it_says_who_is_missing(monkeypatch, prepared):
    routing, asked = told(monkeypatch, prepared, {7: (6, 0), 8: (0, 6)}, tries=2)
    assert asked == [7, 8] and routing.masks[0].sum() == 6, "the first of equals is kept"
    name = prepared.scene.characters[1].name
    assert len(routing.notices) == 1 and name in routing.notices[0] and "first frame" in routing.notices[0]


@pytest.mark.parametrize(
    ("config", "total", "most"),
    [
        ({}, 16, 6),
        ({}, 50, 20),
        ({}, 1, 1),
        ({"max_fraction": 0.3}, 10, 3),
        ({"steps": 5}, 16, 5),
        ({"steps": 99}, 16, 16),
    ],
)
def test_a_probe_takes_at_most_its_share(config, total, most):
    assert max_probe_steps(ProbeConfig(**config), total) == most


def test_masks_have_settled_once_they_change_little():
    settling = MaskConvergence(ProbeConfig(threshold=0.1))
    masks = torch.zeros(2, 3, 4, 5)
    assert not settling(info(masks)), "one step says nothing about change"
    assert not settling(info(masks + 0.5))
    assert settling.change == pytest.approx(0.5)
    assert settling(info(masks + 0.55))
    exact = MaskConvergence(ProbeConfig(threshold=0.1, steps=3))
    assert not any(exact(info(masks)) for _ in range(4)), "a number of steps goes before"


def test_probe_stops_at_the_step_where_masks_settle(bundle, prepared, uninterrupted):
    _, masks = uninterrupted
    changes = [float((b - a).abs().mean()) for a, b in zip(masks, masks[1:], strict=False)]
    assert changes[0] > changes[-1], "masks come to rest"
    # one threshold above the first change, one below all
    early = probe(probing(prepared, threshold=changes[0] * 1.01, max_fraction=1.0), bundle, ProgressTracker())
    assert early.state.step == 2
    late = probe(probing(prepared, threshold=0.0, max_fraction=0.5), bundle, ProgressTracker())
    assert late.state.step == STEPS // 2
    assert torch.equal(late.masks, masks[STEPS // 2 - 1])
    assert not (late.control.strength > 0).any(), "untouched masks are not forced"
    assert ((late.confidence > 0.5) & (late.confidence <= 1)).all()


@pytest.mark.parametrize("guidance", [(1.0, 1.0), (1.0, 2.0), (3.0, 2.0)])
def test_going_on_is_the_same_as_never_stopping(bundle, prepared, guidance):
    """With one, two and three branches of guidance; nothing is computed twice."""
    text, speech = guidance
    scene = replace(
        prepared.scene,
        sampling=replace(prepared.scene.sampling, steps=3, guidance_scale=text, audio_guidance_scale=speech),
    )
    prepared = replace(prepared, scene=scene)
    with counted(bundle.transformer) as calls:
        made = denoise(
            bundle.transformer,
            build_scheduler("dpm", bundle.scheduler_config),
            prepared.conditions,
            scene.sampling,
        )
        whole, once = list(calls.latents), list(calls.timesteps)
        calls.clear()
        found = probe(probing(prepared, steps=2), bundle, ProgressTracker())
        assert found.calls == len(calls) == 2, "branches of guidance are one call"
        video = sample(prepared, found, bundle)
        assert calls.timesteps == once and len(set(once)) == 3
        assert all(torch.equal(a, b) for a, b in zip(calls.latents, whole, strict=True))
    assert torch.equal(video.masks, made.masks)


def test_video_and_masks_are_bit_equal(bundle, prepared, uninterrupted):
    latents, masks = uninterrupted
    found = probe(probing(prepared, steps=3), bundle, ProgressTracker())
    video = sample(prepared, found, bundle)
    pixels = bundle.codec.decode(latents)[0].clamp(-1, 1)
    expected = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
    assert torch.equal(video.frames, expected)
    assert torch.equal(video.masks, masks[-1])


def test_edited_masks_change_what_comes_after(bundle, prepared, uninterrupted):
    _, masks = uninterrupted
    found = probe(probing(prepared, steps=2), bundle, ProgressTracker())
    swapped = sample(prepared, found.with_masks(found.masks.flip(0)), bundle)
    assert torch.allclose(swapped.masks, found.masks.flip(0))
    assert not torch.allclose(swapped.masks, masks[-1], atol=0.3)


def test_a_probe_may_take_every_step(bundle, prepared, uninterrupted):
    _, masks = uninterrupted
    found = probe(probing(prepared, steps=STEPS + 4), bundle, ProgressTracker())
    assert found.calls == found.state.step == STEPS
    with counted(bundle.transformer) as calls:
        video = sample(prepared, found, bundle)
    assert len(calls) == 0 and torch.equal(video.masks, masks[-1])


def test_static_and_refined_masks_are_forced_and_the_run_goes_on(bundle, prepared):
    scene = replace(
        prepared.scene, routing=RouterConfig(probe=ProbeConfig(steps=2), refine=RefineConfig(), static=True)
    )
    found = route(replace(prepared, scene=scene), bundle)
    assert (found.control.strength == 1).all() and found.state.step == 2
    assert torch.equal(found.masks, found.masks[:, :1].expand_as(found.masks)), "the same in every frame"


def test_probe_can_be_cancelled():
    bundle = fake_bundle()
    clip = two_puppets(num_frames=9)
    with pytest.raises(Cancelled):
        generate(puppet_scene(bundle, clip, 4), bundle, lambda progress: progress.step < 1 or progress.total == 1)


def test_denoise_stops_where_asked_without_an_error():
    bundle = fake_bundle()
    prepared = prepare(puppet_scene(bundle, two_puppets(), 4), bundle)
    seen = []
    made = denoise(
        bundle.transformer,
        build_scheduler("dpm"),
        prepared.conditions,
        prepared.scene.sampling,
        callback=lambda progress: seen.append(progress.step),
        stop=lambda info: info.step == 3,
    )
    assert made.state.step == 3 and seen == [1, 2, 3], "the callback hears of the last step too"
