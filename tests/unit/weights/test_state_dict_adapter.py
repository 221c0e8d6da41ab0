"""A folder in the released layout, made small: reading it, and saying what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights import state_dict_adapter as official
from bya_core.weights.lora import lora_pairs, merge_lora_into

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
    monkeypatch.setattr(official, "IGNORED_ARGUMENTS", ("LFE_",))
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


def test_lora_inside_the_transformer_file_is_merged_too(folder: Path, model: BindYourAvatarTransformer3DModel) -> None:
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


def test_a_base_with_fewer_input_channels_is_widened(folder: Path, model: BindYourAvatarTransformer3DModel) -> None:
    """As CogVideoX-5B-I2V, whose projection has 32 of the 48 channels; more than 48 are an error."""
    _change(folder, official.PATCH_PROJECTION, lambda weight: weight[:, :32].contiguous())
    wide = official.load_released(folder).state_dict()[official.PATCH_PROJECTION]
    assert torch.equal(wide[:, :32], model.state_dict()[official.PATCH_PROJECTION][:, :32])
    assert wide.shape[1] == 48 and not wide[:, 32:].any()
    _change(folder, official.PATCH_PROJECTION, lambda weight: torch.cat([weight, weight], dim=1))
    with pytest.raises(InputError, match=r"1 misshapen \(patch_embed.proj.weight \(32, 64, 2, 2\) instead of"):
        official.load_released(folder)


def _change(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    """Change, or take out, one weight of the transformer's files."""
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        part = load_file(path)
        if name in part:
            changed = change(part.pop(name))
            save_file(part if changed is None else {**part, name: changed}, path)


@pytest.mark.parametrize("told", [True, False, None])
def test_a_learned_table_of_positions_may_be_there_or_not(
    folder: Path, model: BindYourAvatarTransformer3DModel, told: bool | None
) -> None:
    """config.json decides; where it says nothing, the files do."""
    path = folder / "transformer/config.json"
    config = json.loads(path.read_text())
    if told is not None:
        config[official.LEARNED_POSITIONS] = told
        path.write_text(json.dumps(config))
    if told is False:
        with pytest.raises(InputError, match=r"1 unexpected \(patch_embed.pos_embedding\)"):
            official.load_released(folder)
    else:
        assert torch.equal(official.load_released(folder).patch_embed.pos_embedding, model.patch_embed.pos_embedding)
    _change(folder, official.POSITION_TABLE, lambda _: None)
    if told is True:
        with pytest.raises(InputError, match=r"1 missing \(patch_embed.pos_embedding\)"):
            official.load_released(folder)
    else:
        loaded = official.load_released(folder)
        assert official.POSITION_TABLE not in loaded.state_dict() and not loaded.config[official.LEARNED_POSITIONS]


@pytest.mark.parametrize("prefix", ["module.", "transformer.module.", "transformer."])
def test_what_wrappers_left_before_names_is_taken_off(
    folder: Path, model: BindYourAvatarTransformer3DModel, prefix: str
) -> None:
    for path in (folder / "transformer").glob("*.safetensors"):
        save_file({prefix + name: value for name, value in load_file(path).items()}, path)
    for file, own in ((official.AUDIO_FILE, official.AUDIO), (official.ROUTER_FILE, official.ROUTER)):
        content = torch.load(folder / file, weights_only=True)
        torch.save({prefix + own + name: value for name, value in content.items()}, folder / file)
    loaded = official.load_released(folder).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_all_stored_tables_get_the_number_format(folder: Path) -> None:
    """As in the released code, which casts everything, the position tables of router and patches included."""
    half = official.load_released(folder, torch.bfloat16)
    assert half.router.pos_emb.dtype == half.patch_embed.pos_embedding.dtype == torch.bfloat16


def test_the_separate_files_win_over_the_transformer_s_own(
    folder: Path, model: BindYourAvatarTransformer3DModel
) -> None:
    path = next((folder / "transformer").glob("*.safetensors"))
    stale = {"router.pos_emb": torch.zeros(1), "audio_model.learnable_scale": torch.full((1,), 7.0)}
    save_file(load_file(path) | stale, path)
    loaded = official.load_released(folder)
    assert torch.equal(loaded.router.pos_emb, model.router.pos_emb)
    assert torch.equal(loaded.audio_model.learnable_scale, model.audio_model.learnable_scale)


def test_the_averaged_transformer_is_preferred(folder: Path) -> None:
    (folder / "transformer").rename(folder / "transformer_ema")
    (folder / "transformer").mkdir()
    official.load_released(folder)


def test_files_may_have_other_names_where_they_are_alone(folder: Path) -> None:
    """Names of training runs, such as router_modules_v2.pt."""
    router = folder / official.ROUTER_FILE
    router.rename(router.with_name("router_modules_v2.pt"))
    official.load_released(folder)
    torch.save({}, router.with_name("older.pt"))
    with pytest.raises(InputError, match=r"several files in .*router \(older.pt, router_modules_v2.pt\)"):
        official.load_released(folder)


def test_pickles_that_hold_more_than_tensors_are_refused(folder: Path, tmp_path: Path) -> None:
    torch.save({"pos_emb": tmp_path}, folder / official.ROUTER_FILE)  # a path is an object like any other
    with pytest.raises(InputError, match="router_modules.pt cannot be read"):
        official.load_released(folder)
    (folder / official.ROUTER_FILE).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="router_modules.pt cannot be read"):
        official.load_released(folder)
    path = next((folder / "transformer").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="part-.* cannot be read"):
        official.load_released(folder)


def test_the_old_format_of_torch_is_read_too(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = torch.load(folder / official.ROUTER_FILE, weights_only=True)
    torch.save(content, folder / official.ROUTER_FILE, _use_new_zipfile_serialization=False)
    official.load_released(folder)
    assert "old torch format" in caplog.text


def test_a_lora_that_does_not_fit_is_refused() -> None:
    pair = {"x.to_q.lora_A.weight": torch.zeros(2, 4), "x.to_q.lora_B.weight": torch.zeros(4, 2)}
    with pytest.raises(InputError, match="a weight of the model"):
        merge_lora_into(torch.nn.Module(), pair)
    model = torch.nn.ModuleDict({"x": torch.nn.ModuleDict({"to_q": torch.nn.Linear(3, 3)})})
    with pytest.raises(InputError, match=r"the shape of the model \(3, 3\)"):
        merge_lora_into(model, pair)
    with pytest.raises(InputError, match="incomplete LoRA pair"):
        lora_pairs({"x.to_q.lora_A.weight": torch.zeros(2, 4)})
    with pytest.raises(InputError, match="LoRA entry"):
        lora_pairs({"x.to_q.weight": torch.zeros(2, 4)})
