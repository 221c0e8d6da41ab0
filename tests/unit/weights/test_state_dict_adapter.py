"""Loading small folders in the released layout, and errors for invalid ones."""

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
from bya_core.weights.lora import lora_pairs, merge_pairs_into

SIZES = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 48, "out_channels": 4, "time_embed_dim": 8,
    "text_embed_dim": 6, "num_layers": 2, "sample_width": 8, "sample_height": 4, "sample_frames": 5,
    "max_text_seq_length": 3, "lfe_dim": 8, "lfe_depth": 5, "lfe_dim_head": 4, "lfe_heads": 2,
    "lfe_num_id_token": 1, "lfe_num_queries": 4, "lfe_output_dim": 8, "lfe_vit_dim": 6, "lfe_id_dim": 5,
    "lfe_hidden_dim": 8, "router_heads": 2, "router_blocks": 1, "audio_dim": 6, "audio_heads": 2,
    "audio_dim_head": 4, "audio_blocks": 2, "audio_channels": 3, "audio_hidden_dim": 4, "audio_context_tokens": 2,
    "cross_attn_dim_head": 4, "cross_attn_num_heads": 2,
}  # fmt: skip


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> BindYourAvatarTransformer3DModel:
    # the released code ignores these arguments; here they select small modules
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


def _assert_equal_weights(loaded: BindYourAvatarTransformer3DModel, expected: BindYourAvatarTransformer3DModel) -> None:
    weights, wanted = loaded.state_dict(), expected.state_dict()
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


def test_load_released(folder: Path, model: BindYourAvatarTransformer3DModel) -> None:
    loaded = official.load_released(folder)
    _assert_equal_weights(loaded, model)
    assert not any(p.is_meta for p in (*loaded.parameters(), *loaded.buffers()))
    half = official.load_released(folder, torch.bfloat16)
    tables = (half.router.pos_emb, half.patch_embed.pos_embedding)  # cast as well, as in the released code
    assert {p.dtype for p in (*half.parameters(), *tables)} == {torch.bfloat16}


def test_lora_file_is_merged(folder: Path, model: BindYourAvatarTransformer3DModel) -> None:
    name = "transformer_blocks.1.attn1.to_q"
    a, b = torch.randn(3, 32), torch.randn(32, 3)
    lora = {f"transformer.module.{name}.lora_A.weight": a, f"transformer.module.{name}.lora_B.weight": b}
    path = folder / official.LORA_FILE
    path.parent.mkdir()
    save_file(lora, path)
    before = model.state_dict()[f"{name}.weight"]
    after = official.load_released(folder).state_dict()[f"{name}.weight"]
    assert torch.allclose(after, before + b @ a, atol=1e-5)


def test_lora_in_the_transformer_file_is_merged(folder: Path, model: BindYourAvatarTransformer3DModel) -> None:
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


def test_missing_weights_raise(folder: Path) -> None:
    router = torch.load(folder / official.ROUTER_FILE, weights_only=True)
    router.pop("pos_emb")
    torch.save(router, folder / official.ROUTER_FILE)
    with pytest.raises(InputError, match=r"entries 1 missing \(router.pos_emb\)"):
        official.load_released(folder)
    (folder / official.ROUTER_FILE).unlink()
    with pytest.raises(InputError, match="router_modules.pt"):
        official.load_released(folder)


