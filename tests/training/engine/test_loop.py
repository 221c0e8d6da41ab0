"""The training loop: stages, adapters, precision, trackers and limits."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType
from PIL import Image
from safetensors.torch import load_file

from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights.lora import merge_lora_into
from tests.training.run_parts import lines, losses, write_data
from tests.training.stage_parts import SMALL, small_batch, small_model
from training.data.dataset import ClipFolder
from training.engine.distributed import build_accelerator
from training.engine.loop import RunSettings, train
from training.engine.lora import LORA_FILE, add_lora, load_model
from training.engine.objective import StageLoss
from training.engine.optim import select_trainable, unused_prefixes
from training.engine.stages import FLAVOURS, PUBLISHED, Lora, load_recipe
from training.engine.trackers import MetricLog

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
    optimizer = replace(stage.optimizer, lr=1e-2, warmup_steps=5)
    lora = None if stage.lora is None else RANK_4
    return replace(stage, **{"batch_size": 3, "lora": lora, "optimizer": optimizer, "steps": 50, **changes})


def new_model():
    torch.manual_seed(0)
    return BindYourAvatarTransformer3DModel(**SMALL)


def settings(output, **changes):
    return RunSettings(output, **{"logging_steps": 1, "report_to": (), **changes})


def relative_decrease(log_lines):
    """By how much the loss is lower in the last ten steps than in the first ten."""
    values = [line["step_loss"] for line in log_lines]
    return 1 - sum(values[-10:]) / sum(values[:10])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_published_stages_train_only_their_parameters(number, data, tmp_path):
    network = small_model()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    stage = published(number)
    summary = train(network, ClipFolder(data), stage, settings(tmp_path / "run"))
    log_lines = lines(tmp_path / "run")
    assert relative_decrease(log_lines) > 0.05
    assert ("router_iou" in log_lines[-1]) == (number == 3)
    if number == 3:
        assert log_lines[-1]["cross_entropy"] < 0.95 * log_lines[0]["cross_entropy"]
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


def test_toy_recipe_trains_with_muon_and_adamw(data, tmp_path):
    stage = load_recipe("toy").stages[3]
    stage = replace(stage, batch_size=3, steps=40, condition_dropout=replace(stage.condition_dropout, first_frame=0.0))
    train(new_model(), ClipFolder(data), stage, settings(tmp_path / "run"))
    assert relative_decrease(lines(tmp_path / "run")) > 0.05


@pytest.mark.parametrize("flavour", ["paper", "official"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_all_trainable_parameters_get_a_gradient(flavour, number):
    """Several processes wait for each other's gradients: one that never comes would stop them."""
    stage, network = FLAVOURS[flavour][number], small_model(flavour=flavour)
    if stage.lora is not None:
        add_lora(network, RANK_4)
    select_trainable(network, stage.trainable, unused_prefixes(stage))
    StageLoss(stage)(network, small_batch(), 0)[0].backward()
    assert not [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]


def test_adapters_are_saved_in_the_released_format_and_load_merged_or_separate(data, tmp_path):
    network = small_model()
    train(network, ClipFolder(data), published(2, steps=8), settings(tmp_path / "run"))
    final, network = tmp_path / "run" / "final", network.eval()
    lora = load_file(final / LORA_FILE)
    assert "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight" in lora
    assert len(lora) == 2 * 2 * SMALL["num_layers"]
    about = json.loads((final / "run.json").read_text())
    assert about["lora"]["merged"] is False and about["lora"]["rank"] == 4 and about["stage"]["number"] == 2

    def predict(model):
        batch = small_batch()
        images = torch.cat([batch["canvas"], batch["first_frame"]], 1)[:, None].repeat(1, 2, 1, 1, 1)
        latents, steps = torch.cat([batch["latents"], images], 2), torch.full((4,), 500)
        faces = model.encode_faces(batch["identity"], batch["hidden"])
        with torch.no_grad():
            return model.eval()(latents, batch["text"], steps, face_tokens=faces, mask_override=batch["masks"]).sample

    unmerged = BindYourAvatarTransformer3DModel.from_pretrained(final)
    assert (predict(unmerged) - predict(network)).abs().max() > 1e-4
    merge_lora_into(unmerged, lora)  # as the released file is merged: scale 1
    gone_on, merged, other = load_model(final, RANK_4), load_model(final), load_model(final, Lora(rank=2, alpha=2))
    for model in (unmerged, gone_on, merged, other):
        assert (predict(model) - predict(network)).abs().max() < 1e-5
    weights = dict(gone_on.named_parameters())
    kept = {name: p for name, p in network.named_parameters() if "lora_A" in name}
    assert kept and all(torch.equal(p, weights[name]) for name, p in kept.items())
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_unknown_lora_target_is_an_error():
    with pytest.raises(InputError, match="attn9"):
        add_lora(small_model(), Lora(targets=("attn9.to_q",)))


