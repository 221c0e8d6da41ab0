"""The training loop: every stage learns what it should and nothing else, in every way it can be run."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights.lora import merge_lora_into
from tests.training.run_parts import lines, losses, write_data
from tests.training.stage_parts import SMALL, small_batch, small_model
from training.data.dataset import ClipFolder, as_float
from training.engine.loop import RunSettings, train
from training.engine.lora import LORA_FILE, add_lora, load_model
from training.engine.objective import StageLoss
from training.engine.optim import idle_parts, select_trainable
from training.engine.stages import FLAVOURS, PUBLISHED, Lora, load_recipe
from training.engine.trackers import Tracker

RANK_4 = Lora(rank=4, alpha=8)


@pytest.fixture(autouse=True)
def fresh_state():
    """accelerate keeps one state per process; every run here begins without."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("clips") / "data")


def published(number, **changes):
    """A stage of the paper, quicker: adapters of rank 4 and a learning rate for a few dozen steps."""
    stage = PUBLISHED[number]
    optimiser = replace(stage.optimiser, lr=1e-2, warmup=5)
    lora = None if stage.lora is None else RANK_4
    return replace(stage, **{"batch": 3, "lora": lora, "optimiser": optimiser, "steps": 50, **changes})


def new_model():
    torch.manual_seed(0)
    return BindYourAvatarTransformer3DModel(**SMALL)


def settings(output, **changes):
    return RunSettings(output, **{"log_every": 1, "tensorboard": False, **changes})


