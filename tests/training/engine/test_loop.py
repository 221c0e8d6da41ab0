"""The training loop: stages, adapters, precision and limits."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights.lora import lora_pairs, merge_pairs_into
from tests.training.run_parts import lines, losses, run
from tests.training.stage_parts import SMALL, small_batch, small_model
from training.engine.lora import LORA_FILE, add_lora, load_model
from training.engine.objective import StageLoss
from training.engine.optim import select_trainable, unused_prefixes
from training.engine.recipe import load_recipe
from training.engine.stages import FLAVOURS, PUBLISHED, Lora

RANK_4 = Lora(rank=4, alpha=8)


@pytest.fixture(autouse=True)
def reset_accelerate():
    """accelerate keeps one state per process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def published(number, **changes):
    """A stage of the paper with adapters of rank 4 and a learning rate for a few dozen steps."""
    stage = PUBLISHED[number]
    optimizer = replace(stage.optimizer, lr=1e-2, warmup_steps=5)
    lora = None if stage.lora is None else RANK_4
    return replace(stage, **{"batch_size": 3, "lora": lora, "optimizer": optimizer, "steps": 50, **changes})


def relative_decrease(log_lines):
    """Relative difference of the loss between the first and the last ten steps."""
    values = [line["step_loss"] for line in log_lines]
    return 1 - sum(values[-10:]) / sum(values[:10])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_published_stages_train_only_their_parameters(number, data, tmp_path):
    model, stage = small_model(), published(number)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    summary = run(data, stage, tmp_path, model)
    log_lines = lines(tmp_path)
    assert relative_decrease(log_lines) > 0.05
    assert ("router_iou" in log_lines[-1]) == (number == 3)
    if number == 3:
        assert log_lines[-1]["cross_entropy"] < 0.95 * log_lines[0]["cross_entropy"]
    after = {name.replace(".base_layer", ""): p for name, p in model.named_parameters()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if number == 1:
        assert changed == {name for name in before if not name.startswith(("audio_model", "router"))}
    else:
        assert changed and all(name.startswith(stage.trainable) for name in changed)
        assert all(p.any() for name, p in model.named_parameters() if "lora_B" in name)
    assert summary["steps"] == 50 and summary["samples_per_second"] > 0
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored["measured"]["diffusion"] == summary["diffusion"] and stored["processes"] == 1


def test_toy_recipe_trains_with_muon_and_adamw(data, tmp_path):
    stage = load_recipe("toy").stages[3]
    stage = replace(stage, batch_size=3, steps=40, condition_dropout=replace(stage.condition_dropout, first_frame=0.0))
    torch.manual_seed(0)
    run(data, stage, tmp_path, BindYourAvatarTransformer3DModel(**SMALL))
    assert relative_decrease(lines(tmp_path)) > 0.05


@pytest.mark.parametrize("flavour", ["paper", "official"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_all_trainable_parameters_get_a_gradient(flavour, number):
    """Distributed processes would wait forever for a missing gradient."""
    stage, model = FLAVOURS[flavour][number], small_model(flavour=flavour)
    if stage.lora is not None:
        add_lora(model, RANK_4)
    select_trainable(model, stage.trainable, unused_prefixes(stage))
    StageLoss(stage)(model, small_batch(), 0)[0].backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_adapters_are_saved_in_the_released_format_and_load_merged_or_separate(data, tmp_path):
    trained = small_model()
    run(data, published(2, steps=8), tmp_path, trained)
    final = tmp_path / "final"
    lora = load_file(final / LORA_FILE)
    assert "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight" in lora
    assert len(lora) == 2 * 2 * SMALL["num_layers"]
    info = json.loads((final / "run.json").read_text())
    assert info["lora"]["merged"] is False and info["lora"]["rank"] == 4 and info["stage"]["number"] == 2

    @torch.no_grad()
    def predict(model):
        batch = small_batch()
        images = torch.cat([batch["canvas"], batch["first_frame"]], 1)[:, None].repeat(1, 2, 1, 1, 1)
        latents, timestep = torch.cat([batch["latents"], images], 2), torch.full((4,), 500)
        faces = model.encode_faces(batch["identity"], batch["hidden"])
        return model.eval()(latents, batch["text"], timestep, face_tokens=faces, mask_override=batch["masks"]).sample

    expected = predict(trained)
    base = BindYourAvatarTransformer3DModel.from_pretrained(final)
    assert (predict(base) - expected).abs().max() > 1e-4
    merge_pairs_into(base, lora_pairs(lora))  # scale 1, as for the released file
    separate, merged, other_rank = load_model(final, RANK_4), load_model(final), load_model(final, Lora(2, 2))
    for model in (base, separate, merged, other_rank):
        assert (predict(model) - expected).abs().max() < 1e-5
    adapters = {name: p for name, p in trained.named_parameters() if "lora_A" in name}
    assert adapters and all(torch.equal(p, separate.get_parameter(name)) for name, p in adapters.items())
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_unknown_lora_target_raises():
    with pytest.raises(InputError, match="attn9"):
        add_lora(small_model(), Lora(targets=("attn9.to_q",)))


def test_accumulation_and_gradient_checkpointing_do_not_change_losses(data, tmp_path):
    stage = published(3, steps=6, batch_size=4)
    options = {
        "plain": {},
        "accumulated": {"gradient_accumulation_steps": 2},
        "recomputed": {"gradient_checkpointing": True},
    }
    for name, changes in options.items():
        run(data, stage, tmp_path / name, **changes)
        for step, values in losses(tmp_path / name).items():
            assert values == pytest.approx(losses(tmp_path / "plain")[step], abs=1e-4), (name, step)


def test_half_precision_is_close_and_casts_frozen_weights(data, tmp_path):
    stage, model = published(3, steps=6), small_model()
    run(data, stage, tmp_path / "full")
    AcceleratorState._reset_state(reset_partial_state=True)
    run(data, stage, tmp_path / "half", model, mixed_precision="bf16", cast_frozen_weights=True)
    dtypes = {(p.requires_grad, p.dtype) for p in model.parameters() if p.ndim >= 2}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    full, half = losses(tmp_path / "full"), losses(tmp_path / "half")
    assert half[6][0] == pytest.approx(full[6][0], rel=0.05) and half[6] != full[6]


def test_callback_gets_the_ema_weights_that_are_saved_and_a_tracker(data, tmp_path):
    seen = {}

    class Callback:
        every, tracker = 4, None

        def __call__(self, step, means, model):
            seen[step] = model.proj_out.weight.clone()
            self.tracker.log({"iou": 0.5}, step, "validation")
            self.tracker.log_image("masks", Image.new("RGB", (8, 6), "red"), step)

    stage = published(1, steps=8, optimizer=replace(published(1).optimizer, ema_decay=0.9))
    run(data, stage, tmp_path, callback=Callback())
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    last, mean = (load_file(newest / f"{name}.safetensors")["proj_out.weight"] for name in ("weights", "ema"))
    final = load_model(tmp_path / "final").proj_out.weight
    assert torch.equal(final, mean) and torch.equal(seen[8], mean) and not torch.equal(last, mean)
    validations = [line for line in lines(tmp_path) if line.get("kind") == "validation"]
    assert [(line["step"], line["iou"]) for line in validations] == [(4, 0.5), (8, 0.5)]
    assert (tmp_path / "images" / "step-00000008" / "masks.png").is_file()


def test_8bit_adam_trains_and_resumes(data, tmp_path):
    pytest.importorskip("bitsandbytes")
    stage = published(2, steps=12)
    stage = replace(stage, optimizer=replace(stage.optimizer, lr_schedule="constant"))
    for name, steps in (("one", 12), ("two", 6), ("two", 12)):
        run(data, replace(stage, steps=steps), tmp_path / name, use_8bit_adam=True)
    one, two = (lines(tmp_path / name) for name in ("one", "two"))
    assert [line["step_loss"] for line in one] == [line["step_loss"] for line in two]
    assert one[-1]["diffusion"] < one[0]["diffusion"]


def test_incompatible_settings_raise_before_writing(data, tmp_path):
    with pytest.raises(InputError, match="at least one sample each"):
        run(data, published(2), tmp_path / "run", gradient_accumulation_steps=4)
    assert not (tmp_path / "run").exists()


def test_max_minutes_limits_a_run(data, tmp_path, monkeypatch):
    seconds = itertools.count()  # a step takes one second
    monkeypatch.setattr("training.engine.timer.time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    summary = run(data, published(1, steps=10**6), tmp_path, max_minutes=0.25)
    assert summary["steps"] == 15 and summary["minutes"] == pytest.approx(0.25)
    rates = [line["lr"] for line in lines(tmp_path)]
    assert rates[-1] < 0.5 * max(rates)