def test_accumulation_and_gradient_checkpointing_keep_the_losses(data, tmp_path):
    stage, clips = published(3, steps=6, batch_size=4), ClipFolder(data)
    train(small_model(), clips, stage, settings(tmp_path / "plain"))
    train(small_model(), clips, stage, settings(tmp_path / "slices", gradient_accumulation_steps=2))
    train(small_model(), clips, stage, settings(tmp_path / "again", gradient_checkpointing=True))
    expected = losses(tmp_path / "plain")
    for run in ("slices", "again"):
        for step, values in losses(tmp_path / run).items():
            assert values == pytest.approx(expected[step], abs=1e-4), (run, step)


def test_half_precision_is_close_and_casts_frozen_weights(data, tmp_path):
    stage, clips = published(3, steps=6), ClipFolder(data)
    train(small_model(), clips, stage, settings(tmp_path / "full"))
    AcceleratorState._reset_state(reset_partial_state=True)
    network = small_model()
    train(network, clips, stage, settings(tmp_path / "half", mixed_precision="bf16", cast_frozen_weights=True))
    kinds = {(p.requires_grad, p.dtype) for p in network.parameters() if p.ndim >= 2}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    full, half = losses(tmp_path / "full"), losses(tmp_path / "half")
    assert half[6][0] == pytest.approx(full[6][0], rel=0.05) and half[6] != full[6]


def test_ema_weights_are_saved_and_validated(data, tmp_path):
    optimizer = replace(published(1).optimizer, ema_decay=0.9)
    seen = {}

    class Watch:
        every, tracker = 4, None

        def __call__(self, step, means, model):
            seen[step] = model.proj_out.weight.clone()
            self.tracker.log({"iou": 0.5}, step, "validation")
            self.tracker.log_image("masks", Image.new("RGB", (8, 6), "red"), step)

    stage = published(1, steps=8, optimizer=optimizer)
    train(small_model(), ClipFolder(data), stage, settings(tmp_path / "run"), callback=Watch())
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    last, mean = (load_file(newest / f"{name}.safetensors")["proj_out.weight"] for name in ("weights", "ema"))
    kept = load_model(tmp_path / "run" / "final").proj_out.weight
    assert torch.equal(kept, mean) and torch.equal(seen[8], mean) and not torch.equal(last, mean)
    assert list(seen) == [4, 8]
    log_lines = [line for line in lines(tmp_path / "run") if line.get("kind") == "validation"]
    assert [line["iou"] for line in log_lines] == [0.5, 0.5]
    assert (tmp_path / "run" / "images" / "step-00000008" / "masks.png").is_file()


def test_8bit_adam_trains_and_resumes(data, tmp_path):
    pytest.importorskip("bitsandbytes")
    stage, clips = published(2, steps=12), ClipFolder(data)
    train(small_model(), clips, stage, settings(tmp_path / "whole", use_8bit_adam=True))
    log_lines = lines(tmp_path / "whole")
    assert log_lines[-1]["diffusion"] < log_lines[0]["diffusion"]
    constant = replace(stage, optimizer=replace(stage.optimizer, lr_schedule="constant"))
    train(small_model(), clips, constant, settings(tmp_path / "one", use_8bit_adam=True))
    train(small_model(), clips, replace(constant, steps=6), settings(tmp_path / "two", use_8bit_adam=True))
    train(small_model(), clips, constant, settings(tmp_path / "two", use_8bit_adam=True))
    one, two = ([line["step_loss"] for line in lines(tmp_path / run)] for run in ("one", "two"))
    assert one == two


