"""Starting from a base model in the layouts of diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, ConsisIDTransformer3DModel

from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from tests.training.run_parts import command, finish, losses, write_recipe
from tests.training.stage_parts import SMALL
from training.engine import build
from training.engine.build import build_model
from training.engine.recipe import load_recipe
from training.engine.settings import RunSettings

PATCH = "patch_embed.proj.weight"
SHARED = (
    "num_attention_heads", "attention_head_dim", "num_layers", "out_channels", "time_embed_dim", "text_embed_dim",
    "max_text_seq_length", "sample_height", "sample_width", "sample_frames", "use_learned_positional_embeddings",
)  # fmt: skip


def _cogvideox(**changes) -> CogVideoXTransformer3DModel:
    torch.manual_seed(1)
    values = {name: SMALL[name] for name in SHARED} | {"use_rotary_positional_embeddings": True, "in_channels": 8}
    return CogVideoXTransformer3DModel(**{**values, **changes})


def _consisid() -> ConsisIDTransformer3DModel:
    torch.manual_seed(2)
    values = {name: SMALL[name] for name in SHARED} | {"use_rotary_positional_embeddings": True, "in_channels": 8}
    faces = {
        "LFE_id_dim": "lfe_id_dim", "LFE_vit_dim": "lfe_vit_dim", "LFE_depth": "lfe_depth",
        "LFE_dim_head": "lfe_dim_head", "LFE_num_heads": "lfe_heads", "LFE_num_id_token": "lfe_num_id_token",
        "LFE_num_querie": "lfe_num_queries", "LFE_output_dim": "lfe_output_dim", "LFE_ff_mult": "lfe_ff_mult",
        "cross_attn_interval": "cross_attn_interval", "cross_attn_dim_head": "cross_attn_dim_head",
        "cross_attn_num_heads": "cross_attn_num_heads",
    }  # fmt: skip
    return ConsisIDTransformer3DModel(
        **values, is_train_face=True, **{theirs: SMALL[ours] for theirs, ours in faces.items()} | {"LFE_output_dim": 21}
    )


def _build(tmp_path: Path, base: Path | None, *assignments: str, stage: int = 1, **settings) -> torch.nn.Module:
    path = tmp_path / "small.yaml"
    if not path.exists():
        write_recipe(path, lora=None)
    options = RunSettings(tmp_path / "run", base=None if base is None else str(base), **settings)
    return build_model(load_recipe(path, assignments), stage, options)


@pytest.mark.parametrize("folder", ["pipeline", "transformer"])
def test_cogvideox(tmp_path: Path, folder: str) -> None:
    """Equal weights, zeros for the channels of the canvas, new modules as without a base."""
    base = _cogvideox()
    path = tmp_path / "base" / "transformer" if folder == "pipeline" else tmp_path / "base"
    base.save_pretrained(path)
    model, plain = _build(tmp_path, tmp_path / "base"), _build(tmp_path, None)
    loaded, stored, fresh = model.state_dict(), base.state_dict(), plain.state_dict()
    assert torch.equal(loaded[PATCH][:, :8], stored[PATCH]) and not loaded[PATCH][:, 8:].any()
    for name, value in loaded.items():
        if name != PATCH:
            assert torch.equal(value, stored.get(name, fresh[name])), name
    assert len(stored) > 50


def test_consisid(tmp_path: Path) -> None:
    base = _consisid()
    base.save_pretrained(tmp_path / "base" / "transformer")
    sizes = ("model.lfe_dim=8", "model.lfe_hidden_dim=8", "model.lfe_output_dim=21")  # given by others in ConsisID
    loaded, stored = _build(tmp_path, tmp_path / "base", *sizes).state_dict(), base.state_dict()
    assert any(name.startswith("local_facial_extractor.") for name in stored)
    assert all(torch.equal(loaded[name], value) for name, value in stored.items() if name != PATCH)


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    _cogvideox(num_layers=4).save_pretrained(tmp_path / "deep")
    with pytest.raises(InputError, match=r"does not match .*transformer_blocks\.3\."):
        _build(tmp_path, tmp_path / "deep")
    _cogvideox(use_learned_positional_embeddings=True).save_pretrained(tmp_path / "learned")
    with pytest.raises(InputError, match=r"--set model\.use_learned_positional_embeddings=true"):
        _build(tmp_path, tmp_path / "learned")
    with pytest.raises(InputError, match="no weights in --base"):
        _build(tmp_path, tmp_path / "absent")
    with pytest.raises(InputError, match="--init and --base"):
        _build(tmp_path, tmp_path / "deep", init=str(tmp_path / "init"))


def test_random_start_at_published_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "MAX_RANDOM", 1000)
    with pytest.raises(InputError, match="billion random weights; .*--base FOLDER"):
        _build(tmp_path, None)


@pytest.mark.slow
def test_stage_1_trains_from_a_base(data, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "small.yaml", dropout=0.0)
    _cogvideox().save_pretrained(tmp_path / "base" / "transformer")
    arguments = command(recipe, data, tmp_path / "run", "--steps", "2", "--base", str(tmp_path / "base"), stage=1)
    init = arguments.index("--init")
    finish([*arguments[:init], *arguments[init + 2 :]])
    assert list(losses(tmp_path / "run")) == [1, 2]
    assert BindYourAvatarTransformer3DModel.from_pretrained(tmp_path / "run" / "final") is not None
