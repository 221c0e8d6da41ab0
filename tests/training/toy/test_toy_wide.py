"""Training of the wide toy model: prompts with motion, batched drawing, fractions of clip lengths, bfloat16 weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from bya_core.errors import InputError
from bya_core.models.compat import dispatch_attention
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.toy.bundle import load_toy, load_toy_encoders
from bya_core.toy.encoders import ToyTextEncoder
from bya_core.weights.loader import load_bundle
from tests.training.stage_parts import small_batch, small_model
from training.data.batches import as_float, trim_padding
from training.data.buckets import Bucket, Window
from training.data.clip import LazyClip
from training.data.clip_folder import ClipFolder
from training.data.encode import ClipEncoder
from training.data.puppet_plan import puppet_sample
from training.engine.loop import train
from training.engine.objective import StageLoss
from training.engine.recipe import load_recipe
from training.engine.settings import RunSettings
from training.engine.stages import PUBLISHED
from training.puppets.world import make_clip
from training.toy import assemble, clips

SHIPPED = Path("bya_core/toy/weights")
SEED = 10_000_000
RECIPE = load_recipe("toy_wide")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def options(folder, count=4, **changes):
    defaults = {"per_file": 4, "fractions": (0, 1, 0, 0), "processes": 1, "describe_motion": True, "max_words": 80}
    return clips.ClipOptions(folder, count, **defaults | {"eye_emphasis": 0.5, "seed": SEED} | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four stills and four clips of five frames."""
    folder = tmp_path_factory.mktemp("toy")
    clips.main(options(folder, frames=1))
    clips.main(options(folder, frames=5, seed=2 * SEED))
    return folder


def test_prompts_describe_the_motion():
    for seed in range(2_000_000, 2_000_012):
        described, plain = (make_clip(seed, 2, num_frames=3, describe_motion=flag) for flag in (True, False))
        assert np.array_equal(described.frames, plain.frames)
        phrase = {"still": "keeps still", "moving": "sways", "crossing": "walks to the"}[described.motion]
        assert described.prompt.count(phrase) == 2 and phrase not in plain.prompt
        if described.motion == "crossing":
            assert described.prompt.count("in front") == described.prompt.count("behind") == 1
            left, right = described.prompt.split(";")
            assert "walks to the right" in left and "walks to the left" in right


def test_eye_centers_are_white():
    clip = make_clip(2_000_003, 1, num_frames=1, motion="still")
    for x, y in clip.eye_centers[0, 0]:
        patch = clip.frames[0, int(y) - 3 : int(y) + 4, int(x) - 3 : int(x) + 4]
        assert patch.min(axis=-1).max() > 220


def test_text_encoder_pads_to_a_multiple():
    whole, short = ToyTextEncoder(), ToyTextEncoder(pad_to_multiple_of=8)
    prompts = ["a red puppet waves", "two puppets before a blue wall talk about red hats and blue shirts"]
    assert short.encode(prompts).shape == (2, 16, 64) and short.encode([""]).shape == (1, 8, 64)
    assert torch.equal(whole.encode(prompts)[:, :16], short.encode(prompts))
    assert torch.equal(trim_padding(whole.encode(prompts), 8), short.encode(prompts))
    assert trim_padding(torch.zeros(2, 48, 4), 8).shape == (2, 8, 4)


def test_batched_clips_equal_those_of_the_clip_encoder(data):
    (path,) = data.glob("f005_*.safetensors")
    file = load_file(path)
    encoder = ClipEncoder(load_toy_encoders(SHIPPED)._replace(text=ToyTextEncoder(max_words=80)))
    clip = make_clip(2 * SEED + 1, 2, num_frames=5, describe_motion=True)
    expected = encoder.encode(LazyClip.of(puppet_sample(clip)), Window(0, Bucket(5, 64, 96)))
    assert file.keys() == expected.keys()
    assert (file["emphasis"][1] >= expected.pop("emphasis")).all()
    for name, tensor in expected.items():
        assert file[name][1].shape == tensor.shape and file[name][1].dtype == tensor.dtype
        limit = 0.1 if name in ("latents", "first_frame", "canvas") else 0.01  # the VAE computes in bfloat16
        assert (file[name][1].double() - tensor.double()).abs().max() < limit, name


def test_seeds_of_evaluation_and_validation_are_rejected(tmp_path):
    for seed in (999_998, 2_000_000, 9_999_999):
        with pytest.raises(InputError, match="evaluation"):
            clips.main(options(tmp_path, seed=seed))
    longer = options(tmp_path, 640)
    assert clips.plan(longer)[:5] == clips.plan(replace(longer, clips=20))


