"""The whole transformer against recorded results of the released one (float32, CPU)."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from bya_core.masks import time_union
from tests.parity.parity_models import build_transformer, face_tokens, masks
from tests.parity.weight_rule import fill

LOOSE = {"atol": 5e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def config(settings):
    return settings("transformer_config")


@pytest.fixture(scope="module")
def model(config):
    return fill(build_transformer(config), config["salt"])


@pytest.fixture(scope="module")
def inputs(tensors):
    return tensors("transformer_inputs")


@pytest.fixture(scope="module")
def outputs(tensors):
    return tensors("transformer_outputs")


def matrix(inputs, *halves):
    """Audio-character matrix [B, 2, 2]: one of "eye", "swap", "zero" per batch element, or one for all."""
    eye = torch.eye(2)
    kinds = {"eye": eye, "swap": 1 - eye, "zero": torch.zeros(2, 2)}
    batch = len(inputs["timestep"])
    return torch.stack([kinds[kind] for kind in (halves if len(halves) > 1 else halves * batch)])


def call(model, inputs, audio=None, **conditions):
    return model(
        inputs["hidden_states"],
        inputs["encoder_hidden_states"],
        inputs["timestep"],
        image_rotary_emb=(inputs["rope_cos"], inputs["rope_sin"]),
        face_tokens=face_tokens(model, inputs),
        audio_tokens=audio,
        **conditions,
    )


def override(inputs, config):
    """Masks as in the released code: union over time, the same for the whole batch."""
    given = time_union(masks(inputs["forced"], config["grid"]))
    return given.expand(len(inputs["timestep"]), *given.shape[1:])


def test_parameter_names_and_shapes(model, config):
    ours = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert ours == config["state_dict"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["intra", "intra_swap", "forced", "forced_swap", "no_audio", "af_zero_uncond"])
def test_variant(name, model, config, inputs, outputs):
    audio = None if name == "no_audio" else model.encode_speech(inputs["audio"])
    kinds = ("zero", "eye") if name == "af_zero_uncond" else ("swap",) if name.endswith("swap") else ("eye",)
    conditions = {"audio_character_matrix": None if audio is None else matrix(inputs, *kinds)}
    if name.startswith("forced"):
        conditions["mask_override"] = override(inputs, config)
    out = call(model, inputs, audio, **conditions)
    assert_close(out.sample, outputs[name], **LOOSE)
    assert (out.masks is None) == name.startswith("forced")


@torch.no_grad()
def test_single_stream_with_learned_silence(model, inputs, outputs):
    """One stream for two characters: the second one receives the released mute tokens."""
    features = model.config.temporal_compression_ratio * inputs["hidden_states"].shape[1] + 1
    mute = model.encode_speech(inputs["ae_mute"][None, None, :features])[0]
    assert_close(mute, outputs["mute_context_tokens"], atol=2e-5, rtol=1e-5)
    mute = mute + model.audio_model.mute_learnable_tokens
    speech = model.encode_speech(inputs["audio"][:, :1])
    audio = torch.cat([speech, mute.expand(len(speech), 1, -1, -1, -1)], dim=1)
    assert_close(call(model, inputs, audio).sample, outputs["single_stream"], **LOOSE)


@torch.no_grad()
def test_bfloat16(config, inputs, outputs):
    model = fill(build_transformer(config), config["salt"]).to(torch.bfloat16)
    half = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}
    half |= {key: inputs[key] for key in ("rope_cos", "rope_sin")}
    out = call(model, half, model.encode_speech(half["audio"]), audio_character_matrix=matrix(inputs, "eye"))
    assert out.sample.dtype == torch.bfloat16
    assert (out.sample.float() - outputs["intra"]).abs().max() < 0.3


@torch.no_grad()
def test_intermediates(model, config, inputs, tensors):
    """All recorded intermediate tensors of the `intra` call."""
    wanted, seen = tensors("transformer_intermediates"), {}
    hooks = [
        model.patch_embed.register_forward_hook(lambda _, __, out: seen.setdefault("patch_embed.0", out)),
        model.time_embedding.register_forward_hook(lambda _, __, out: seen.setdefault("temb.0", out)),
        model.norm_out.register_forward_hook(lambda _, __, out: seen.setdefault("norm_out.0", out)),
    ]

    def before_injection(index, block):
        plain = block.forward

        def forward(*args):
            *others, inject = args
            hidden, text = plain(*others)
            seen[f"block_hidden.{index}"], seen[f"block_text.{index}"] = hidden, text
            return (hidden if inject is None else inject(hidden)), text

        block.forward = forward

    blocks = list(model.transformer_blocks)
    for index, block in enumerate(blocks):
        before_injection(index, block)
    contributions: dict[str, list] = {"face_feat": [], "audio_feat": []}
    face, speech = model.perceiver_cross_attention, model.audio_model.layers
    for kind, layers in (("face_feat", face), ("audio_feat", speech)):
        for layer in layers:
            hooks.append(
                layer.register_forward_hook(
                    lambda module, args, _, kind=kind: contributions[kind].append((module, args))
                )
            )
    try:
        audio = model.encode_speech(inputs["audio"])
        out = call(model, inputs, audio, audio_character_matrix=matrix(inputs, "eye"))
    finally:
        for hook in hooks:
            hook.remove()
        for block in blocks:
            del block.forward

    tokens = face_tokens(model, inputs)
    seen |= {f"lfe.{k}": tokens[:, k] for k in range(tokens.shape[1])}
    seen["audio_ctx.0"] = audio.flatten(0, 1)
    batch = len(inputs["timestep"])
    for layer, layer_masks in enumerate(out.masks):
        for b in range(batch):
            seen[f"router.{layer * batch + b}"] = layer_masks[b : b + 1].flatten(2).transpose(1, 2)
    for kind, calls in contributions.items():
        for layer, (module, args) in enumerate(calls):
            parts = []
            for one in range(args[-1].shape[1]):
                only = torch.zeros_like(args[-1])
                only[:, one] = 1
                parts.append(module(*args[:-1], only))
            for b, each in enumerate(torch.stack(parts, dim=1)):
                seen[f"{kind}.{layer * batch + b}"] = each
    assert set(wanted) <= set(seen)
    for name, expected in wanted.items():
        assert_close(seen[name], expected, **LOOSE, msg=lambda text, name=name: f"{name}: {text}")
