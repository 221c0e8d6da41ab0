"""Routers: query projection folded into the keys, and attention of the spatio-temporal layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bya_core.grid import TokenGrid
from bya_core.models import compat
from bya_core.models.kv_cache import KVCache
from bya_core.models.rope import apply_rotary, rotary_embedding
from bya_core.models.router import OfficialRouter, PaperRouter
from bya_core.models.router_layers import RouterAttention
from tests.unit.models.naive import naive
from tests.unit.models.test_conditioning import given
from tests.unit.models.test_transformer import build

GRID = TokenGrid(5, 6, 8)
HEADS, DIM, QUERIES = 4, 16, 4


def router(flavour: str) -> OfficialRouter | PaperRouter:
    torch.manual_seed(0)
    shared: dict[str, Any] = {
        "num_layers": 2, "heads": HEADS, "dim_head": DIM, "num_queries": QUERIES, "st_heads": 2, "num_blocks": 1
    }  # fmt: skip
    made: OfficialRouter | PaperRouter
    if flavour == "official":
        made = OfficialRouter(grid=(GRID.frames, GRID.width, GRID.height), **shared)
    else:
        made = PaperRouter(dim=16, reads_tokens=True, **shared)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def query_and_key(characters: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(characters)
    query = torch.randn(2, HEADS, GRID.tokens, DIM, generator=draw)
    return query, torch.randn(2, characters, HEADS, QUERIES, DIM, generator=draw)


@pytest.mark.parametrize("flavour", ["official", "paper"])
def test_folded_keys_give_the_same_output(flavour: str) -> None:
    model = router(flavour)
    for characters in (1, 2, 3, 6):
        query, key = query_and_key(characters)
        folds = model.should_fold(GRID.tokens, characters)
        assert folds == (characters < 4)
        for layer in (0, 1):
            unfolded = model(query, key, layer, GRID)  # with gradients: not folded
            with torch.no_grad():
                (prepared,) = model.prepare_keys(key, layer, GRID.tokens)
                assert prepared.dim() == (3 if folds else 4)
                found = model(query, key, layer, GRID)
                again = model(query, key, layer, GRID, (prepared,))
            for one, other, repeated in zip(unfolded, found, again, strict=True):
                torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
                assert torch.equal(other, repeated)


@torch.no_grad()
def test_hooks_of_the_projection_are_folded() -> None:
    """Hooks and adapters (LoRA) act on calls of the projection, not on its weight."""
    model = router("official")
    query, key = query_and_key(2)
    before = model(query, key, 0, GRID)[0]
    model.to_q[0].register_forward_hook(lambda module, args, out: out + 0.3 * args[0].roll(1, dims=-1))
    after = model(query, key, 0, GRID)[0]
    assert (after - before).abs().max() > 1e-3
    with torch.enable_grad():
        torch.testing.assert_close(after, model(query, key, 0, GRID)[0], atol=1e-5, rtol=1e-5)


def score_flops(model: Any, characters: int, batch: int, tokens: int, folded: bool) -> int:
    """FLOPs of the scores of one layer."""
    query = torch.empty(batch, tokens, model.inner, device="meta")
    key = torch.empty(batch, characters, model.heads, model.features // model.heads, model.inner // model.heads)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(not folded):
        model._scores(query, key.to("meta"), 0, None)
    return counter.get_total_flops()


def test_should_fold_agrees_with_counted_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    """At published sizes: up to three characters; for two it saves 3.3 TFLOP per step in 21 layers."""
    sizes: dict[str, Any] = {"heads": 16, "dim_head": 128, "num_queries": 32, "st_heads": 8, "num_blocks": 1}
    with torch.device("meta"):
        model = OfficialRouter(num_layers=1, grid=(1, 1, 1), **sizes)
    folds = {n: model.should_fold(17550, n) for n in range(1, 6)}
    assert folds == {1: True, 2: True, 3: True, 4: False, 5: False}
    monkeypatch.setattr(OfficialRouter, "should_fold", lambda *_: True)
    for n, expected in folds.items():
        assert (score_flops(model, n, 1, 17550, True) < score_flops(model, n, 1, 17550, False)) == expected
    saved = score_flops(model, 2, 2, 17550, False) - score_flops(model, 2, 2, 17550, True)
    assert 21 * saved / 1e12 == pytest.approx(3.3 - 0.4, abs=0.1)  # 3.3 does not include the folding itself


@torch.no_grad()
def test_transformer_with_folded_router_equals_naive() -> None:
    sizes = {"cross_attn_dim_head": 16, "lfe_num_queries": 4, "sample_height": 12, "sample_width": 16}
    model = build("official", num_layers=2, **sizes)
    assert model.router.should_fold(3 * 6 * 8, 2)
    call = given(model)
    noisy = torch.randn(2, 3, 6, 12, 16, generator=torch.Generator().manual_seed(7))
    made = model(**call | {"hidden_states": noisy})
    kv_cache = KVCache()
    for _ in range(2):
        same = model(**call | {"hidden_states": noisy}, kv_cache=kv_cache)
        assert torch.equal(same.sample, made.sample) and torch.equal(same.masks, made.masks)
    with naive():
        unfolded = model(**call | {"hidden_states": noisy})
    torch.testing.assert_close(unfolded.masks, made.masks, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(unfolded.sample, made.sample, atol=1e-4, rtol=1e-4)
    # cached for one video size, used for another
    small = model(**call, kv_cache=kv_cache)
    torch.testing.assert_close(small.masks, model(**call).masks, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("characters", [1, 2, 3, 4, 5])
def test_character_attention_equals_torch(characters: int) -> None:
    """Written out for few characters, with an attention kernel for more; values and gradients."""
    torch.manual_seed(characters)
    layer = RouterAttention(24, 3).double()
    x = torch.randn(2, characters, 3, 5, 24, dtype=torch.float64)
    made = layer(x, "characters")
    q, k, v = (f(x).unflatten(-1, (3, 8)).permute(0, 2, 3, 4, 1, 5) for f in (layer.to_q, layer.to_k, layer.to_v))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)  # [B, T, P, heads, N, d]
    torch.testing.assert_close(made, layer.to_out[0](expected.permute(0, 4, 1, 2, 3, 5).flatten(-2)))
    assert torch.autograd.gradcheck(lambda x: layer(x, "characters").sum(), x.clone().requires_grad_())
    half = layer.to(torch.bfloat16)(x.to(torch.bfloat16), "characters")
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), made, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("axis", ["space", "time"])
def test_spatial_and_temporal_attention_equal_torch(axis: str, rotate: bool) -> None:
    torch.manual_seed(1)
    grid, heads = TokenGrid(3, 2, 5), 2
    layer = RouterAttention(24, heads)
    x = torch.randn(2, 3, grid.frames, grid.height * grid.width, 24)
    rotary = rotary_embedding(grid, 24 // heads) if rotate else None
    q, k, v = (f(x).flatten(2, 3).unflatten(-1, (heads, -1)) for f in (layer.to_q, layer.to_k, layer.to_v))
    if rotary is not None:
        q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
    q, k, v = (part.unflatten(2, (grid.frames, -1)).transpose(-2, -3) for part in (q, k, v))  # [B, N, T, heads, P, d]
    if axis == "time":
        q, k, v = (part.transpose(2, 4) for part in (q, k, v))  # [B, N, P, heads, T, d]
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    out = (out.transpose(2, 4) if axis == "time" else out).transpose(-2, -3).flatten(-2)
    torch.testing.assert_close(layer(x, axis, rotary), layer.to_out[0](out), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("shape", "calls"), [((40, 6, 2, 8), [7, 7, 7, 7, 7, 5]), ((2, 6, 40, 8), None)])
def test_attention_splits_large_batches(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], calls: Any) -> None:
    """Batch and heads beyond the size of a CUDA grid are split."""
    batches = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def recorded(query: Tensor, *others: Tensor) -> Tensor:
        batches.append(query.shape[0])
        assert query.shape[0] * query.shape[1] <= 15
        return attention(query, *others)

    q, k, v = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    expected = compat.dispatch_attention(q, k, v)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", recorded)
    monkeypatch.setattr(compat, "MAX_GRID_SIZE", 15)
    torch.testing.assert_close(compat.dispatch_attention(q, k, v), expected)
    assert calls is None or batches == calls


@torch.no_grad()
def test_background_logit_is_that_of_the_mean_over_characters() -> None:
    """The release has no background (docs/explanation/fidelity.md)."""
    made = router("paper")
    assert isinstance(made, PaperRouter) and made.background is not None
    features: list[Tensor] = []
    made.norm_out.register_forward_hook(lambda *call: features.append(call[-1]))
    logits, masks = made(*query_and_key(3), 0, GRID)
    expected = GRID.unflatten(made.background(features[0].mean(1)).flatten(1))
    torch.testing.assert_close(logits[:, 3], expected)
    torch.testing.assert_close(masks, logits.softmax(1)[:, :3])
