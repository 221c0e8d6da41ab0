"""The training forward, its losses and its gradients against the released training code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from bya_core.grid import TokenGrid
from bya_core.models.transformer import BindYourAvatarTransformer3DModel, BYATransformerOutput
from tests.parity.parity_models import build_transformer, face_tokens, masks
from tests.parity.weight_rule import fill, input_tensor
from training.engine.losses import OfficialRouterWeights, router_loss_official
from training.engine.teacher_forcing import released_teacher_masks

Stored = dict[str, Tensor]
CLOSE = {"atol": 5e-5, "rtol": 1e-5}


def _per_layer(stored: Stored, name: str, batch: int | None) -> Tensor:
    """Entries `name` + layer number (+ batch number) -> [R, B, S, N]."""
    layers = sorted({int(key[len(name) :].split(".")[0]) for key in stored if key.startswith(name)})
    if batch is None:
        entries = [stored[f"{name}{layer}"] for layer in layers]
        return torch.stack([entry.reshape(1, *entry.shape[-2:]) for entry in entries])
    rows = [[stored[f"{name}{layer}.batch{b}"][0] for b in range(batch)] for layer in layers]
    return torch.stack([torch.stack(row) for row in rows])


def _masks(stored: Stored, name: str, grid: dict[str, int], batch: int | None) -> Tensor:
    """The same as masks [R, B, N, T, h, w]."""
    return torch.stack([masks(layer, grid) for layer in _per_layer(stored, name, batch)])


def _train_forward(
    model: BindYourAvatarTransformer3DModel, inputs: Stored, teacher: Tensor, rotary: tuple[Tensor, Tensor]
) -> BYATransformerOutput:
    return model(
        hidden_states=inputs["hidden_states"],
        encoder_hidden_states=inputs["encoder_hidden_states"],
        timestep=inputs["timestep"],
        image_rotary_emb=rotary,
        face_tokens=face_tokens(model, inputs),
        audio_tokens=model.encode_speech(inputs["audio"]),
        mask_override=teacher,
        run_router=True,
    )


def _compare_losses(ours: dict[str, Tensor], theirs: dict[str, float]) -> None:
    assert theirs.keys() == ours.keys() - {"total"}
    for name, value in theirs.items():
        assert ours[name].item() == pytest.approx(value, rel=1e-5), name


@pytest.fixture
def weights(settings) -> OfficialRouterWeights:
    return OfficialRouterWeights(**settings("train_config")["loss_weights"])


def test_forward_losses_and_gradients(settings, tensors, weights) -> None:
    config, stored = settings("train_config")["tiny"], tensors("train_tiny")
    fixture, inputs = settings("transformer_config"), tensors("transformer_inputs")
    grid, batch = fixture["grid"], len(inputs["timestep"])
    model = fill(build_transformer(fixture), fixture["salt"]).train()
    teacher = _masks(stored, "noisy_mask.layer", grid, batch)
    output = _train_forward(model, inputs, teacher, (inputs["rope_cos"], inputs["rope_sin"]))
    assert_close(output.sample, stored["model_output"], **CLOSE)
    assert_close(output.masks, _masks(stored, "router_pred.ca", grid, batch), **CLOSE)

    targets = _masks(stored, "loss_target.layer", grid, batch)
    losses = router_loss_official(output.masks, targets, weights)
    _compare_losses(losses, config["losses"])
    total = F.mse_loss(output.sample, stored["target"]) + losses["total"]
    assert total.item() == pytest.approx(config["total"], rel=1e-5)

    total.backward()
    theirs = config["grad_norms"]
    ours = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert not [name for name in theirs.keys() - ours.keys() if theirs[name]]  # missing gradients
    assert not [name for name in ours.keys() - theirs.keys() if ours[name]]  # gradients the released code does not have
    for name in theirs.keys() & ours.keys():
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-7), name


def test_forward_and_losses_on_the_released_grid(settings, tensors, weights) -> None:
    config, stored = settings("train_config")["true_grid"], tensors("train_true_grid")
    fixture, salt, grid = settings("transformer_config"), config["salt"], config["grid"]
    changes = {key: value for key, value in config["model"].items() if not key.startswith("is_train")}
    model = fill(build_transformer(fixture | {"router": config["router"]}, **changes), salt)
    rotary = model.rotary(TokenGrid(grid["T"], grid["H"], grid["W"]))
    inputs = _true_grid_inputs(config, fixture, tensors("transformer_inputs"))
    with torch.no_grad():
        output = _train_forward(model, inputs, _masks(stored, "noisy_mask.layer", grid, None), rotary)
        losses = router_loss_official(output.masks, _masks(stored, "loss_target.layer", grid, None), weights)
    assert_close(model.router.pos_emb.double().sum((1, 2)).float(), stored["pos_emb_sum_t"], atol=1e-2, rtol=1e-4)
    assert_close(output.sample[:, ::3, :, ::7, ::9], stored["out_slice"], **CLOSE)
    assert output.sample.mean().item() == pytest.approx(config["out_mean"], abs=1e-5)
    assert output.sample.std().item() == pytest.approx(config["out_std"], abs=1e-5)
    assert_close(output.masks, _masks(stored, "router_pred.ca", grid, None), **CLOSE)
    _compare_losses(losses, config["losses"])


def _true_grid_inputs(config: dict, fixture: dict, tiny: Stored) -> Stored:
    """Generated inputs with the names of the tiny ones and the sizes of the released grid."""
    model, grid = fixture["model"] | config["model"], config["grid"]
    frames = (grid["T"] - 1) * model["temporal_compression_ratio"] + 1
    context = fixture["audio"]["proj"]["seq_len"] - 1
    patch = model["patch_size"]
    latent = grid["T"], model["in_channels"], grid["H"] * patch, grid["W"] * patch
    prefixes = ("id_cond_", "id_vit_", "encoder_hidden_states")
    shapes = {name: (1, *value.shape[1:]) for name, value in tiny.items() if name.startswith(prefixes)}
    shapes["hidden_states"] = (1, *latent)
    shapes["audio"] = (1, tiny["audio"].shape[1], frames + context, *tiny["audio"].shape[3:])
    made = {name: input_tensor(name, shape, config["salt"]) for name, shape in shapes.items()}
    return made | {"timestep": torch.tensor([601])}


@pytest.mark.parametrize("name", ["train_tiny", "train_true_grid"])
def test_teacher_mask_statistics(settings, tensors, name: str) -> None:
    """The random numbers cannot be reproduced, their statistics can."""
    stored, tiny = tensors(name), name == "train_tiny"
    grid = settings("transformer_config")["grid"] if tiny else settings("train_config")["true_grid"]["grid"]
    labels = stored["index_mask"].unflatten(-1, (grid["T"], grid["H"], grid["W"]))
    batch = len(labels) if tiny else None
    target = _masks(stored, "loss_target.layer", grid, batch)
    layers, characters = len(target), target.shape[2]
    drawn_masks = released_teacher_masks(labels, characters, layers, generator=torch.Generator().manual_seed(0))
    clean = released_teacher_masks(labels, characters, layers, noise_std=0, corruption=0, layer_dropout=0).target
    tolerance = 4 * (0.09 / clean.numel()) ** 0.5
    for drawn in (target, drawn_masks.target):
        assert abs((drawn != clean).float().mean() - 0.1) < tolerance
    used = _masks(stored, "noisy_mask.layer", grid, batch)
    for forced, expected in ((used, target), (drawn_masks.forced, drawn_masks.target)):
        present = (forced.flatten(2).amax(-1) > 0)[..., None, None, None, None]
        inside = present & (expected > 0.35) & (expected < 0.65)
        if inside.sum() > 200:
            assert abs((forced - expected)[inside].std() - 0.1) < 0.02
