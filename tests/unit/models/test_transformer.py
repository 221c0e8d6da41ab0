"""The transformer in both flavours: shapes, conditions, gradients, step caches, errors."""

from __future__ import annotations

import pytest
import torch

from bya_core.errors import InputError
from bya_core.models.transformer import BindYourAvatarTransformer3DModel

SIZES = {
    "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 6, "out_channels": 2, "time_embed_dim": 16,
    "text_embed_dim": 12, "num_layers": 4, "sample_width": 8, "sample_height": 6, "sample_frames": 9,
    "max_text_seq_length": 5, "cross_attn_dim_head": 8, "cross_attn_num_heads": 2, "lfe_dim": 16, "lfe_depth": 2,
    "lfe_dim_head": 8, "lfe_heads": 2, "lfe_num_id_token": 2, "lfe_num_queries": 8, "lfe_output_dim": 16,
    "lfe_ff_mult": 2, "lfe_vit_dim": 10, "lfe_id_dim": 9, "lfe_hidden_dim": 16, "lfe_num_scale": 2, "router_dim": 16,
    "router_heads": 2, "router_blocks": 1, "audio_dim": 12, "audio_heads": 2, "audio_dim_head": 8, "audio_window": 5,
    "audio_blocks": 2, "audio_channels": 6, "audio_hidden_dim": 12, "audio_context_tokens": 3,
}  # fmt: skip
PAPER = {
    "flavour": "paper",
    "use_learned_positional_embeddings": False,
    "inflate_audio_masks": False,
    "injection_start": 1,
    "num_router_layers": 1,
}
FLAVOURS = {"official": {}, "paper": PAPER}


