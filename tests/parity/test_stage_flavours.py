"""The losses of stage 3 in the official flavour equal those of the released code."""

from __future__ import annotations

import pytest

from tests.parity.parity_models import build_transformer
from tests.parity.test_training import _masks, _train_forward
from tests.parity.weight_rule import fill
from training.engine.objective import StageLoss
from training.engine.recipe import load_recipe
from training.engine.teacher_forcing import TeacherMasks


def test_official_stage_loss(settings, tensors) -> None:
    config, stored = settings("train_config")["tiny"], tensors("train_tiny")
    fixture, inputs = settings("transformer_config"), tensors("transformer_inputs")
    grid, batch = fixture["grid"], len(inputs["timestep"])
    model = fill(build_transformer(fixture), fixture["salt"])
    used, target = (_masks(stored, name, grid, batch) for name in ("noisy_mask.layer", "loss_target.layer"))
    output = _train_forward(model, inputs, used, (inputs["rope_cos"], inputs["rope_sin"]))
    official, paper = (load_recipe(name).stages[3] for name in ("cogvideox5b_official", "cogvideox5b"))
    losses = StageLoss(official)._router_loss(output, target[0], TeacherMasks(used, target))
    for name, value in config["losses"].items():
        assert losses[name].item() == pytest.approx(value, rel=1e-5), name
    diffusion = (output.sample - stored["target"]).square().mean()
    assert (diffusion + losses["total"]).item() == pytest.approx(config["total"], rel=1e-5)
    assert vars(official.official_weights) == pytest.approx(settings("train_config")["loss_weights"])
    # the paper flavour has three terms
    assert set(StageLoss(paper)._router_loss(output, target[0], TeacherMasks(used, target))) == {
        "cross_entropy",
        "smoothness",
        "layer_variance",
        "total",
    }