def test_incompatible_settings_are_rejected_before_writing(data, tmp_path):
    with pytest.raises(InputError, match="at least one sample each"):
        train(small_model(), ClipFolder(data), published(2), settings(tmp_path / "run", gradient_accumulation_steps=4))
    assert not (tmp_path / "run").exists()


def test_log_has_throughput_and_remaining_time_and_tensorboard_every_step_once(data, tmp_path, caplog):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    caplog.set_level("INFO")
    train(
        small_model(), ClipFolder(data), published(1, steps=6), settings(tmp_path / "run", report_to=("tensorboard",))
    )
    train(
        small_model(), ClipFolder(data), published(1, steps=9), settings(tmp_path / "run", report_to=("tensorboard",))
    )
    line = lines(tmp_path / "run")[2]
    assert {"loss", "lr", "samples_per_second", "minutes_left", "skipped"} <= set(line)
    assert "samples_per_second" in caplog.text and "remaining" in caplog.text
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "bind-your-avatar")).Reload()
    assert [point.step for point in board.Scalars("train/diffusion")] == list(range(1, 10))


def test_log_entries_after_the_last_checkpoint_are_removed_on_resume(tmp_path):
    with closing(MetricLog(tmp_path, build_accelerator(settings(tmp_path)))) as log:
        for step in (1, 2, 3):
            log.log({"loss": float(step)}, step)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # truncated by a kill
    with closing(MetricLog(tmp_path, build_accelerator(settings(tmp_path)), 2)) as log:
        log.log({"loss": 9.0}, 3)
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 9.0)]


class FakeWandb(GeneralTracker):
    """Records how the W&B tracker of accelerate is used."""

    name, requires_logging_directory, main_process_only, started = "wandb", False, False, []

    def __init__(self, project, **kwargs):
        super().__init__(_blank=True)
        self.values = []
        self.started.append((project, kwargs, self))

    tracker = None

    def start(self):
        pass

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        self.values.append((step, values))

    def finish(self):
        pass


def test_wandb_gets_the_metrics_and_a_restart_continues_its_run(tmp_path, monkeypatch):
    monkeypatch.setattr("training.engine.trackers.is_wandb_available", lambda: True)
    monkeypatch.setattr("accelerate.tracking.is_wandb_available", lambda: True)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", FakeWandb)
    for _ in range(2):
        accelerator = build_accelerator(settings(tmp_path, report_to=("wandb",)))
        with closing(MetricLog(tmp_path, accelerator, project="mine", config={"lr": 0.1})) as log:
            log.log({"loss": 1.0}, 1)
        AcceleratorState._reset_state(reset_partial_state=True)
    (project, first, tracker), (_, second, _) = FakeWandb.started
    assert project == "mine" and first["resume"] == "allow" and first["id"] == second["id"]
    assert tracker.values == [(1, {"train/loss": 1.0})] and tracker.config == {"lr": 0.1}


def test_a_requested_tracker_that_is_not_installed_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("training.engine.trackers.is_wandb_available", lambda: False)
    with pytest.raises(InputError, match="pip install wandb"):
        build_accelerator(settings(tmp_path, report_to=("wandb",)))


def test_max_minutes_limits_a_run(data, tmp_path):
    stage = published(1, steps=10**6)
    summary = train(small_model(), ClipFolder(data), stage, settings(tmp_path / "run", max_minutes=0.02))
    assert 0.02 <= summary["minutes"] < 0.2 and 0 < summary["steps"] < 10**6
    log_lines = lines(tmp_path / "run")
    assert log_lines[-1]["lr"] < 0.5 * max(line["lr"] for line in log_lines)
