"""The intra router's probe: convergence, exact resuming, and further seeds."""

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
from tests.fakes import fake_bundle
from tests.unit.routing.calls import record_calls
from tests.unit.routing.puppet_scene import needs_toy, puppet_scene, two_puppets

STEPS = 6

pytestmark = needs_toy


@pytest.fixture(scope="module")
def bundle():
    return load_bundle("toy")


@pytest.fixture(scope="module")
def prepared(bundle):
    return prepare(puppet_scene(bundle, two_puppets(), STEPS), bundle)


@pytest.fixture(scope="module")
def uninterrupted(bundle, prepared):
    """Latents and masks of every step of one run."""
    masks = []
    made = denoise(
        bundle.transformer,
        build_scheduler("dpm", bundle.scheduler_config),
        prepared.conditions,
        prepared.scene.sampling,
        callback=lambda progress: masks.append(progress.info.masks.clone()),
    )
    return made.latents, masks


def with_probe(prepared, **config):
    routing = RouterConfig(probe=ProbeConfig(**config))
    return replace(prepared, scene=replace(prepared.scene, routing=routing))


def info(masks: torch.Tensor) -> StepInfo:
    return StepInfo(1, 9, masks, masks, 0, masks)


@pytest.mark.parametrize(
    ("areas", "num_seeds", "first_frame", "best", "notice"),
    [
        ({7: (6, 0), 8: (5, 4)}, 3, False, 8, "Seed 8 was used"),
        ({7: (6, 1)}, 3, False, 7, None),  # both characters have a region
        ({7: (6, 0), 8: (0, 6)}, 2, False, 7, "No region was assigned to puppet 2"),  # none is better: the first one
        ({7: (6, 0)}, 1, False, 7, "No region was assigned to puppet 2"),
        ({7: (6, 0)}, 3, True, 7, None),  # the first frame fixes the layout
        ({7: (0, 0)}, 3, False, 7, None),  # all masks are empty: another seed would not help
    ],
)
def test_further_seeds(monkeypatch, prepared, areas, num_seeds, first_frame, best, notice):
    """`areas`: tokens (of 12) in the mask of each character, for each seed."""
    used = []

    def denoised(transformer, scheduler, conditions, sampling, **_):
        used.append(sampling.seed)
        masks = torch.zeros(2, 1, 3, 4)
        for mask, area in zip(masks.flatten(1), areas[sampling.seed], strict=True):
            mask[:area] = 1.0
        return SimpleNamespace(masks=masks, state=SimpleNamespace(step=2))

    monkeypatch.setattr("bya_core.routing.intra.denoise", denoised)
    scene = replace(prepared.scene, sampling=replace(prepared.scene.sampling, seed=7))
    frame = prepared.conditions.canvas_latents if first_frame else None
    conditions = replace(prepared.conditions, first_frame_latents=frame)
    prepared = with_probe(replace(prepared, scene=scene, conditions=conditions), num_seeds=num_seeds)
    routing = probe(prepared, SimpleNamespace(transformer=None, scheduler_config={}), ProgressTracker())
    assert used == list(areas) and routing.calls == 2 * len(areas)
    assert tuple(routing.masks.sum((1, 2, 3)).tolist()) == areas[best]
    assert len(routing.notices) == (notice is not None) and all(text.startswith(notice) for text in routing.notices)


@pytest.mark.parametrize(
    ("config", "total", "steps"),
    [
        ({}, 16, 6),
        ({}, 50, 20),
        ({}, 1, 1),
        ({"max_fraction": 0.3}, 10, 3),
        ({"steps": 5}, 16, 5),
        ({"steps": 99}, 16, 16),
    ],
)
def test_max_probe_steps(config, total, steps):
    assert max_probe_steps(ProbeConfig(**config), total) == steps


def test_mask_convergence():
    converged = MaskConvergence(ProbeConfig(threshold=0.1))
    masks = torch.zeros(2, 3, 4, 5)
    assert not converged(info(masks))  # nothing to compare with
    assert not converged(info(masks + 0.5))
    assert converged.change == pytest.approx(0.5)
    assert converged(info(masks + 0.55))
    exact = MaskConvergence(ProbeConfig(threshold=0.1, steps=3))
    assert not any(exact(info(masks)) for _ in range(4))  # a fixed number of steps


