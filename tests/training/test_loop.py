"""The training loop: it learns, it resumes to the same weights, it refuses what it cannot use."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from training.dataset import ClipFolder, as_float
from training.loop import RunSettings, train
from training.optimisers import select_trainable
from training.stage_loss import StageLoss
from training.stages import PUBLISHED, load_recipe

SMALL = {
    "flavour": "paper",
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 3,
    "in_channels": 12,
    "out_channels": 4,
    "time_embed_dim": 16,
    "text_embed_dim": 8,
    "max_text_seq_length": 4,
    "sample_height": 4,
    "sample_width": 6,
    "sample_frames": 5,
    "use_learned_positional_embeddings": False,
    "injection_start": 0,
    "cross_attn_interval": 2,
    "num_router_layers": 2,
    "cross_attn_num_heads": 2,
    "cross_attn_dim_head": 16,
    "lfe_dim": 16,
    "lfe_depth": 5,
    "lfe_dim_head": 8,
    "lfe_heads": 2,
    "lfe_num_id_token": 2,
    "lfe_num_queries": 4,
    "lfe_output_dim": 16,
    "lfe_ff_mult": 2,
    "lfe_vit_dim": 8,
    "lfe_id_dim": 8,
    "lfe_hidden_dim": 16,
    "router_dim": 16,
    "router_heads": 2,
    "router_blocks": 1,
    "inflate_audio_masks": False,
    "audio_dim": 16,
    "audio_heads": 2,
    "audio_dim_head": 16,
    "audio_blocks": 2,
    "audio_channels": 4,
    "audio_hidden_dim": 16,
    "audio_context_tokens": 2,
}


def model():
    torch.manual_seed(0)
    return BindYourAvatarTransformer3DModel(**SMALL)


@pytest.fixture
def data(tmp_path):
    rng = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=rng).half()

    folder = tmp_path / "data"
    folder.mkdir()
    for n, frames in ((2, 2), (1, 2), (2, 4)):
        left = torch.zeros(6, n, frames, 2, 3, dtype=torch.uint8)
        left[:, 0, :, :, 0] = 255
        first = normal(6, 4, 4, 6)
        clip = {
            "latents": first[:, None].repeat(1, frames, 1, 1, 1),
            "canvas": normal(6, 4, 4, 6),
            "first_frame": first,
            "text": normal(6, 4, 8),
            "masks": left,
            "emphasis": torch.zeros(6, frames, 4, 6, dtype=torch.uint8),
            "identity": normal(6, n, 8),
            "hidden": normal(6, n, 5, 3, 8),
            "speech": normal(6, n, (frames - 1) * 4 + 5, 2, 4),
            "seed": torch.arange(6),
        }
        save_file(clip, folder / f"n{n}_t{frames}.safetensors")
    return folder


def stage(number, **changes):
    return replace(load_recipe("tiny").stages[number], batch=3, **changes)


def test_data_order_depends_on_the_seed_alone_and_can_start_anywhere(data):
    clips = ClipFolder(data)
    assert clips.clips == 18
    batches = clips.batches(3, seed=1)
    first = [next(batches)["latents"] for _ in range(5)]
    later = clips.batches(3, seed=1, start=3)
    assert torch.equal(next(later)["latents"], first[3]) and torch.equal(next(later)["latents"], first[4])
    other = clips.batches(3, seed=2)
    assert any(
        a.shape != b.shape or not torch.equal(a, b)
        for a, b in zip(first, (next(other)["latents"] for _ in range(5)), strict=True)
    )


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="without shards"):
        ClipFolder(tmp_path)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_every_stage_learns(number, data, tmp_path):
    network = model()
    settings = RunSettings(tmp_path / "run", log_every=1)
    quick = replace(load_recipe("tiny").stages[number].optimiser, lr=1e-2, warmup=5)
    given = replace(load_recipe("tiny").stages[number].drops, first_frame=0.0)
    train(network, ClipFolder(data), stage(number, steps=60, optimiser=quick, drops=given), settings)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["diffusion"] < 0.95 * lines[0]["diffusion"]
    assert ("router_iou" in lines[-1]) == (number == 3)
    again = BindYourAvatarTransformer3DModel.from_pretrained(tmp_path / "run" / "final")
    assert all(torch.isfinite(p).all() for p in again.parameters())


def test_a_stopped_run_goes_on_to_the_same_weights(data, tmp_path):
    clips = ClipFolder(data)
    whole = model()
    train(whole, clips, stage(3, steps=12, optimiser=constant()), RunSettings(tmp_path / "whole"))
    first = model()
    train(first, clips, stage(3, steps=7, optimiser=constant()), RunSettings(tmp_path / "parts"))
    second = model()
    train(second, clips, stage(3, steps=12, optimiser=constant()), RunSettings(tmp_path / "parts"))
    a = BindYourAvatarTransformer3DModel.from_pretrained(tmp_path / "whole" / "final").state_dict()
    b = BindYourAvatarTransformer3DModel.from_pretrained(tmp_path / "parts" / "final").state_dict()
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-6


def constant():
    return replace(load_recipe("tiny").stages[3].optimiser, decay="constant")


def test_stage_one_gives_no_speech_and_stage_three_trains_the_router_from_its_own_loss_only(data):
    batch = as_float(next(ClipFolder(data).batches(3, 0)))
    network = model()
    for p in network.parameters():
        p.data += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    total, _ = StageLoss(stage(1))(network, batch, 0)
    total.backward()
    assert all(p.grad is None for name, p in network.named_parameters() if name.startswith(("audio_model", "router")))
    network.zero_grad()
    _, parts = StageLoss(stage(3))(network, batch, 0)
    parts["diffusion"].backward()
    assert all(
        p.grad is None or not p.grad.any() for name, p in network.named_parameters() if name.startswith("router")
    )
    assert any(
        p.grad is not None and p.grad.any() for name, p in network.named_parameters() if name.startswith("audio_model")
    )


def test_published_stages_train_what_the_paper_says():
    network = model()
    router = select_trainable(network, PUBLISHED[3].trainable)
    assert any(name.startswith("router.") for name in router)
    assert not any(
        name.startswith(("transformer_blocks", "local_facial_extractor", "audio_model.audio_proj")) for name in router
    )
    assert PUBLISHED[1].drops.first_frame == 0.5 and PUBLISHED[1].mask_loss == 0.5 and not PUBLISHED[1].speech
    assert [PUBLISHED[k].steps for k in (1, 2, 3)] == [10_000, 40_000, 10_000]


def test_recipe_with_a_wrong_key_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {}\nstages:\n  1: {emphasiss: 2}\n")
    with pytest.raises(InputError, match="emphasiss"):
        load_recipe(path)
    with pytest.raises(InputError, match="one of"):
        load_recipe("nothing")


def test_what_the_loop_cannot_do_yet_is_refused_before_anything_is_written(data, tmp_path):
    with pytest.raises(InputError, match="LoRA"):
        train(model(), ClipFolder(data), replace(PUBLISHED[2], batch=3, steps=1), RunSettings(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
