"""A folder in the released layout, made small: reading it, and saying what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bya_core.checkpoints import official
from bya_core.checkpoints.lora import lora_pairs, merge_lora
from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 48,
    "out_channels": 4,
    "time_embed_dim": 8,
    "text_embed_dim": 6,
    "num_layers": 2,
    "sample_width": 8,
    "sample_height": 4,
    "sample_frames": 5,
    "max_text_seq_length": 3,
    "lfe_dim": 8,
    "lfe_depth": 5,
    "lfe_dim_head": 4,
    "lfe_heads": 2,
    "lfe_num_id_token": 1,
    "lfe_num_queries": 4,
    "lfe_output_dim": 8,
    "lfe_vit_dim": 6,
    "lfe_id_dim": 5,
    "lfe_hidden_dim": 8,
    "router_heads": 2,
    "router_blocks": 1,
    "audio_dim": 6,
    "audio_heads": 2,
    "audio_dim_head": 4,
    "audio_blocks": 2,
    "audio_channels": 3,
    "audio_hidden_dim": 4,
    "audio_context_tokens": 2,
    "cross_attn_dim_head": 4,
    "cross_attn_num_heads": 2,
}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> BindYourAvatarTransformer3DModel:
    # the released code hard-codes the sizes of these parts; here they must be small
    monkeypatch.setattr(official, "HARD_CODED", ("LFE_",))
    torch.manual_seed(0)
    return BindYourAvatarTransformer3DModel(flavour="official", **SIZES)


@pytest.fixture
def folder(tmp_path: Path, model: BindYourAvatarTransformer3DModel) -> Path:
    for file, content in official.to_released(model.state_dict()).items():
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        if file == "transformer":
            path.mkdir()
            config = {**SIZES, "is_train_face": True, "LFE_heads": 99, "_class_name": "other"}
            (path / "config.json").write_text(json.dumps(config))
            names = sorted(content)
            for shard in range(2):
                part = {name: content[name].clone() for name in names[shard::2]}
                save_file(part, path / f"part-{shard}.safetensors")
        else:
            torch.save(content, path)
    return tmp_path


def test_a_released_folder_becomes_our_model(folder: Path, model: BindYourAvatarTransformer3DModel) -> None:
    loaded = official.load_released(folder)
    theirs, ours = model.state_dict(), loaded.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert not any(p.is_meta for p in (*loaded.parameters(), *loaded.buffers()))
    half = official.load_released(folder, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_lora_is_merged_at_scale_one(folder: Path, model: BindYourAvatarTransformer3DModel) -> None:
    name = "transformer_blocks.1.attn1.to_q"
    a, b = torch.randn(3, 32), torch.randn(32, 3)
    lora = {f"transformer.module.{name}.lora_A.weight": a, f"transformer.module.{name}.lora_B.weight": b}
    path = folder / official.LORA_FILE
    path.parent.mkdir()
    save_file(lora, path)
    before = model.state_dict()[f"{name}.weight"]
    after = official.load_released(folder).state_dict()[f"{name}.weight"]
    assert torch.allclose(after, before + b @ a, atol=1e-5)


def test_lora_inside_the_transformer_file_is_merged_too(
    folder: Path, model: BindYourAvatarTransformer3DModel
) -> None:
    from safetensors.torch import load_file

    name = "transformer_blocks.0.attn1.to_k"
    a, b = torch.randn(2, 32), torch.randn(32, 2)
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        part = load_file(path)
        if f"{name}.weight" in part:
            part[f"{name}.base_layer.weight"] = part.pop(f"{name}.weight")
            part |= {f"{name}.lora_A.default.weight": a, f"{name}.lora_B.default.weight": b}
            save_file(part, path)
    after = official.load_released(folder).state_dict()[f"{name}.weight"]
    assert torch.allclose(after, model.state_dict()[f"{name}.weight"] + b @ a, atol=1e-5)


def test_what_is_missing_is_named(folder: Path) -> None:
    router = torch.load(folder / official.ROUTER_FILE, weights_only=True)
    router.pop("pos_emb")
    torch.save(router | {"surplus": torch.zeros(1)}, folder / official.ROUTER_FILE)
    with pytest.raises(InputError, match=r"1 missing \(router.pos_emb.*1 unexpected \(router.surplus"):
        official.load_released(folder)
    (folder / official.ROUTER_FILE).unlink()
    with pytest.raises(InputError, match="router_modules.pt"):
        official.load_released(folder)


def test_a_base_with_fewer_input_channels_is_widened() -> None:
    wide = official.widen_patch_embed(torch.ones(4, 2, 2, 2), 5)
    assert wide.shape == (4, 5, 2, 2) and wide.sum() == 32 and wide[:, 2:].abs().sum() == 0
    with pytest.raises(InputError, match="at most 1"):
        official.widen_patch_embed(wide, 1)


def test_a_lora_that_does_not_fit_is_refused() -> None:
    pair = {"x.to_q.lora_A.weight": torch.zeros(2, 4), "x.to_q.lora_B.weight": torch.zeros(4, 2)}
    with pytest.raises(InputError, match="weight that the model has"):
        merge_lora({}, pair)
    with pytest.raises(InputError, match=r"own shape \(3, 3\)"):
        merge_lora({"x.to_q.weight": torch.zeros(3, 3)}, pair)
    with pytest.raises(InputError, match="one half"):
        lora_pairs({"x.to_q.lora_A.weight": torch.zeros(2, 4)})
    with pytest.raises(InputError, match="LoRA entry"):
        lora_pairs({"x.to_q.weight": torch.zeros(2, 4)})
