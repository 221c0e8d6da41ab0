"""The denoising loop with a small transformer of the paper flavour."""

from __future__ import annotations

import pytest
import torch

from bya_core.config import SamplingConfig
from bya_core.masks import MaskControl
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.sampling import Conditions, StepInfo, build_scheduler, denoise

T, C, H, W = 2, 4, 4, 6


@pytest.fixture(scope="module")
def model() -> BindYourAvatarTransformer3DModel:
    return build()


def build() -> BindYourAvatarTransformer3DModel:
    """Model with random weights, including those that are initialized to zero."""
    torch.manual_seed(0)
    sizes = {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 3 * C, "out_channels": C,
        "time_embed_dim": 8, "text_embed_dim": 6, "num_layers": 3, "sample_width": W, "sample_height": H,
        "sample_frames": 5, "max_text_seq_length": 3, "cross_attn_interval": 1, "cross_attn_dim_head": 4,
        "cross_attn_num_heads": 2, "lfe_dim": 8, "lfe_depth": 1, "lfe_num_scale": 1, "lfe_dim_head": 4,
        "lfe_heads": 2, "lfe_num_id_token": 1, "lfe_num_queries": 4, "lfe_output_dim": 8, "lfe_vit_dim": 6,
        "lfe_id_dim": 5, "lfe_hidden_dim": 8, "router_dim": 16, "router_heads": 2, "router_blocks": 1,
        "audio_dim": 6, "audio_heads": 2, "audio_dim_head": 4, "audio_blocks": 2, "audio_channels": 3,
        "audio_hidden_dim": 4, "audio_context_tokens": 2,
    }  # fmt: skip
    model = BindYourAvatarTransformer3DModel(flavour="paper", use_learned_positional_embeddings=False, **sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def _conditions(model: BindYourAvatarTransformer3DModel, characters: int, **changes: object) -> Conditions:
    g = torch.Generator().manual_seed(characters)
    identity = torch.randn(1, characters, 5, generator=g)
    hidden = torch.randn(1, characters, 1, 3, 6, generator=g)
    speech = torch.randn(1, characters, 9, 2, 3, generator=g)
    return Conditions(
        text=torch.randn(1, 3, 6, generator=g),
        negative_text=torch.zeros(1, 3, 6),
        latent_shape=(T, C, H, W),
        face_tokens=model.encode_faces(identity, hidden),
        dropped_face_tokens=model.encode_faces(identity * 0, hidden * 0),
        audio_tokens=model.encode_speech(speech),
        silent_audio_tokens=model.encode_speech(speech * 0),
        canvas_latents=torch.randn(1, T, C, H, W, generator=g),
        **changes,
    )


def _run(model, conditions: Conditions, kind: str = "dpm", callback=None, **changes):
    settings = {"steps": 3, "guidance_scale": 3.0, "audio_guidance_scale": 3.0} | changes
    scheduler = build_scheduler(kind)
    return denoise(model, scheduler, conditions, SamplingConfig(**settings), callback=callback)


@pytest.mark.parametrize("kind", ["dpm", "ddim"])
@pytest.mark.parametrize("characters", [1, 2, 3])
def test_callback_receives_preview_and_masks(model, kind: str, characters: int) -> None:
    seen: list[StepInfo] = []
    result = _run(model, _conditions(model, characters), kind, lambda progress: seen.append(progress.info))
    assert [(info.step, info.total) for info in seen] == [(1, 3), (2, 3), (3, 3)]
    for info in seen:
        assert info.x0.shape == (1, T, C, H, W) and info.x0.isfinite().all()
        assert info.masks.shape == (characters, T, H // 2, W // 2)
        assert info.masks.min() >= 0 and info.masks.sum(0).max() <= 1 + 1e-5
    assert torch.equal(result.masks, seen[-1].masks)
    assert torch.equal(result.latents, _run(model, _conditions(model, characters), kind).latents)


def test_guidance_scales_and_conditions_have_an_effect(model) -> None:
    conditions = _conditions(model, 2)
    base = _run(model, conditions).latents
    nearly_joint = _run(model, conditions, audio_guidance_scale=3.0 + 1e-9).latents  # a third branch of no weight
    assert torch.allclose(base, nearly_joint, atol=1e-3)
    swap = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    for changed, options in (
        ({}, {"audio_guidance_scale": 6.0}),
        ({}, {"drop_identity": not SamplingConfig().drop_identity}),
        ({"audio_character_matrix": swap}, {}),
        ({"audio_character_matrix": 0 * swap}, {}),
    ):
        assert not torch.allclose(base, _run(model, _conditions(model, 2, **changed), **options).latents, atol=1e-4)


def test_mask_control(model) -> None:
    masks = torch.zeros(2, T, H // 2, W // 2)
    masks[0, ..., 0], masks[1, ..., 1] = 1, 1
    result = _run(model, _conditions(model, 2, mask_control=MaskControl(masks)))
    assert torch.equal(result.masks, masks)
    half = _run(model, _conditions(model, 2, mask_control=MaskControl(masks, torch.tensor(0.5))))
    assert half.masks[0, ..., 0].min() >= 0.5 and half.masks[0, ..., 1].max() <= 0.5
