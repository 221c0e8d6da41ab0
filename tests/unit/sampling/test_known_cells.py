"""Known latents of single cells, as of footage: they stay as they are while the others are denoised."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bya_core.config import SamplingConfig
from bya_core.sampling import build_scheduler, denoise
from tests.unit.sampling.test_denoise import C, H, StandIn, T, W, _conditions

CONFIG = SamplingConfig(steps=5, guidance_scale=1.0, audio_guidance_scale=1.0, seed=3)


@pytest.fixture
def cells() -> torch.Tensor:
    fixed = torch.ones(T, H, W, dtype=torch.bool)
    fixed[1, 1:3, 2:4] = False
    return fixed


@pytest.mark.parametrize("kind", ["dpm", "ddim"])
def test_known_cells_end_as_they_are(cells: torch.Tensor, kind: str) -> None:
    clean = torch.randn(1, T, C, H, W, generator=torch.Generator().manual_seed(1))
    conditions = replace(_conditions(), known_latents=clean, known_mask=cells)
    made = denoise(StandIn(), build_scheduler(kind), conditions, CONFIG).latents
    fixed = cells[None, :, None].expand_as(made)
    assert torch.equal(made[fixed], clean[fixed])
    assert not torch.isclose(made[~fixed], clean[~fixed]).any(), "the free cells are generated"


def test_known_cells_are_noisy_in_every_step(cells: torch.Tensor) -> None:
    clean = torch.full((1, T, C, H, W), 2.0)
    model, scheduler = StandIn(), build_scheduler("ddim")
    denoise(model, scheduler, replace(_conditions(), known_latents=clean, known_mask=cells), CONFIG)
    noise = torch.randn(clean.shape, generator=torch.Generator("cpu").manual_seed(CONFIG.seed))
    for call in model.calls:
        seen = call["hidden_states"][:1, :, :C]
        expected = scheduler.add_noise(clean, noise, call["timestep"][:1].long())
        fixed = cells[None, :, None].expand_as(seen)
        assert torch.allclose(seen[fixed], expected[fixed], atol=1e-5)


def test_start_skips_steps_and_begins_from_the_known_latents(cells: torch.Tensor) -> None:
    clean = torch.full((1, T, C, H, W), 2.0)
    model, scheduler = StandIn(), build_scheduler("ddim")
    conditions = replace(_conditions(), known_latents=clean, known_mask=cells, start=0.6)
    denoise(model, scheduler, conditions, CONFIG)
    assert len(model.calls) == 2, "three of five steps are skipped"
    noise = torch.randn(clean.shape, generator=torch.Generator("cpu").manual_seed(CONFIG.seed))
    expected = scheduler.add_noise(clean, noise, model.calls[0]["timestep"][:1].long())
    assert torch.allclose(model.calls[0]["hidden_states"][:1, :, :C], expected, atol=1e-5), "also the free cells"


def test_at_least_one_step_is_run(cells: torch.Tensor) -> None:
    model = StandIn()
    conditions = replace(_conditions(), known_latents=torch.zeros(1, T, C, H, W), known_mask=cells, start=0.999)
    denoise(model, build_scheduler("ddim"), conditions, CONFIG)
    assert len(model.calls) == 1
