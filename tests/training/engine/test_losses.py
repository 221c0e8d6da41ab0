"""Training losses and teacher masks."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import pytest
import torch

from training.engine import losses
from training.engine.teacher_forcing import TeacherConfig, paper_teacher_masks, released_teacher_masks


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_x0_loss_is_the_velocity_error_at_every_noise_level() -> None:
    clean, noise, velocity = (_random(4, 2, 3, 4, 4, seed=s) for s in range(3))
    alpha_bar = torch.tensor([0.999, 0.5, 0.01, 0.0])
    noisy = losses.add_noise(clean, noise, alpha_bar)
    a = alpha_bar.view(-1, 1, 1, 1, 1)
    target = a.sqrt() * noise - (1 - a).sqrt() * clean
    result = losses.x0_loss(velocity, noisy, clean, alpha_bar)
    assert torch.isclose(result, (velocity - target).square().mean(), rtol=1e-4)
    assert losses.x0_loss(target, noisy, clean, alpha_bar) < 1e-5


def test_add_noise_is_that_of_the_scheduler() -> None:
    from diffusers import CogVideoXDPMScheduler

    scheduler = CogVideoXDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    clean, noise = _random(3, 2, 3, 4, 4), _random(3, 2, 3, 4, 4, seed=1)
    t = torch.tensor([0, 500, 999])
    alpha_bar = scheduler.alphas_cumprod[t]
    assert torch.allclose(losses.add_noise(clean, noise, alpha_bar), scheduler.add_noise(clean, noise, t), atol=1e-6)
    velocity = scheduler.get_velocity(clean, noise, t)
    noisy = scheduler.add_noise(clean, noise, t)
    assert torch.allclose(losses.clean_from_velocity(noisy, velocity, alpha_bar), clean, atol=1e-5)


def test_mask_weights_with_and_without_background_weight() -> None:
    tokens = torch.zeros(1, 2, 1, 2, 2)
    tokens[0, 0, 0, 0, 0] = tokens[0, 1, 0, 1, 1] = 1
    weights = losses.mask_weights(tokens, patch=2)
    assert weights.shape == (1, 1, 1, 4, 4)
    assert weights.sum() == 8
    assert losses.mask_weights(tokens, patch=2, background=0.25).min() == 0.25
    loss = torch.zeros(1, 1, 3, 4, 4)
    loss[..., :2, :2] = 1
    assert math.isclose(losses.weighted_mean(loss, weights).item(), 0.5)
    assert math.isclose(losses.weighted_mean(loss, None).item(), 0.25)


def test_background_probability_and_normalized_overlap() -> None:
    masks = torch.tensor([[0.25, 1.0], [0.25, 1.0]]).reshape(1, 2, 1, 1, 2)
    shares = losses.with_background(masks)[0, :, 0, 0]
    assert torch.allclose(shares, torch.tensor([[0.25, 0.5], [0.25, 0.5], [0.5, 0.0]]))


def test_paper_router_loss_is_minimal_for_the_true_masks() -> None:
    masks = torch.zeros(1, 2, 2, 4, 4)
    masks[0, 0, :, :, :2] = 1
    masks[0, 1, :, 1:3, 3] = 1
    true = 12.0 * losses.with_background(masks)[None].repeat(3, 1, 1, 1, 1, 1)
    right = losses.router_loss_paper(true, masks)
    swapped = losses.router_loss_paper(true[:, :, [1, 0, 2]], masks)
    assert right["cross_entropy"] < 1e-3 < 1 < swapped["cross_entropy"]
    assert right["layer_variance"] < 1e-12
    terms = losses.router_loss_paper(_random(3, 1, 3, 2, 4, 4), masks)
    total = terms["cross_entropy"] + 0.001 * terms["smoothness"] + 8 * terms["layer_variance"]
    assert torch.isclose(terms["total"], total)


@pytest.mark.parametrize("characters", [1, 2, 3])
def test_router_losses_take_any_number_of_characters_and_have_gradients(characters: int) -> None:
    target = torch.rand(1, characters, 2, 3, 4)
    logits = _random(1, 1, characters + 1, 2, 3, 4).requires_grad_()
    losses.router_loss_paper(logits, target)["total"].backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    masks = torch.rand(1, 1, characters, 2, 3, 4).requires_grad_()
    losses.router_loss_official(masks, target)["total"].backward()
    assert masks.grad is not None and masks.grad.isfinite().all()


def test_paper_teacher_masks_augment_forced_masks_only() -> None:
    masks = (torch.rand(2, 2, 3, 4, 6, generator=torch.Generator().manual_seed(3)) > 0.5).float()
    before = masks.clone()
    config = TeacherConfig(noise_std=0.1, token_dropout=0.2, layer_dropout=0.5)
    result = paper_teacher_masks(masks, layers=8, config=config, generator=torch.Generator().manual_seed(0))
    assert torch.equal(masks, before)
    assert result.forced.shape == result.target.shape == (8, 2, 2, 3, 4, 6)
    assert (result.target == before).all()
    assert result.forced.min() >= 0 and result.forced.max() <= 1 and not torch.equal(result.forced, result.target)
    dropped = result.forced.flatten(2).amax(-1) == 0
    assert 0 < dropped.sum() < dropped.numel()
    repeated = paper_teacher_masks(masks, layers=8, config=config, generator=torch.Generator().manual_seed(0))
    assert torch.equal(result.forced, repeated.forced)
    plain = paper_teacher_masks(masks, layers=1, config=TeacherConfig(0.0, 0.0, 0.0))
    assert torch.equal(plain.forced, plain.target)


def test_released_teacher_masks_are_static_with_corrupted_targets() -> None:
    labels = torch.full((1, 3, 4, 6), -1)
    labels[0, 0, 0, 0], labels[0, 2, 1, 1] = 0, 1
    clean = released_teacher_masks(labels, 2, 1, noise_std=0, corruption=0, layer_dropout=0)
    assert torch.equal(clean.forced, clean.target)
    assert clean.forced[0, 0, 0, :, 0, 0].eq(1).all() and clean.forced[0, 0, 1, :, 1, 1].eq(1).all()
    assert clean.forced.sum() == 6
    rough = released_teacher_masks(labels, 2, 40, generator=torch.Generator().manual_seed(0))
    share = (rough.target != clean.target).float().mean()
    assert 0.08 < share < 0.12
    assert (rough.forced.flatten(2).amax(-1) == 0).any()


@pytest.mark.parametrize("layers", [2, 21])
def test_factors_between_the_printed_sums_and_the_means(layers: int) -> None:
    characters, size = 2, (4, 12, 15)
    logits = _random(layers, 1, characters + 1, *size)
    target = (_random(1, characters, *size, seed=1) > 1).float()
    ours = losses.router_loss_paper(logits, target)
    log_p = logits.log_softmax(dim=2)
    masks = log_p[:, 0, :-1].exp()
    entropy = -(losses.with_background(target) * log_p).sum()
    gradient = sum(masks.diff(dim=axis).abs().sum() for axis in (-3, -2, -1))
    variance = masks.var(dim=0, unbiased=False).sum()
    factor = (ours["layer_variance"] / ours["cross_entropy"]) / (variance / entropy)
    assert factor == pytest.approx(layers**2 / (characters * (layers - 1)), rel=1e-4)
    assert (ours["smoothness"] / ours["cross_entropy"]) / (gradient / entropy) == pytest.approx(0.5, rel=0.25)


def test_table_of_equations_names_functions_that_cite_them() -> None:
    root = Path(__file__).resolve().parents[3]
    page = (root / "docs" / "explanation" / "fidelity.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| [^|]+ \| `([\w/.]+):(\w+)` \|$", page, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 9))
    for number, file, function in rows:
        tree = ast.parse((root / file).read_text(encoding="utf-8"))
        found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
        cited = [int(n) for node in found for text in re.findall(r"eqs?\. ([\d-]+)", ast.get_docstring(node) or "")
                 for n in range(int(text.split("-")[0]), int(text.split("-")[-1]) + 1)]  # fmt: skip
        assert int(number) in cited, f"{file}:{function} does not cite eq. {number}"