def test_length_fractions(data):
    def lengths(fractions):
        batches = ClipFolder(data, fractions).batches(4, seed=1)
        return [next(batches)["latents"].shape[1] for _ in range(40)]

    assert set(lengths({1: 1.0})) == {1}
    assert 20 <= lengths({1: 0.75, 5: 0.25}).count(1) <= 38
    with pytest.raises(InputError, match="9"):
        ClipFolder(data, {9: 1.0})


def test_batches_from_memory_equal_those_from_files(data):
    one, other = (next(ClipFolder(data, {5: 1.0}, in_memory, 8).batches(2, seed=3)) for in_memory in (True, False))
    assert all(torch.equal(one[name], other[name]) for name in other) and other["text"].shape[1] < 80


def test_noise_schedule_of_the_recipe():
    shifted, default = StageLoss(RECIPE.stages[1], 0, RECIPE.scheduler), StageLoss(RECIPE.stages[1])
    assert (shifted.alpha_bar[100:900] > default.alpha_bar[100:900]).all()
    assert load_recipe("toy").scheduler == {}


@pytest.mark.parametrize("precision", ["bf16-weights", "no"])
def test_bfloat16_weights_train_like_float32(data, tmp_path, precision):
    torch.manual_seed(0)
    model = BindYourAvatarTransformer3DModel(**RECIPE.model | {"num_attention_heads": 2, "num_layers": 3})
    stage = replace(RECIPE.stages[1], steps=12, batch_size=4)
    settings = RunSettings(tmp_path, mixed_precision=precision, report_to=(), logging_steps=1)
    summary = train(model, ClipFolder(data, {1: 1.0}), stage, settings, recipe=RECIPE)
    assert summary["loss"] < 1.2 and summary["skipped"] == 0
    weights = load_file(next((tmp_path / "final").glob("*.safetensors")))
    assert all(value.dtype == torch.float32 for value in weights.values())
    bundle = load_bundle(tmp_path / "final")
    assert bundle.scheduler_config["snr_shift_scale"] == 0.1 and bundle.text.max_words == 80


def test_batched_random_numbers():
    loss = StageLoss(replace(PUBLISHED[3], copies=1), 0, batched_random=True)
    model, batch = small_model(), small_batch(3)
    first, again, other = (loss(model, batch, step)[0] for step in (4, 4, 5))
    assert torch.isfinite(first) and torch.equal(first, again) and not torch.equal(first, other)


def test_explicit_attention_equals_the_kernel():
    torch.manual_seed(0)
    inputs = [torch.randn(2, 40, 3, 16, requires_grad=True) for _ in range(3)]
    explicit = dispatch_attention(*inputs)
    kernel = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in inputs)).transpose(1, 2)
    assert torch.allclose(explicit, kernel, atol=1e-5)
    gradients = [torch.autograd.grad(output.square().sum(), inputs) for output in (explicit, kernel)]
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*gradients, strict=True))


def test_all_stages_have_a_finite_loss(data):
    model = BindYourAvatarTransformer3DModel(**RECIPE.model)
    assert sum(p.numel() for p in model.parameters()) * 4 < 30_000_000
    batch = as_float(next(ClipFolder(data, {5: 1.0}, text_multiple=8).batches(2, seed=0)))
    for number in (1, 2, 3):
        assert torch.isfinite(StageLoss(RECIPE.stages[number], 0, RECIPE.scheduler)(model, batch, 0)[0])


def test_bundle_of_a_run_in_progress(tmp_path):
    """Weights of the latest checkpoint are assembled with the noise schedule and the text encoder of the recipe."""
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    model = BindYourAvatarTransformer3DModel(**RECIPE.model)
    save_file({"proj_out.weight": model.proj_out.weight.detach() + 1}, checkpoint / "ema.safetensors")
    assemble.assemble(assemble.Arguments(SHIPPED, tmp_path / "run", tmp_path / "bundle", recipe="toy_wide"))
    bundle = load_toy(tmp_path / "bundle")
    assert bundle.scheduler_config["snr_shift_scale"] == 0.1 and bundle.text.pad_to_multiple_of == 8
    assert torch.equal(bundle.transformer.proj_out.weight, model.proj_out.weight + 1)
    with pytest.raises(InputError, match="checkpoint"):
        assemble.load_latest(tmp_path, RECIPE.model)
