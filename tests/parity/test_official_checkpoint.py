"""Released files <-> our names, against the manifest of the real ones; LoRA against a recorded result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from torch.testing import assert_close

from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.weights import export as convert
from bya_core.weights import state_dict_adapter as official
from bya_core.weights.comparison import compare_weights
from bya_core.weights.lora import lora_pairs, merge_pairs_into
from tests.parity.parity_models import build_transformer, face_tokens
from tests.parity.weight_rule import fill


def _meta(entries: dict | list) -> dict | list:
    """Manifest entries [shape, dtype] -> empty tensors."""
    if isinstance(entries, list) and entries and isinstance(entries[0], list):
        return torch.empty(entries[0], device="meta")
    if isinstance(entries, list):
        return [_meta(entry) for entry in entries]
    return {key: _meta(value) for key, value in entries.items()}


@pytest.fixture(scope="module")
def released_model(manifest) -> BindYourAvatarTransformer3DModel:
    with init_empty_weights(include_buffers=True):
        return BindYourAvatarTransformer3DModel(**official.model_arguments(manifest["config"]))


def test_released_names_and_shapes(manifest, released_model) -> None:
    files = {name: _meta(entries) for name, entries in manifest["files"].items()}
    given = dict(files["transformer"])
    given |= official.map_audio(files["audio_modules.pt"])
    given |= official.map_face(files["face_modules.pt"])
    given |= official.map_router(files["router_modules.pt"])
    ours = released_model.state_dict()
    compare_weights(
        {key: tuple(value.shape) for key, value in ours.items()},
        {key: tuple(value.shape) for key, value in given.items()},
    ).check()
    counts = manifest["param_counts_incl_buffers"]
    assert sum(v.numel() for v in ours.values()) == sum(n for part, n in counts.items() if part != "lora")


def test_export_to_released_names(manifest, released_model) -> None:
    back = official.to_released(released_model.state_dict())
    for path, content in back.items():
        theirs = _meta(manifest["files"][Path(path).name])
        assert content.keys() == theirs.keys(), path
    layers = back[official.FACE_FILE]["perceiver_cross_attention"]
    assert [set(layer) for layer in layers] == [
        set(layer) for layer in manifest["files"]["face_modules.pt"]["perceiver_cross_attention"]
    ]


def test_released_lora_names_and_shapes(manifest, released_model) -> None:
    lora = _meta(manifest["files"]["pytorch_lora_weights.safetensors"])
    ours = released_model.state_dict()
    pairs = lora_pairs(lora)
    assert len(pairs) == len(lora) // 2
    for name, (a, b) in pairs.items():
        assert ours[name].shape == (b.shape[0], a.shape[1])


@pytest.mark.parametrize("prefix", ["transformer.", "transformer.module.", ""])
def test_lora_at_scale_one(settings, tensors, prefix: str) -> None:
    fixture, inputs = settings("transformer_config"), tensors("transformer_inputs")
    model = fill(build_transformer(fixture), fixture["salt"])
    lora = {prefix + k.removeprefix("transformer."): v for k, v in tensors("lora_official_format").items()}
    assert merge_pairs_into(model, lora_pairs(lora)) == len(lora) // 2
    with torch.no_grad():
        out = model(
            inputs["hidden_states"],
            inputs["encoder_hidden_states"],
            inputs["timestep"],
            image_rotary_emb=(inputs["rope_cos"], inputs["rope_sin"]),
            face_tokens=face_tokens(model, inputs),
            audio_tokens=model.encode_speech(inputs["audio"]),
        )
    assert_close(out.sample, tensors("lora_output")["out"], atol=5e-5, rtol=1e-5)


def test_released_config(manifest, released_model) -> None:
    written = convert._released_config(released_model)
    assert written == manifest["config"] and official.model_arguments(written) == official.model_arguments(
        manifest["config"]
    )