def build(flavour: str, **changes) -> BindYourAvatarTransformer3DModel:
    """Small model with random weights, including those that are initialized to zero."""
    torch.manual_seed(0)
    model = BindYourAvatarTransformer3DModel(**(SIZES | FLAVOURS[flavour] | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def inputs(characters=2, frames=3, height=6, width=8, batch=2, text=5, seed=0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    count = 4 * (frames - 1) + 1 + 4
    shapes = {
        "hidden_states": (batch, frames, 6, height, width),
        "encoder_hidden_states": (batch, text, 12),
        "identity": (batch, characters, 9),
        "hidden": (batch, characters, 2, 7, 10),
        "features": (batch, characters, count, 2, 6),
    }
    made = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    return made | {"timestep": torch.randint(0, 1000, (batch,), generator=draw)}


def run(model, given, order=None, **changes):
    """Encode and call; `order` permutes the characters."""
    order = list(range(given["identity"].shape[1])) if order is None else order
    conditions = {
        "face_tokens": model.encode_faces(given["identity"][:, order], given["hidden"][:, order]),
        "audio_tokens": model.encode_speech(given["features"][:, order]),
    }
    plain = [given[name] for name in ("hidden_states", "encoder_hidden_states", "timestep")]
    return model(*plain, **(conditions | changes))


@pytest.fixture(scope="module", params=list(FLAVOURS))
def model(request):
    return build(request.param)


@torch.no_grad()
@pytest.mark.parametrize("characters", [1, 2, 3, 4])
def test_number_of_characters(model, characters):
    given = inputs(characters)
    out = run(model, given)
    layers = model.router_layers
    assert out.sample.shape == (2, 3, 2, 6, 8)
    assert out.masks.shape == (layers, 2, characters, 3, 3, 4)
    background = model.config.flavour == "paper"
    assert out.router_logits.shape == (layers, 2, characters + background, 3, 3, 4)
    assert out.used_masks.shape == (2, characters, 3, 3, 4)
    assert out.masks.min() >= 0 and out.masks.max() <= 1
    if background:
        assert (out.masks.sum(2) <= 1 + 1e-5).all()


@torch.no_grad()
@pytest.mark.parametrize(("size", "text"), [((1, 2, 2), 5), ((2, 6, 8), 5), ((5, 10, 4), 5), ((3, 6, 8), 3)])
def test_grid_and_text_length(model, size, text):
    frames, height, width = size
    if model.config.use_learned_positional_embeddings and size[1:] != (6, 8):
        height, width = 8, 12
    out = run(model, inputs(frames=frames, height=height, width=width, text=text))
    assert out.sample.shape == (2, frames, 2, height, width) and out.sample.isfinite().all()


@torch.no_grad()
def test_character_order_equivariance(model):
    given, order = inputs(3), [2, 0, 1]
    plain, permuted = run(model, given), run(model, given, order)
    assert torch.allclose(plain.sample, permuted.sample, atol=1e-4)
    assert torch.allclose(plain.masks[:, :, order], permuted.masks, atol=1e-5)
    weights = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(1))
    plain = run(model, given, audio_character_matrix=weights)
    permuted = run(model, given, order, audio_character_matrix=weights[:, order][:, :, order])
    assert torch.allclose(plain.sample, permuted.sample, atol=1e-4)


@torch.no_grad()
def test_audio_character_matrix(model):
    given = inputs(2)
    eye, swap = torch.eye(2).expand(2, 2, 2), torch.eye(2).flip(0).expand(2, 2, 2)
    plain = run(model, given)
    assert torch.allclose(run(model, given, audio_character_matrix=eye).sample, plain.sample, atol=1e-5)
    swapped = run(model, given, audio_character_matrix=swap)
    assert (swapped.sample - plain.sample).abs().max() > 1e-3
    crossed = given | {"features": given["features"].flip(1)}
    assert torch.allclose(swapped.sample, run(model, crossed).sample, atol=1e-4)


@torch.no_grad()
def test_conditions_act_only_inside_masks():
    """With one conditioned block; later blocks mix all tokens."""
    model, given = build("paper", num_layers=2), inputs(2)
    masks = torch.zeros(2, 2, 3, 3, 4)
    masks[:, 0, :, :, 0] = 1
    out = run(model, given, mask_override=masks)
    other = given | {"features": given["features"] + 1, "identity": given["identity"] + 1}
    changed = (run(model, other, mask_override=masks).sample - out.sample).abs().amax((0, 1, 2))
    assert changed[:, :2].max() > 1e-4 and changed[:, 2:].max() < 1e-6


@torch.no_grad()
def test_mask_override(model):
    given, masks = inputs(2), torch.rand(2, 2, 3, 3, 4)
    out = run(model, given, mask_override=masks)
    assert out.masks is None and torch.equal(out.used_masks, masks)
    routed = run(model, given, mask_override=masks, run_router=True)
    assert torch.equal(routed.sample, out.sample) and routed.masks is not None
    layers = masks.expand(model.schedule.face_layers, *masks.shape)
    expected = {None: out, 0.0: run(model, given), 1.0: out}
    for strength, same in expected.items():
        made = run(model, given, mask_override=layers, mask_override_strength=strength)
        assert torch.allclose(made.sample, same.sample, atol=1e-5)
    half = run(model, given, mask_override=masks, mask_override_strength=0.5)
    assert torch.allclose(half.used_masks, (half.masks[-1] + masks) / 2, atol=1e-5)


@torch.no_grad()
def test_without_faces_or_speech(model):
    given = inputs(2)
    nothing = run(model, given, face_tokens=None, audio_tokens=None)
    assert nothing.masks is None and nothing.used_masks is None
    assert run(model, given, audio_tokens=None).masks is not None
    speech = run(model, given, face_tokens=None, mask_override=torch.rand(2, 2, 3, 3, 4))
    assert (speech.sample - nothing.sample).abs().max() > 1e-4
    sample, masks, logits, used = run(model, given, return_dict=False)
    assert sample.shape == nothing.sample.shape and masks.shape[2] == used.shape[1] == 2


def test_gradient_checkpointing(model):
    given = inputs(2)

    def gradients():
        model.zero_grad()
        out = run(model, given)
        (out.sample.square().mean() + out.router_logits.square().mean()).backward()
        return out.sample.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain_sample, plain = gradients()
    model.enable_gradient_checkpointing()
    try:
        sample, checkpointed = gradients()
    finally:
        model.disable_gradient_checkpointing()
    assert torch.equal(sample, plain_sample) and len(plain) == len(checkpointed)
    for one, other in zip(plain, checkpointed, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("detach", [True, False])
def test_router_detach(detach):
    """Detached, the router loss trains the router alone and the denoising loss does not train it."""
    model = build("paper", router_detach=detach)
    run(model, inputs(2), mask_override=torch.rand(2, 2, 3, 3, 4), run_router=True).router_logits.sum().backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert "router" in trained and (trained == {"router"}) == detach
    model.zero_grad()
    run(model, inputs(2)).sample.square().mean().backward()
    assert (model.router.final_proj.weight.grad is None) == detach


def test_every_parameter_has_a_gradient():
    model = build("paper")
    out = run(model, inputs(2))
    (out.sample.square().mean() + out.router_logits.square().mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@torch.no_grad()
def test_initial_prediction_is_zero():
    model = BindYourAvatarTransformer3DModel(**(SIZES | PAPER))
    assert run(model, inputs(2)).sample.abs().max() == 0


@torch.no_grad()
def test_first_block_cache(model):
    """With equal inputs a cached step equals a full one; face and speech conditioning are part of the blocks."""
    hooks = pytest.importorskip("diffusers.hooks")
    if not hasattr(hooks, "FirstBlockCacheConfig"):
        pytest.skip("diffusers < 0.35 has no First-Block Cache")
    given, ran = inputs(2), []
    full = run(model, given).sample
    handle = model.transformer_blocks[-1].ff.register_forward_hook(lambda *_: ran.append(1))
    model.enable_cache(hooks.FirstBlockCacheConfig(threshold=0.1))
    try:
        with model.cache_context("cond"):
            outputs = [run(model, given).sample for _ in range(2)]
    finally:
        model.disable_cache()
        handle.remove()
    assert len(ran) == 1 and all(torch.allclose(out, full, atol=1e-5) for out in outputs)


@torch.no_grad()
def test_save_and_load(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = BindYourAvatarTransformer3DModel.from_pretrained(tmp_path)
    given = inputs(2)
    assert torch.equal(run(again, given).sample, run(model, given).sample)


@torch.no_grad()
def test_lora():
    from peft import LoraConfig

    model, given = build("paper"), inputs(2)
    before = run(model, given).sample
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["attn1.to_q", "attn1.to_k"]))
    assert torch.allclose(run(model, given).sample, before, atol=1e-6)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_()
    assert (run(model, given).sample - before).abs().max() > 1e-4


@torch.no_grad()
def test_attention_backend(model):
    if not hasattr(model, "set_attention_backend"):
        pytest.skip("diffusers < 0.35 has no attention backends")
    given = inputs(2)
    before = run(model, given).sample
    model.set_attention_backend("_native_math")
    try:
        assert torch.allclose(run(model, given).sample, before, atol=1e-4)
        assert model.transformer_blocks[0].attn1.processor._attention_backend is not None
    finally:
        model.reset_attention_backend()


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"hidden_states": torch.zeros(2, 3, 5, 6, 8)}, "latents"),
        ({"hidden_states": torch.zeros(2, 3, 6, 7, 8)}, "latents of 7 x 8"),
        ({"encoder_hidden_states": torch.zeros(2, 5, 11)}, "text"),
        ({"timestep": torch.zeros(3)}, "timestep"),
        ({"identity": torch.zeros(2, 2, 8)}, "identity"),
        ({"hidden": torch.zeros(2, 2, 3, 7, 10)}, "face features"),
        ({"features": torch.zeros(2, 2, 14, 2, 6)}, "speech features of 14 frames"),
        ({"features": torch.zeros(2, 2, 13, 3, 6)}, "speech features"),
        ({"features": torch.zeros(2, 2, 9, 2, 6)}, "audio_tokens"),
        ({"features": torch.zeros(2, 3, 13, 2, 6)}, "3 speech streams for 2"),
        ({"mask_override": torch.zeros(2, 3, 3, 3, 4)}, "mask_override"),
        ({"mask_override": torch.zeros(2, 2, 3, 4, 3)}, "mask_override"),
        ({"audio_character_matrix": torch.zeros(2, 2, 3)}, "audio_character_matrix"),
        ({"face_tokens": torch.zeros(2, 2, 8, 15)}, "face_tokens"),
        ({"face_tokens": torch.zeros(2, 0, 8, 16), "audio_tokens": None}, "0 characters"),
        ({"face_tokens": None}, "speech without"),
    ],
)
def test_invalid_inputs_raise(model, change, problem):
    given = inputs(2)
    conditions = {name: value for name, value in change.items() if name not in given}
    with pytest.raises(InputError) as raised:
        speech = model.encode_speech((given | change)["features"])
        run(model, {**given, **change, "features": given["features"]}, **({"audio_tokens": speech} | conditions))
    assert raised.value.problem.startswith(problem)


@torch.no_grad()
def test_models_without_a_path():
    given = inputs(2)
    with pytest.raises(InputError, match="speech path"):
        build("paper", use_audio=False).encode_speech(given["features"])
    with pytest.raises(InputError, match="face path"):
        build("paper", use_face=False).encode_faces(given["identity"], given["hidden"])
    unrouted = build("paper", num_router_layers=0)
    with pytest.raises(InputError, match="no router"):
        run(unrouted, given)
    assert run(unrouted, given, mask_override=torch.rand(2, 2, 3, 3, 4)).masks is None


def test_router_temperature():
    """It sharpens the masks and does not change the logits."""
    given = inputs()
    plain, sharp = (build("paper", router_temperature=value) for value in (1.0, 0.4))
    sharp.load_state_dict(plain.state_dict())
    a, b = run(plain, given), run(sharp, given)
    torch.testing.assert_close(a.router_logits[0], b.router_logits[0])
    torch.testing.assert_close(b.masks[0], (b.router_logits[0] / 0.4).softmax(1)[:, :-1])
    assert b.masks[0].amax(1).mean() > a.masks[0].amax(1).mean()