def test_probe_stops_when_masks_converge(bundle, prepared, uninterrupted):
    _, masks = uninterrupted
    changes = [float((b - a).abs().mean()) for a, b in zip(masks, masks[1:], strict=False)]
    assert changes[0] > changes[-1]
    early = probe(with_probe(prepared, threshold=changes[0] * 1.01, max_fraction=1.0), bundle, ProgressTracker())
    assert early.state.step == 2
    late = probe(with_probe(prepared, threshold=0.0, max_fraction=0.5), bundle, ProgressTracker())
    assert late.state.step == STEPS // 2
    assert torch.equal(late.masks, masks[STEPS // 2 - 1])
    assert not (late.control.strength > 0).any()  # unmodified masks do not act
    assert ((late.confidence > 0.5) & (late.confidence <= 1)).all()


@pytest.mark.parametrize("guidance", [(1.0, 1.0), (1.0, 2.0), (3.0, 2.0)])
def test_resuming_repeats_no_step(bundle, prepared, guidance):
    """With one, two and three guidance branches."""
    text, speech = guidance
    scene = replace(
        prepared.scene,
        sampling=replace(prepared.scene.sampling, steps=3, guidance_scale=text, audio_guidance_scale=speech),
    )
    prepared = replace(prepared, scene=scene)
    with record_calls(bundle.transformer) as calls:
        made = denoise(
            bundle.transformer,
            build_scheduler("dpm", bundle.scheduler_config),
            prepared.conditions,
            scene.sampling,
        )
        whole, once = list(calls.latents), list(calls.timesteps)
        calls.clear()
        routing = probe(with_probe(prepared, steps=2), bundle, ProgressTracker())
        assert routing.calls == len(calls) == 2  # one call for all branches
        video = sample(prepared, routing, bundle)
        assert calls.timesteps == once and len(set(once)) == 3
        assert all(torch.equal(a, b) for a, b in zip(calls.latents, whole, strict=True))
    assert torch.equal(video.masks, made.masks)


def test_resumed_video_equals_uninterrupted_run(bundle, prepared, uninterrupted):
    latents, masks = uninterrupted
    routing = probe(with_probe(prepared, steps=3), bundle, ProgressTracker())
    video = sample(prepared, routing, bundle)
    pixels = bundle.codec.decode(latents)[0].clamp(-1, 1)
    expected = ((pixels + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
    assert torch.equal(video.frames, expected)
    assert torch.equal(video.masks, masks[-1])


def test_edited_masks_act_after_resuming(bundle, prepared, uninterrupted):
    _, masks = uninterrupted
    routing = probe(with_probe(prepared, steps=2), bundle, ProgressTracker())
    swapped = sample(prepared, routing.with_masks(routing.masks.flip(0)), bundle)
    assert torch.allclose(swapped.masks, routing.masks.flip(0))
    assert not torch.allclose(swapped.masks, masks[-1], atol=0.3)


def test_probe_of_all_steps(bundle, prepared, uninterrupted):
    _, masks = uninterrupted
    routing = probe(with_probe(prepared, steps=STEPS + 4), bundle, ProgressTracker())
    assert routing.calls == routing.state.step == STEPS
    with record_calls(bundle.transformer) as calls:
        video = sample(prepared, routing, bundle)
    assert len(calls) == 0 and torch.equal(video.masks, masks[-1])


def test_static_and_refined_masks_act_after_resuming(bundle, prepared):
    scene = replace(
        prepared.scene, routing=RouterConfig(probe=ProbeConfig(steps=2), refine=RefineConfig(), static=True)
    )
    routing = route(replace(prepared, scene=scene), bundle)
    assert (routing.control.strength == 1).all() and routing.state.step == 2
    assert torch.equal(routing.masks, routing.masks[:, :1].expand_as(routing.masks))


def test_cancel():
    bundle = fake_bundle()
    clip = two_puppets(num_frames=9)
    with pytest.raises(Cancelled):
        generate(puppet_scene(bundle, clip, 4), bundle, lambda progress: progress.step < 1 or progress.total == 1)
