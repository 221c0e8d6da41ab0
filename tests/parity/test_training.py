"""The training forward, its losses and its gradients against the released training code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bya_core.grid import TokenGrid
from bya_core.models.rope import rotary_embedding
from bya_core.models.transformer import BindYourAvatarTransformer3DModel, BYATransformerOutput
from tests.parity.support import (
    build_transformer,
    columns_to_masks,
    faces,
    largest_error,
    needs_fixtures,
    read_json,
    read_tensors,
    transformer_arguments,
)
from tests.parity.weight_rule import input_tensor
from training.losses import OfficialRouterWeights, router_loss_official
from training.teacher_forcing import released_teacher

pytestmark = needs_fixtures

Stored = dict[str, Tensor]


def _shape(grid: dict[str, int]) -> tuple[int, int, int]:
    return grid["T"], grid["H"], grid["W"]


def _per_layer(stored: Stored, name: str, batch: int | None) -> Tensor:
    """Entries `name` + layer number (+ batch number) -> [R, B, S, N]."""
    layers = sorted({int(key[len(name) :].split(".")[0]) for key in stored if key.startswith(name)})
    if batch is None:
        return torch.stack([stored[f"{name}{layer}"].reshape(1, -1, 2) for layer in layers])
    rows = [[stored[f"{name}{layer}.batch{b}"][0] for b in range(batch)] for layer in layers]
    return torch.stack([torch.stack(row) for row in rows])


def _masks(stored: Stored, name: str, shape: tuple[int, int, int], batch: int | None) -> Tensor:
    return columns_to_masks(_per_layer(stored, name, batch), shape)


def _train_forward(
    model: BindYourAvatarTransformer3DModel, inputs: Stored, teacher: Tensor, rotary: tuple[Tensor, Tensor]
) -> BYATransformerOutput:
    identity, hidden = faces(inputs)
    return model(
        hidden_states=inputs["hidden_states"],
        encoder_hidden_states=inputs["encoder_hidden_states"],
        timestep=inputs["timestep"],
        image_rotary_emb=rotary,
        face_tokens=model.encode_faces(identity, hidden),
        audio_tokens=model.encode_speech(inputs["audio"]),
        forced_masks=teacher,
        run_router=True,
    )


def _losses(output: BYATransformerOutput, targets: Tensor) -> dict[str, Tensor]:
    weights = OfficialRouterWeights(**read_json("train_config")["loss_weights"])
    assert output.masks is not None
    return router_loss_official(output.masks, targets, weights)


def _compare_losses(ours: dict[str, Tensor], theirs: dict[str, float]) -> None:
    assert theirs.keys() == ours.keys() - {"total"}
    for name, value in theirs.items():
        assert ours[name].item() == pytest.approx(value, rel=1e-5), name


def test_training_forward_losses_and_every_gradient() -> None:
    config, stored = read_json("train_config")["tiny"], read_tensors("train_tiny")
    built = read_json("transformer_config")
    inputs, shape = read_tensors("transformer_inputs"), _shape(built["grid"])
    batch = len(inputs["timestep"])
    model = build_transformer(transformer_arguments(built), built["salt"]).train()
    teacher = _masks(stored, "noisy_mask.layer", shape, batch)
    output = _train_forward(model, inputs, teacher, (inputs["rope_cos"], inputs["rope_sin"]))
    assert largest_error(output.sample, stored["model_output"]) < 5e-5
    assert largest_error(output.masks, _masks(stored, "router_pred.ca", shape, batch)) < 5e-5

    losses = _losses(output, _masks(stored, "loss_target.layer", shape, batch))
    _compare_losses(losses, config["losses"])
    total = F.mse_loss(output.sample, stored["target"]) + losses["total"]
    assert total.item() == pytest.approx(config["total"], rel=1e-5)

    total.backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    missing = config["grad_norms"].keys() - norms.keys()
    assert all(config["grad_norms"][name] == 0 for name in missing), missing
    assert all(norms[name] == 0 for name in norms.keys() - config["grad_norms"].keys())
    for name in config["grad_norms"].keys() & norms.keys():
        assert norms[name] == pytest.approx(config["grad_norms"][name], rel=1e-4, abs=1e-7), name


def test_training_forward_and_losses_on_the_true_grid() -> None:
    config, stored = read_json("train_config")["true_grid"], read_tensors("train_true_grid")
    built, shape, salt = read_json("transformer_config"), _shape(config["grid"]), config["salt"]
    arguments = transformer_arguments(built | {"router": config["router"]}, built["model"] | config["model"])
    model = build_transformer(arguments, salt)
    grid = TokenGrid(*shape)
    teacher = _masks(stored, "noisy_mask.layer", shape, None)
    with torch.no_grad():
        output = _train_forward(
            model,
            _true_grid_inputs(config, built, salt),
            teacher,
            rotary_embedding(grid, config["model"]["attention_head_dim"], shape[1:]),
        )
        losses = _losses(output, _masks(stored, "loss_target.layer", shape, None))
    assert largest_error(output.sample[:, ::3, :, ::7, ::9], stored["out_slice"]) < 5e-5
    assert output.sample.mean().item() == pytest.approx(config["out_mean"], abs=1e-5)
    assert output.sample.std().item() == pytest.approx(config["out_std"], abs=1e-5)
    assert largest_error(output.masks, _masks(stored, "router_pred.ca", shape, None)) < 5e-5
    _compare_losses(losses, config["losses"])


def _true_grid_inputs(config: dict, built: dict, salt: str) -> Stored:
    """Inputs by rule; which ones and how large follows from the tiny inputs and the true grid."""
    tiny, model, proj = read_tensors("transformer_inputs"), config["model"], built["audio"]["proj"]
    frames = (config["grid"]["T"] - 1) * built["model"]["temporal_compression_ratio"] + 1
    channels, patch = model["in_channels"], model["patch_size"]
    size = (config["grid"]["H"] * patch, config["grid"]["W"] * patch)
    streams, context = tiny["audio"].shape[1], proj["seq_len"] - 1
    shapes = {
        "hidden_states": (1, config["grid"]["T"], channels, *size),
        "encoder_hidden_states": (1, *tiny["encoder_hidden_states"].shape[1:]),
        "audio": (1, streams, frames + context, proj["blocks"], proj["channels"]),
        **{k: (1, *v.shape[1:]) for k, v in tiny.items() if k.startswith(("id_cond_", "id_vit_"))},
    }
    made = {name: torch.from_numpy(input_tensor(name, shape, salt)) for name, shape in shapes.items()}
    return made | {"timestep": torch.tensor([601])}


@pytest.mark.parametrize("name", ["train_tiny", "train_true_grid"])
def test_teacher_masks_follow_the_released_rule(name: str) -> None:
    """What is random there cannot be drawn again; everything around it can be checked."""
    stored = read_tensors(name)
    grid = (
        read_json("transformer_config")["grid"]
        if name == "train_tiny"
        else read_json("train_config")["true_grid"]["grid"]
    )
    shape = _shape(grid)
    labels = stored["index_mask"].unflatten(-1, shape)
    batch = len(labels) if name == "train_tiny" else None
    target = _masks(stored, "loss_target.layer", shape, batch)
    ours = released_teacher(labels, target.shape[2], len(target), generator=torch.Generator().manual_seed(0))
    clean = released_teacher(labels, target.shape[2], len(target), noise=0, corrupt=0, drop_masks=0).target
    changed, ours_changed = (target != clean).float().mean(), (ours.target != clean).float().mean()
    assert abs(changed - 0.1) < 0.04 and abs(ours_changed - 0.1) < 0.04
    used = _masks(stored, "noisy_mask.layer", shape, batch)
    alive = used.flatten(2).amax(-1) > 0
    inside = alive[..., None, None, None, None] & (used > 0) & (used < 1) & (target > 0.5) & (target < 1)
    if inside.sum() > 500:
        assert (used - target)[inside].std() < 0.1
    middle = alive[..., None, None, None, None] & (target > 0.3) & (target < 0.7)
    if middle.sum() > 500:
        assert abs((used - target)[middle].std() - 0.1) < 0.01