def fallen(told):
    """By how much the loss is lower in the last ten steps than in the first ten."""
    values = [line["loss_now"] for line in told]
    return 1 - sum(values[-10:]) / sum(values[:10])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_published_stage_learns_and_leaves_the_rest_alone(number, data, tmp_path):
    network = small_model()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    stage = published(number)
    summary = train(network, ClipFolder(data), stage, settings(tmp_path / "run"))
    told = lines(tmp_path / "run")
    assert fallen(told) > 0.05
    assert ("router_iou" in told[-1]) == (number == 3)
    if number == 3:
        assert told[-1]["cross_entropy"] < 0.95 * told[0]["cross_entropy"]
    after = {name.replace(".base_layer", ""): p for name, p in network.named_parameters()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    if number == 1:
        assert changed == {name for name in before if not name.startswith(("audio_model", "router"))}
    else:
        assert changed and all(name.startswith(stage.trainable) for name in changed)
        assert all(p.any() for name, p in network.named_parameters() if "lora_B" in name)
    assert summary["steps"] == 50 and summary["samples_per_second"] > 0
    again = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert again["measured"]["diffusion"] == summary["diffusion"] and again["processes"] == 1


def test_the_toy_recipe_learns_with_two_optimisers(data, tmp_path):
    stage = load_recipe("toy").stages[3]
    stage = replace(stage, batch=3, steps=40, drops=replace(stage.drops, first_frame=0.0))
    train(new_model(), ClipFolder(data), stage, settings(tmp_path / "run"))
    assert fallen(lines(tmp_path / "run")) > 0.05


@pytest.mark.parametrize("flavour", ["paper", "official"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_everything_that_learns_gets_a_gradient(flavour, number):
    """Several processes wait for each other's gradients: one that never comes would stop them."""
    stage, network = FLAVOURS[flavour][number], small_model(flavour=flavour)
    if stage.lora is not None:
        add_lora(network, RANK_4)
    select_trainable(network, stage.trainable, idle_parts(stage))
    StageLoss(stage)(network, small_batch(), 0)[0].backward()
    assert not [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]


def test_stage_three_trains_the_router_from_its_own_loss_only(data):
    batch = as_float(next(ClipFolder(data).batches(3, 0)))
    network = small_model()
    _, parts = StageLoss(published(3))(network, batch, 0)
    parts["diffusion"].backward()
    named = dict(network.named_parameters())
    assert all(p.grad is None or not p.grad.any() for name, p in named.items() if name.startswith("router"))
    assert any(p.grad is not None and p.grad.any() for name, p in named.items() if name.startswith("audio_model"))


def test_adapters_are_written_in_the_released_format_and_load_merged_or_to_go_on(data, tmp_path):
    network = small_model()
    train(network, ClipFolder(data), published(2, steps=8), settings(tmp_path / "run"))
    final, network = tmp_path / "run" / "final", network.eval()
    lora = load_file(final / LORA_FILE)
    assert "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight" in lora
    assert len(lora) == 2 * 2 * SMALL["num_layers"]
    about = json.loads((final / "run.json").read_text())
    assert about["lora"]["merged"] is False and about["lora"]["rank"] == 4 and about["stage"]["number"] == 2

    def told(model):
        batch = small_batch()
        images = torch.cat([batch["canvas"], batch["first_frame"]], 1)[:, None].repeat(1, 2, 1, 1, 1)
        latents, steps = torch.cat([batch["latents"], images], 2), torch.full((4,), 500)
        faces = model.encode_faces(batch["identity"], batch["hidden"])
        with torch.no_grad():
            return model.eval()(latents, batch["text"], steps, face_tokens=faces, mask_override=batch["masks"]).sample

    unmerged = BindYourAvatarTransformer3DModel.from_pretrained(final)
    assert (told(unmerged) - told(network)).abs().max() > 1e-4
    merge_lora_into(unmerged, lora)  # as the released file is merged: scale 1
    gone_on, merged, other = load_model(final, RANK_4), load_model(final), load_model(final, Lora(rank=2, alpha=2))
    for model in (unmerged, gone_on, merged, other):
        assert (told(model) - told(network)).abs().max() < 1e-5
    weights = dict(gone_on.named_parameters())
    kept = {name: p for name, p in network.named_parameters() if "lora_A" in name}
    assert kept and all(torch.equal(p, weights[name]) for name, p in kept.items())
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_wrong_lora_targets_are_named():
    with pytest.raises(InputError, match="attn9"):
        add_lora(small_model(), Lora(targets=("attn9.to_q",)))


def test_accumulation_and_gradient_checkpointing_change_the_memory_not_the_losses(data, tmp_path):
    stage, clips = published(3, steps=6, batch=4), ClipFolder(data)
    train(small_model(), clips, stage, settings(tmp_path / "plain"))
    train(small_model(), clips, stage, settings(tmp_path / "slices", accumulation=2))
    train(small_model(), clips, stage, settings(tmp_path / "again", gradient_checkpointing=True))
    expected = losses(tmp_path / "plain")
    for run in ("slices", "again"):
        for step, values in losses(tmp_path / run).items():
            assert values == pytest.approx(expected[step], abs=1e-4), (run, step)


def test_half_precision_stays_near_and_halves_what_is_frozen(data, tmp_path):
    stage, clips = published(3, steps=6), ClipFolder(data)
    train(small_model(), clips, stage, settings(tmp_path / "full"))
    AcceleratorState._reset_state(reset_partial_state=True)
    network = small_model()
    train(network, clips, stage, settings(tmp_path / "half", precision="bf16", half_frozen=True))
    kinds = {(p.requires_grad, p.dtype) for p in network.parameters() if p.ndim >= 2}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    full, half = losses(tmp_path / "full"), losses(tmp_path / "half")
    assert half[6][0] == pytest.approx(full[6][0], rel=0.05) and half[6] != full[6]


def test_the_average_of_the_weights_is_what_is_kept_and_looked_at(data, tmp_path):
    optimiser = replace(published(1).optimiser, ema=0.9)
    seen = {}

    class Watch:
        every, tracker = 4, None

        def __call__(self, step, means, model):
            seen[step] = model.proj_out.weight.clone()
            self.tracker.scalars({"iou": 0.5}, step)
            self.tracker.image("masks", Image.new("RGB", (8, 6), "red"), step)

    stage = published(1, steps=8, optimiser=optimiser)
    train(small_model(), ClipFolder(data), stage, settings(tmp_path / "run"), watch=Watch())
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    last, mean = (load_file(newest / f"{name}.safetensors")["proj_out.weight"] for name in ("weights", "ema"))
    kept = load_model(tmp_path / "run" / "final").proj_out.weight
    assert torch.equal(kept, mean) and torch.equal(seen[8], mean) and not torch.equal(last, mean)
    assert list(seen) == [4, 8]
    told = [line for line in lines(tmp_path / "run") if line.get("kind") == "validation"]
    assert [line["iou"] for line in told] == [0.5, 0.5]
    assert (tmp_path / "run" / "pictures" / "step-00000008" / "masks.png").is_file()


def test_an_optimiser_in_eight_bits_learns_and_resumes(data, tmp_path):
    pytest.importorskip("bitsandbytes")
    stage, clips = published(2, steps=12), ClipFolder(data)
    train(small_model(), clips, stage, settings(tmp_path / "whole", eight_bit=True))
    told = lines(tmp_path / "whole")
    assert told[-1]["diffusion"] < told[0]["diffusion"]
    constant = replace(stage, optimiser=replace(stage.optimiser, decay="constant"))
    train(small_model(), clips, constant, settings(tmp_path / "one", eight_bit=True))
    train(small_model(), clips, replace(constant, steps=6), settings(tmp_path / "two", eight_bit=True))
    train(small_model(), clips, constant, settings(tmp_path / "two", eight_bit=True))
    one, two = ([line["loss_now"] for line in lines(tmp_path / run)] for run in ("one", "two"))
    assert one == two


def test_what_does_not_go_together_is_refused_before_anything_is_written(data, tmp_path):
    with pytest.raises(InputError, match="at least one sample each"):
        train(small_model(), ClipFolder(data), published(2), settings(tmp_path / "run", accumulation=4))
    assert not (tmp_path / "run").exists()


def test_a_line_tells_speed_and_what_is_left_and_curves_go_to_tensorboard(data, tmp_path, caplog):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    caplog.set_level("INFO")
    train(small_model(), ClipFolder(data), published(1, steps=6), settings(tmp_path / "run", tensorboard=True))
    train(small_model(), ClipFolder(data), published(1, steps=9), settings(tmp_path / "run", tensorboard=True))
    line = lines(tmp_path / "run")[2]
    assert {"loss", "lr", "samples_per_second", "minutes_left", "skipped"} <= set(line)
    assert "samples_per_second" in caplog.text and "left" in caplog.text
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [point.step for point in board.Scalars("train/diffusion")] == list(range(1, 10))


def test_what_was_written_after_the_last_checkpoint_is_taken_out_again(tmp_path):
    with Tracker(tmp_path, tensorboard=False) as tracker:
        for step in (1, 2, 3):
            tracker.line({"loss": float(step)}, step)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')  # cut off by a kill
    with Tracker(tmp_path, 2, tensorboard=False) as tracker:
        tracker.line({"loss": 9.0}, 3)
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 9.0)]


def test_wandb_gets_the_curves_and_a_restart_goes_on_with_its_run(tmp_path, monkeypatch):
    import sys
    import types

    began, told = [], []
    run = types.SimpleNamespace(id="abc", log=told.append, finish=lambda: None)
    fake = types.SimpleNamespace(init=lambda **given: began.append(given) or run, Image=lambda picture: picture)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        with Tracker(tmp_path, tensorboard=False, wandb="mine") as tracker:
            tracker.line({"loss": 1.0}, 1)
    assert [given["id"] for given in began] == [None, "abc"] and began[0]["project"] == "mine"
    assert told[0] == {"train/loss": 1.0, "step": 1}
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb"):
        Tracker(tmp_path, tensorboard=False, wandb="mine")


def test_a_run_by_the_clock_ends_by_the_clock(data, tmp_path):
    stage = published(1, steps=10**6)
    summary = train(small_model(), ClipFolder(data), stage, settings(tmp_path / "run", minutes=0.02))
    assert 0.02 <= summary["minutes"] < 0.2 and 0 < summary["steps"] < 10**6
    told = lines(tmp_path / "run")
    assert told[-1]["lr"] < 0.5 * max(line["lr"] for line in told)


def test_published_stages_train_what_the_paper_says():
    network = new_model()
    router = select_trainable(network, PUBLISHED[3].trainable)
    assert any(name.startswith("router.") for name in router)
    assert not any(
        name.startswith(("transformer_blocks", "local_facial_extractor", "audio_model.audio_proj")) for name in router
    )
