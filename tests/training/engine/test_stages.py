"""Stage configurations and their loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bya_core.errors import InputError
from tests.training.stage_parts import small_batch, small_model
from training.engine.losses import router_loss_official
from training.engine.objective import (
    SampleRandom,
    StageLoss,
    mask_iou,
    masks_to_labels,
    replicate_character,
    with_first_frame,
)
from training.engine.optim import select_trainable
from training.engine.recipe import load_recipe
from training.engine.stages import CONDITIONS, PUBLISHED, RELEASED, ConditionDropout
from training.engine.teacher_forcing import TeacherConfig


class CallRecorder:
    """Records the calls of a model."""

    def __init__(self, model):
        self.model, self.calls = model, []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return self.model(*args, **kwargs)


def stage(number, **changes):
    return replace(load_recipe("toy").stages[number], **changes)


@pytest.mark.parametrize("flavour", ["paper", "official"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_mean_over_micro_batches_is_the_loss_of_the_batch(number, flavour):
    network = small_model(flavour=flavour)
    settings = stage(number, flavour=flavour, scheduled_sampling_warmup=0, copies=2)
    loss, batch = StageLoss(settings, seed=5), small_batch(4, characters=1 if number == 3 else 2)
    batch_loss, parts = loss(network, batch, 7)
    halves = [{name: tensor[k : k + 2] for name, tensor in batch.items()} for k in (0, 2)]
    half_losses = [loss(network, half, 7, offset=k, count=4)[0] for k, half in zip((0, 2), halves, strict=True)]
    assert torch.isclose(torch.stack(half_losses).mean(), batch_loss, rtol=1e-5)
    assert not torch.isclose(half_losses[0], half_losses[1], rtol=1e-3)
    repeated = loss(network, batch, 7)[1]
    assert all(torch.equal(parts[name], repeated[name]) for name in parts)
    assert not torch.isclose(loss(network, batch, 8)[0], batch_loss)
    assert not torch.isclose(StageLoss(settings, seed=6)(network, batch, 7)[0], batch_loss)


def test_micro_batch_outside_its_batch_raises():
    with pytest.raises(InputError, match="samples 3..6 of 4"):
        StageLoss(stage(1))(small_model(), small_batch(4), 0, offset=3, count=4)


def test_condition_dropout_probabilities():
    dropout = ConditionDropout(0.2, 0.0, 0.0, joint={"speech+identity": 0.3, "first_frame+text": 0.2})
    batch = {name: torch.ones(4000, 1) for keys in CONDITIONS.values() for name in keys}
    result = StageLoss(stage(2, condition_dropout=dropout))._drop_conditions(batch, SampleRandom(0, 0, 0, 4000))
    dropped = {name: result[name][:, 0] == 0 for name in batch}
    for name, probability in (("canvas", 0.2), ("speech", 0.3), ("text", 0.2)):
        assert abs(dropped[name].float().mean() - probability) < 0.03
    assert torch.equal(dropped["speech"], dropped["identity"]) and torch.equal(dropped["identity"], dropped["hidden"])
    assert torch.equal(dropped["first_frame"], dropped["text"])
    assert not (dropped["speech"] & dropped["text"]).any()
    assert abs((dropped["canvas"] & dropped["speech"]).float().mean() - 0.06) < 0.02


def test_first_frame_condition_replaces_the_first_latent_frame():
    latents, first_frame = torch.randn(2, 3, 4, 4, 6), torch.randn(2, 4, 4, 6)
    first_frame[1] = 0.0  # dropped
    result = with_first_frame(latents, first_frame)
    assert torch.equal(result[0, 0], first_frame[0]) and torch.equal(result[0, 1:], latents[0, 1:])
    assert torch.equal(result[1], latents[1])


def test_timestep_bias_applies_without_first_frame_only():
    recorder, batch = CallRecorder(small_model()), small_batch(256)
    for bias, share in ((1.0, 0.15), (3.0, 1 - 0.85**3)):
        settings = stage(3, copies=1, condition_dropout=ConditionDropout(0.0, 0.5, 0.0), timestep_bias=bias)
        StageLoss(settings)(recorder, batch, 0)
        arguments, _ = recorder.calls[-1]
        first_frame, timestep = arguments[0][:, 0, -4:], arguments[2]
        without = ~first_frame.flatten(1).any(1)
        assert 90 < without.sum() < 166
        assert abs((timestep[without] > 850).float().mean() - share) < 0.1
        assert abs((timestep[~without] > 850).float().mean() - 0.15) < 0.1


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ConditionDropout(joint={"voice+text": 0.1}), "voice"),
        (lambda: ConditionDropout(joint={"speech+text": 0.6, "reference+text": 0.6}), "add up"),
        (lambda: ConditionDropout(reference=1.5), "at most 1"),
        (lambda: stage(3, timestep_bias=0.0), "timestep_bias"),
        (lambda: TeacherConfig(token_dropout=1.5), "token_dropout"),
        (lambda: TeacherConfig(noise_std=-1), "noise"),
    ],
)
def test_invalid_values_raise(build, words):
    with pytest.raises(InputError, match=words):
        build()


def test_single_characters_are_replicated_with_one_random_active_slot():
    batch = small_batch(200, characters=1)
    many = replicate_character(batch, 3, SampleRandom(0, 0, 0, 200))
    for name in ("identity", "hidden", "speech"):
        assert many[name].shape[1] == 3 and (many[name] == batch[name]).all()
    active = many["masks"].flatten(2).amax(2)
    assert (active.sum(1) == 1).all() and torch.equal(many["masks"].sum(1, keepdim=True), batch["masks"])
    assert (active.sum(0) > 40).all()
    recorder = CallRecorder(small_model())
    for characters in (1, 2):
        StageLoss(stage(3, copies=2))(recorder, small_batch(2, characters), 0)
        arguments = recorder.calls[-1][1]
        assert arguments["face_tokens"].shape[1] == arguments["audio_tokens"].shape[1] == 2


def test_teacher_forcing_has_augmented_masks_and_clean_targets():
    """Appendix B: masks in cross-attention are noisy and partly dropped, targets of the router are not."""
    settings = replace(PUBLISHED[3], teacher=replace(PUBLISHED[3].teacher, noise_std=0.2, token_dropout=0.3))
    recorder, batch = CallRecorder(small_model()), small_batch(16)
    before = batch["masks"].clone()
    _, parts = StageLoss(settings)(recorder, batch, 0)
    arguments, options = recorder.calls[0]
    assert options["mask_override_strength"] is None and options["run_router"]
    forced = options["mask_override"]
    inside = forced[:, batch["masks"] == 1]
    assert inside.std() > 0.1 and abs((inside < 0.05).float().mean() - 0.3) < 0.15
    assert torch.equal(batch["masks"], before)
    output = recorder.model(*arguments, **options)
    log_p = output.router_logits.log_softmax(2)
    clean = torch.cat([before, 1 - before.sum(1, keepdim=True)], 1)
    assert torch.isclose(parts["cross_entropy"], -(clean * log_p).sum(2).mean(), rtol=1e-5)


def test_router_loss_trains_the_router_only():
    network = small_model(num_router_layers=2)
    for part, router_learns in (("diffusion", False), ("cross_entropy", True)):
        network.zero_grad()
        StageLoss(PUBLISHED[3])(network, small_batch(), 0)[1][part].backward()
        touched = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        assert (touched == {"router"}) if router_learns else ("router" not in touched and len(touched) > 4)


def test_scheduled_sampling_fraction_and_warmup():
    recorder, batch = CallRecorder(small_model()), small_batch(64)
    loss = StageLoss(stage(3, scheduled_sampling=0.5, scheduled_sampling_warmup=100))
    for step in (0, 49, 99, 500):
        loss(recorder, batch, step)
    own = [float((call[1]["mask_override_strength"] == 0).float().mean()) for call in recorder.calls]
    assert own[0] < 0.1 and 0.1 < own[1] < 0.4 and abs(own[2] - 0.5) < 0.2 and abs(own[3] - 0.5) < 0.2


def test_static_masks_are_the_union_over_time():
    batch = small_batch(2)
    batch["masks"][:, 0, 1] = 0
    recorder = CallRecorder(small_model())
    StageLoss(stage(3, static_masks=True, teacher=TeacherConfig(0.0, 0.0)))(recorder, batch, 0)
    forced = recorder.calls[0][1]["mask_override"]
    assert torch.equal(forced[0, :, 0, 1], forced[0, :, 0, 0]) and forced[0, :, 0, 1].any()


def test_official_flavour_uses_the_released_terms_and_teacher():
    recorder, batch = CallRecorder(small_model(flavour="official", num_router_layers=1)), small_batch(3)
    total, parts = StageLoss(RELEASED[3])(recorder, batch, 0)
    terms = {"router", "consistency", "temporal", "spatial", "spatial_dist", "id_dist"}
    assert set(parts) == terms | {"diffusion", "router_iou"}
    weights = RELEASED[3].official_weights
    assert torch.isclose(total, parts["diffusion"] + sum(getattr(weights, name) * parts[name] for name in terms))
    teacher = StageLoss(RELEASED[3])._teacher_masks(batch["masks"], 2, SampleRandom(0, 0, 0, 3))
    wrong = (teacher.target != batch["masks"]).float().mean()
    assert 0.02 < wrong < 0.25  # a tenth of the targets is random
    output = recorder.model(*recorder.calls[0][0], **recorder.calls[0][1])
    assert router_loss_official(output.masks, batch["masks"])["router"] != parts["router"]


def test_labels_of_overlapping_masks():
    masks = torch.tensor([[[0.9, 0.2, 0.6]], [[0.1, 0.3, 0.7]]]).view(1, 2, 1, 1, 3)
    assert masks_to_labels(masks).flatten().tolist() == [0, -1, 1]


def test_mask_iou_ignores_absent_characters():
    truth = torch.zeros(2, 2, 1, 1, 4)
    truth[0, 0, ..., :2] = 1
    predicted = truth.clone()
    predicted[0, 0, ..., 1] = 0
    assert torch.isclose(mask_iou(predicted[None], truth), torch.tensor((0.5 + 1.0) / 2))


def test_loss_weights_of_samples_with_and_without_mask_loss():
    loss, batch = StageLoss(stage(1, background_weight=0.25, emphasis_weight=2.0)), small_batch(2)
    weights = loss._loss_weights(batch, torch.tensor([True, False])) - 2.0 * batch["emphasis"][:, :, None]
    assert torch.allclose(weights[1], torch.ones(()))
    assert torch.allclose(weights[0, ..., :4], torch.ones(()))
    assert torch.allclose(weights[0, ..., 4:], torch.tensor(0.25))


def test_published_stages_are_those_of_the_paper():
    one, two, three = (PUBLISHED[k] for k in (1, 2, 3))
    assert [s.steps for s in (one, two, three)] == [10_000, 40_000, 10_000]
    assert not one.speech and one.lora is None
    assert one.condition_dropout.first_frame == one.mask_loss_probability == 0.5
    for s in (two, three):
        assert s.lora.rank == 128 and s.lora.targets == ("attn1.to_q", "attn1.to_k")
        dropout = s.condition_dropout
        assert dropout.reference == dropout.first_frame == dropout.speech == 0.05
        assert (s.batch_size, s.optimizer.lr, s.optimizer.name) == (16, 1e-5, "adamw")
    assert two.condition_dropout.joint and not two.router and three.router and three.copies == 2
    assert (three.router_weights.smoothness, three.router_weights.layer_variance) == (0.001, 8.0)


def test_trainable_components_are_those_of_the_paper():
    network = small_model()

    def parts(number):
        names = select_trainable(network, PUBLISHED[number].trainable)
        return {".".join(name.split(".")[:2]) if "audio" in name else name.split(".")[0] for name in names}

    everything = {name.split(".")[0] for name, _ in network.named_parameters()}
    assert everything <= {name.split(".")[0] for name in select_trainable(network, PUBLISHED[1].trainable)}
    speech = {"audio_model.audio_proj_model", "audio_model.layers"}
    assert parts(2) == {"local_facial_extractor", "perceiver_cross_attention"} | speech
    assert parts(3) == {"router", "perceiver_cross_attention", "audio_model.layers"}


def test_recipes_of_the_published_model(tmp_path):
    paper, official = load_recipe("cogvideox5b"), load_recipe("cogvideox5b_official")
    assert paper.model["flavour"] == paper.stages[3].flavour == "paper" and paper.stages[3].scheduled_sampling == 0.5
    assert official.model == paper.model | {"flavour": "official"}
    assert official.stages[3] == RELEASED[3]
    assert paper.stages[1] == PUBLISHED[1] and paper.stages[2] == PUBLISHED[2]
    one_gpu = load_recipe("cogvideox5b_one_gpu")
    assert one_gpu.model == paper.model and [one_gpu.stages[k] for k in (2, 3)] == [paper.stages[k] for k in (2, 3)]
    assert one_gpu.stages[1].lora.rank == 128 and "*" not in one_gpu.stages[1].trainable
    assert replace(one_gpu.stages[1], lora=None, trainable=("*",)) == paper.stages[1]
    path = tmp_path / "mine.yaml"
    path.write_text("extends: toy\nflavour: own\n")
    with pytest.raises(InputError, match='"paper" or "official"'):
        load_recipe(path)


def test_sigmoid_router_has_no_background_class():
    network = small_model(router_activation="sigmoid")
    recorder, batch = CallRecorder(network), small_batch(3)
    _, parts = StageLoss(PUBLISHED[3])(recorder, batch, 0)
    output = network(*recorder.calls[0][0], **recorder.calls[0][1])
    assert output.router_logits.shape == output.masks.shape
    assert torch.allclose(output.masks, output.router_logits.sigmoid())
    p, y = output.masks, batch["masks"]
    assert torch.isclose(parts["cross_entropy"], -(y * p.log() + (1 - y) * (1 - p).log()).mean(), rtol=1e-4)
    assert "background" not in str([name for name, _ in network.named_parameters()])
