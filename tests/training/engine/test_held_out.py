"""A share of the training data is held out, evaluated before the first step and regularly, and never trained on."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest
import torch

from bya_core.errors import InputError
from tests.training.run_parts import lines, run
from tests.training.stage_parts import small_model
from training.data.clip_folder import ClipFolder
from training.data.dataset import open_data
from training.engine.held_out import HeldOut, hold_out
from training.engine.stages import PUBLISHED

STAGE = replace(PUBLISHED[3], batch_size=3, steps=4, lora=None)


def _open(kind, data):
    if kind == "puppets":
        return open_data("puppets:n=1/2,clips=9,frames=1", "toy")
    return ClipFolder(data, in_memory=kind == "memory")


@pytest.mark.parametrize("kind", ["folder", "memory", "puppets"])
def test_parts_are_disjoint_complete_and_reproducible(kind, data):
    clips = _open(kind, data)
    train, held = hold_out(clips, 0.25)
    assert sorted(train.names() + held.names()) == sorted(clips.names()) and set(train.names()).isdisjoint(held.names())
    assert len(held.names()) == round(0.25 * len(clips.names())) and train.clips + held.clips == clips.clips
    assert hold_out(_open(kind, data), 0.25)[1].names() == held.names()
    assert train.description != clips.description


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_batches_of_a_part_have_its_clips_only(kind, data):
    clips = _open(kind, data)
    _, held = hold_out(clips, 0.2)
    batches = [batch["latents"] for batch in islice(held.batches(2, 0), 8)]
    stored = [clips._clip(*clip)["latents"] for group in held.groups.values() for clip in group]
    for sample in (sample for batch in batches for sample in batch):
        assert any(sample.shape == each.shape and torch.equal(sample, each) for each in stored)


def test_metrics_are_reproducible_and_leave_the_model_unchanged(data):
    _, held = hold_out(ClipFolder(data), 0.3)
    evaluate, model = HeldOut(held, STAGE, 2), small_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = evaluate(0, {}, model), evaluate(2, {}, model)
    assert first == second and {"held_out_loss", "held_out_diffusion", "held_out_router_iou"} <= first.keys()
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("every", "steps"), [(2, [0, 2, 4]), (3, [0, 3, 4]), (500, [0, 4])])
def test_held_out_loss_is_logged_before_the_first_and_after_the_last_step(data, tmp_path, every, steps):
    train, held = hold_out(ClipFolder(data), 0.2)
    run(train, STAGE, tmp_path, callback=HeldOut(held, STAGE, every))
    logged = [line for line in lines(tmp_path) if line.get("kind") == "validation"]
    assert [line["step"] for line in logged] == steps and logged[0]["held_out_loss"] > 0


def test_a_single_clip_cannot_be_split():
    with pytest.raises(InputError, match="two clips"):
        hold_out(open_data("puppets:n=1,clips=1,frames=1", "toy"), 0.1)
