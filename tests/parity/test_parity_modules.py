"""Modules of the model against recorded results of the released ones (float32, CPU)."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from bya_core.grid import TokenGrid
from bya_core.models.audio_attention import AudioModel
from bya_core.models.face_attention import FaceCrossAttention, LocalFacialExtractor
from bya_core.models.rope import rotary_embedding
from bya_core.models.router import OfficialRouter, position_table
from tests.parity.parity_models import face_extractor_settings
from tests.parity.weight_rule import fill, input_tensor

TIGHT = {"atol": 2e-5, "rtol": 1e-5}


@torch.no_grad()
def test_face_extractor(settings, tensors):
    config, data = settings("modules_config"), tensors("lfe")
    model = LocalFacialExtractor(**face_extractor_settings(config["lfe"]))
    fill(model, config["salt"] + "lfe:")
    hidden = torch.stack([data[f"vit_{scale}"] for scale in range(model.num_scale)], dim=1)
    assert_close(model(data["id_cond"], hidden), data["out"], **TIGHT)


@torch.no_grad()
def test_face_cross_attention(settings, tensors):
    config, data = settings("modules_config"), tensors("perceiver_cross_attention")
    model = FaceCrossAttention(**config["pca"])
    fill(model, config["salt"] + "pca:")
    query = model.queries(data["latents"][:1])
    key, value = model.keys_values(data["face"].unsqueeze(0))
    assert_close(query.expand_as(data["q"]), data["q"], **TIGHT)
    assert_close(key[0], data["k"], **TIGHT)
    assert_close(query @ key[0].transpose(-1, -2) * model.scale, data["weight"], **TIGHT)
    for character, expected in enumerate(data["out"]):
        masks = torch.zeros(1, len(data["out"]), query.shape[2])
        masks[:, character] = 1
        assert_close(model(query, key, value, masks)[0], expected, **TIGHT)


@torch.no_grad()
def test_router(settings, tensors):
    config, data = settings("modules_config"), tensors("router")
    r = config["router"]
    frames, columns, rows = r["grid"]
    model = OfficialRouter(
        num_layers=r["num_layers"],
        heads=r["num_heads"],
        dim_head=config["router_in"]["dh"],
        num_queries=r["num_id_token"],
        st_heads=r["st_heads"],
        num_blocks=r["n_st"],
        grid=(frames, columns, rows),
    )
    fill(model, config["salt"] + "router:")
    assert_close(model.pos_emb, data["pos_emb"], atol=1e-6, rtol=0)
    for layer in range(r["num_layers"]):
        _, got = model(data["q"][:1], data["k"].unsqueeze(0), layer, TokenGrid(frames, rows, columns))
        assert_close(got.flatten(2).transpose(1, 2), data[f"out_layer{layer}"], **TIGHT)


def audio_model(config):
    a, projection = config["audio"], config["audio"]["proj"]
    sizes = {key: projection[key] for key in ("blocks", "channels", "context_tokens")}
    sizes |= {"window": projection["seq_len"], "hidden_dim": projection["intermediate_dim"]}
    sizes |= {"heads": a["num_attention_heads"], "dim_head": a["attention_head_dim"]}
    sizes |= {key: a[key] for key in ("dim", "audio_dim", "num_layers")}
    return fill(AudioModel(**sizes, temporal_ratio=4, released=True), config["salt"] + "audio:")


@torch.no_grad()
def test_audio(settings, tensors):
    config, data = settings("modules_config"), tensors("audio")
    model = audio_model(config)
    windows = data["audio_emb"].unfold(1, model.window, 1).movedim(-1, 2)
    assert_close(windows, data["windows"], atol=0, rtol=0)
    tokens = model.encode(data["audio_emb"].unsqueeze(0))
    assert_close(tokens[0], data["context_tokens"], **TIGHT)
    layer = model.layers[config["audio_in"]["layer"]]
    hidden = data["hidden"][:1]
    for stream, expected in enumerate(data["out"]):
        masks = torch.zeros(1, len(data["out"]), hidden.shape[1])
        masks[:, stream] = 1
        assert_close(layer(hidden, tokens, masks)[0], expected, **TIGHT)
    both = layer(hidden, tokens, torch.full_like(masks, 0.5))[0]
    assert_close(both, data["out"].mean(0), **TIGHT)


@torch.no_grad()
def test_silence_is_not_zero_tokens(settings, tensors):
    config, shape = settings("modules_config"), tensors("audio")["audio_emb"].shape
    tokens = audio_model(config).encode(torch.zeros(1, *shape))
    expected = tensors("audio_zero")["context_tokens_for_zero_audio"]
    assert_close(tokens[0], expected, **TIGHT)
    assert expected.abs().max() > 0


def test_rotary_table(settings, tensors):
    """Another grid than the released one is fitted into the released rows and columns."""
    grid = settings("transformer_config")["grid"]
    for name in ("transformer_inputs", "pipeline"):
        data = tensors(name)
        table = rotary_embedding(TokenGrid(grid["T"], grid["H"], grid["W"]), data["rope_cos"].shape[1], (30, 45))
        assert_close(table, (data["rope_cos"], data["rope_sin"]), atol=1e-5, rtol=0)


def test_full_position_table(settings):
    recorded = settings("full_config")["pos_emb"]
    table = position_table(tuple(recorded["shape"][:3]), recorded["shape"][3])
    assert table.double().sum().item() == pytest.approx(recorded["sum"], abs=2.0)
    assert table.double().abs().sum().item() == pytest.approx(recorded["abs_sum"], abs=2.0)
    for index, value in recorded["samples"].items():
        assert table[tuple(int(i) for i in index.split(","))].item() == pytest.approx(value, abs=1e-6)


@torch.no_grad()
def test_full_face_extractor(settings, tensors):
    salt, expected = settings("full_config")["salt"] + "lfe:", tensors("full_lfe_out")["out"]
    with torch.device("meta"):
        sizes = {"dim": 1024, "depth": 10, "dim_head": 64, "heads": 16, "num_id_token": 5, "num_queries": 32}
        sizes |= {"output_dim": 2048, "ff_mult": 4, "vit_dim": 1024, "id_dim": 1280, "hidden_dim": 1024}
        model = LocalFacialExtractor(**sizes)
    fill(model.to_empty(device="cpu"), salt)
    identity = input_tensor("id_cond", (1, 1280), salt)
    hidden = torch.stack([input_tensor(f"vit_{scale}", (1, 577, 1024), salt) for scale in range(5)], dim=1)
    assert_close(model(identity, hidden), expected, atol=3e-4, rtol=1e-5)


@torch.no_grad()
def test_full_face_cross_attention(settings, tensors):
    salt, data = settings("full_config")["salt"] + "pca:", tensors("full_pca_out")
    model = FaceCrossAttention(dim=3072, dim_head=128, heads=16, kv_dim=2048)
    fill(model, salt)
    query = model.queries(input_tensor("latents", (1, 24, 3072), salt))
    key, value = model.keys_values(input_tensor("face", (2, 32, 2048), salt).unsqueeze(0))
    loose = {"atol": 5e-5, "rtol": 1e-5}
    assert_close(query, data["q_id0"], **loose)
    assert_close(key[0], data["k"], **loose)
    assert_close(query @ key[0].transpose(-1, -2) * model.scale, data["weight"], **loose)
    for character in range(2):
        masks = torch.zeros(1, 2, query.shape[2])
        masks[:, character] = 1
        assert_close(model(query, key, value, masks)[0], data["out"][character], **loose)


@pytest.mark.slow
@torch.no_grad()
def test_full_router(settings, tensors):
    config, expected = settings("full_config"), tensors("full_router_out")["out"]
    salt, shape = config["salt"] + "router:", tuple(config["pos_emb"]["shape"][:3])
    model = OfficialRouter(num_layers=1, heads=16, dim_head=128, num_queries=32, st_heads=8, num_blocks=4, grid=shape)
    fill(model, salt)
    query = input_tensor("q", (1, 16, expected.shape[1], 128), salt)
    key = input_tensor("k", (2, 16, 32, 128), salt)
    _, got = model(query, key.unsqueeze(0), 0, TokenGrid(shape[0], shape[2], shape[1]))
    assert_close(got.flatten(2).transpose(1, 2), expected, atol=5e-5, rtol=1e-5)