def test_entries_of_other_release_versions(
    folder: Path, model: BindYourAvatarTransformer3DModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Additional entries are ignored, and weights that no computation reads may be missing, both with a warning."""
    router = torch.load(folder / official.ROUTER_FILE, weights_only=True)
    unread = [name for name in router if name.startswith("layer_merge.")]
    assert unread
    kept = {name: value for name, value in router.items() if name not in unread}
    torch.save(kept | {"id_merge.weight": torch.ones(2, 2)}, folder / official.ROUTER_FILE)
    loaded = official.load_released(folder).state_dict()
    assert "id_merge.weight" in caplog.text and unread[0] in caplog.text
    for name, weight in model.state_dict().items():
        is_unread = name.removeprefix("router.") in unread
        assert not loaded[name].any() if is_unread else torch.equal(loaded[name], weight), name


def test_patch_projection_is_widened(folder: Path, model: BindYourAvatarTransformer3DModel) -> None:
    """The projection of CogVideoX-5B-I2V has 32 of the 48 channels; more than 48 raise an error."""
    _change(folder, official.PATCH_PROJECTION, lambda weight: weight[:, :32].contiguous())
    widened = official.load_released(folder).state_dict()[official.PATCH_PROJECTION]
    assert torch.equal(widened[:, :32], model.state_dict()[official.PATCH_PROJECTION][:, :32])
    assert widened.shape[1] == 48 and not widened[:, 32:].any()
    _change(folder, official.PATCH_PROJECTION, lambda weight: torch.cat([weight, weight], dim=1))
    with pytest.raises(InputError, match=r"1 misshapen \(patch_embed.proj.weight \(32, 64, 2, 2\) instead of"):
        official.load_released(folder)


def _change(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    """Change one weight of the transformer files, or remove it."""
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        part = load_file(path)
        if name in part:
            changed = change(part.pop(name))
            save_file(part if changed is None else {**part, name: changed}, path)


@pytest.mark.parametrize("learned", [True, False, None])
def test_learned_positions(folder: Path, model: BindYourAvatarTransformer3DModel, learned: bool | None) -> None:
    """config.json decides whether there is a table; without an entry, the files do."""
    path = folder / "transformer/config.json"
    config = json.loads(path.read_text())
    if learned is not None:
        config[official.LEARNED_POSITIONS] = learned
        path.write_text(json.dumps(config))
    if learned is False:
        with pytest.raises(InputError, match=r"learned position table"):
            official.load_released(folder)
    else:
        assert torch.equal(official.load_released(folder).patch_embed.pos_embedding, model.patch_embed.pos_embedding)
    _change(folder, official.POSITION_TABLE, lambda _: None)
    if learned is True:
        with pytest.raises(InputError, match=r"1 missing \(patch_embed.pos_embedding\)"):
            official.load_released(folder)
    else:
        loaded = official.load_released(folder)
        assert official.POSITION_TABLE not in loaded.state_dict() and not loaded.config[official.LEARNED_POSITIONS]


@pytest.mark.parametrize("prefix", ["module.", "transformer.module.", "transformer."])
def test_prefixes_of_wrappers_are_removed(folder: Path, model: BindYourAvatarTransformer3DModel, prefix: str) -> None:
    for path in (folder / "transformer").glob("*.safetensors"):
        save_file({prefix + name: value for name, value in load_file(path).items()}, path)
    for file, module in ((official.AUDIO_FILE, official.AUDIO), (official.ROUTER_FILE, official.ROUTER)):
        content = torch.load(folder / file, weights_only=True)
        torch.save({prefix + module + name: value for name, value in content.items()}, folder / file)
    _assert_equal_weights(official.load_released(folder), model)


def test_separate_modules_override_the_transformer_file(folder: Path, model: BindYourAvatarTransformer3DModel) -> None:
    path = next((folder / "transformer").glob("*.safetensors"))
    outdated = {"router.pos_emb": torch.zeros(1), "audio_model.learnable_scale": torch.full((1,), 7.0)}
    save_file(load_file(path) | outdated, path)
    _assert_equal_weights(official.load_released(folder), model)


def test_averaged_transformer_is_preferred(folder: Path, model: BindYourAvatarTransformer3DModel) -> None:
    (folder / "transformer").rename(folder / "transformer_ema")
    (folder / "transformer").mkdir()
    _assert_equal_weights(official.load_released(folder), model)


def test_single_files_may_have_other_names(folder: Path) -> None:
    router = folder / official.ROUTER_FILE
    router.rename(router.with_name("router_modules_v2.pt"))
    official.load_released(folder)
    torch.save({}, router.with_name("older.pt"))
    with pytest.raises(InputError, match=r"several files in .*router \(older.pt, router_modules_v2.pt\)"):
        official.load_released(folder)


def test_unreadable_files_raise(folder: Path, tmp_path: Path) -> None:
    torch.save({"pos_emb": tmp_path}, folder / official.ROUTER_FILE)  # arbitrary objects are not unpickled
    with pytest.raises(InputError, match="router_modules.pt cannot be read"):
        official.load_released(folder)
    (folder / official.ROUTER_FILE).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="router_modules.pt cannot be read"):
        official.load_released(folder)
    path = next((folder / "transformer").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match="part-.* cannot be read"):
        official.load_released(folder)


def test_old_torch_format(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = torch.load(folder / official.ROUTER_FILE, weights_only=True)
    torch.save(content, folder / official.ROUTER_FILE, _use_new_zipfile_serialization=False)
    official.load_released(folder)
    assert "old torch format" in caplog.text


def test_invalid_lora_raises() -> None:
    pair = {"x.to_q.lora_A.weight": torch.zeros(2, 4), "x.to_q.lora_B.weight": torch.zeros(4, 2)}
    with pytest.raises(InputError, match="a weight of the model"):
        merge_pairs_into(torch.nn.Module(), lora_pairs(pair))
    model = torch.nn.ModuleDict({"x": torch.nn.ModuleDict({"to_q": torch.nn.Linear(3, 3)})})
    with pytest.raises(InputError, match=r"the shape of the model \(3, 3\)"):
        merge_pairs_into(model, lora_pairs(pair))
    with pytest.raises(InputError, match="incomplete LoRA pair"):
        lora_pairs({"x.to_q.lora_A.weight": torch.zeros(2, 4)})
    with pytest.raises(InputError, match="LoRA entry"):
        lora_pairs({"x.to_q.weight": torch.zeros(2, 4)})
