"""The router with its query projection folded into the keys: the same numbers, by less work."""

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


def asked(characters: int, grid: TokenGrid = GRID) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(characters)
    query = torch.randn(2, HEADS, grid.tokens, DIM, generator=draw)
    return query, torch.randn(2, characters, HEADS, QUERIES, DIM, generator=draw)


@pytest.mark.parametrize("flavour", ["official", "paper"])
def test_folded_or_not_it_says_the_same(flavour: str) -> None:
    model = router(flavour)
    for characters in (1, 2, 3, 6):
        query, key = asked(characters)
        folds = model.should_fold(GRID.tokens, characters)
        assert folds == (characters < 4)
        for layer in (0, 1):
            plainly = model(query, key, layer, GRID)  # gradients are on
            with torch.no_grad():
                (prepared,) = model.prepare_keys(key, layer, GRID.tokens)
                assert prepared.dim() == (3 if folds else 4)
                found = model(query, key, layer, GRID)
                again = model(query, key, layer, GRID, (prepared,))
            for one, other, repeated in zip(plainly, found, again, strict=True):
                torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
                assert torch.equal(other, repeated)


@torch.no_grad()
def test_what_stands_before_the_projection_is_folded_too() -> None:
    """An adapter (as LoRA is) or a hook acts on a call of the projection, not on its weight."""
    model = router("official")
    query, key = asked(2)
    before = model(query, key, 0, GRID)[0]
    model.to_q[0].register_forward_hook(lambda module, args, out: out + 0.3 * args[0].roll(1, dims=-1))
    after = model(query, key, 0, GRID)[0]
    assert (after - before).abs().max() > 1e-3
    with torch.enable_grad():
        torch.testing.assert_close(after, model(query, key, 0, GRID)[0], atol=1e-5, rtol=1e-5)


def scores(model: Any, characters: int, batch: int, tokens: int, folded: bool) -> int:
    """Operations of one layer's scores, keys projected anew."""
    query = torch.empty(batch, tokens, model.inner, device="meta")
    key = torch.empty(batch, characters, model.heads, model.features // model.heads, model.inner // model.heads)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(not folded):
        model._scores(query, key.to("meta"), 0, None)
    return counter.get_total_flops()


def test_it_folds_where_counted_operations_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """At published sizes: up to three characters, and with two 3.3 TFLOP less a step in 21 layers."""
    sizes: dict[str, Any] = {"heads": 16, "dim_head": 128, "num_queries": 32, "st_heads": 8, "num_blocks": 1}
    with torch.device("meta"):
        model = OfficialRouter(num_layers=1, grid=(1, 1, 1), **sizes)
    pays = {n: model.should_fold(17550, n) for n in range(1, 6)}
    assert pays == {1: True, 2: True, 3: True, 4: False, 5: False}
    monkeypatch.setattr(OfficialRouter, "should_fold", lambda *_: True)
    for n, expected in pays.items():
        assert (scores(model, n, 1, 17550, True) < scores(model, n, 1, 17550, False)) == expected
    saved = scores(model, 2, 2, 17550, False) - scores(model, 2, 2, 17550, True)
    assert 21 * saved / 1e12 == pytest.approx(3.3 - 0.4, abs=0.1)  # what folding costs is not in the 3.3


@torch.no_grad()
def test_a_model_that_folds_is_the_plain_one() -> None:
    """In a whole step, kept or not, against tests/unit/models/naive.py, which projects the queries of every character."""
    sizes = {"cross_attn_dim_head": 16, "lfe_num_queries": 4, "sample_height": 12, "sample_width": 16}
    model = build("official", num_layers=2, **sizes)
    assert model.router.should_fold(3 * 6 * 8, 2)
    told = given(model)
    noisy = torch.randn(2, 3, 6, 12, 16, generator=torch.Generator().manual_seed(7))
    made = model(**told | {"hidden_states": noisy})
    kv_cache = KVCache()
    for _ in range(2):
        same = model(**told | {"hidden_states": noisy}, kv_cache=kv_cache)
        assert torch.equal(same.sample, made.sample) and torch.equal(same.masks, made.masks)
    with naive():
        plainly = model(**told | {"hidden_states": noisy})
    torch.testing.assert_close(plainly.masks, made.masks, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plainly.sample, made.sample, atol=1e-4, rtol=1e-4)
    # kept for one size of video, used for another
    small = model(**told, kv_cache=kv_cache)
    torch.testing.assert_close(small.masks, model(**told).masks, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("characters", [1, 2, 3, 4, 5])
def test_characters_attend_to_each_other_as_torch_would_have_them(characters: int) -> None:
    """A few of them without a kernel, more of them with it: the same numbers, and the same gradients."""
    torch.manual_seed(characters)
    layer = RouterAttention(24, 3).double()
    x = torch.randn(2, characters, 3, 5, 24, dtype=torch.float64)
    made = layer(x, "characters")
    q, k, v = (f(x).unflatten(-1, (3, 8)).permute(0, 2, 3, 4, 1, 5) for f in (layer.to_q, layer.to_k, layer.to_v))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)  # [B, T, P, heads, N, d]
    torch.testing.assert_close(made, layer.to_out[0](expected.permute(0, 4, 1, 2, 3, 5).flatten(-2)))
    grown = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda given: layer(given, "characters").sum(), grown)
    near = layer.to(torch.bfloat16)(x.to(torch.bfloat16), "characters")
    assert near.dtype == torch.bfloat16
    torch.testing.assert_close(near.double(), made, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("axis", ["space", "time"])
def test_places_and_moments_attend_as_torch_would_have_them(axis: str, turned: bool) -> None:
    """Along one axis, whatever the layout; a position is that of the token, not of its place in the layout."""
    torch.manual_seed(1)
    grid, heads = TokenGrid(3, 2, 5), 2
    layer = RouterAttention(24, heads)
    x = torch.randn(2, 3, grid.frames, grid.height * grid.width, 24)
    rotary = rotary_embedding(grid, 24 // heads) if turned else None
    q, k, v = (f(x).flatten(2, 3).unflatten(-1, (heads, -1)) for f in (layer.to_q, layer.to_k, layer.to_v))
    if rotary is not None:
        q, k = apply_rotary(q, rotary), apply_rotary(k, rotary)
    q, k, v = (part.unflatten(2, (grid.frames, -1)).transpose(-2, -3) for part in (q, k, v))  # [B, N, T, heads, P, d]
    if axis == "time":
        q, k, v = (part.transpose(2, 4) for part in (q, k, v))  # [B, N, P, heads, T, d]
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    out = (out.transpose(2, 4) if axis == "time" else out).transpose(-2, -3).flatten(-2)
    torch.testing.assert_close(layer(x, axis, rotary), layer.to_out[0](out), atol=1e-6, rtol=1e-5)


def test_more_sequences_than_a_grid_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router has one sequence for each place of the picture: kernels take 65,535 at once, the rest comes after."""
    calls = []
    torch_attention = torch.nn.functional.scaled_dot_product_attention

    def watched(query: Tensor, *others: Tensor) -> Tensor:
        calls.append(query.shape)
        return torch_attention(query, *others)

    q, k, v = torch.randn(3, 40, 6, 2, 8, generator=torch.Generator().manual_seed(0))
    expected = compat.dispatch_attention(q, k, v)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(compat, "MAX_GRID_SIZE", 2 * 15)
    assert torch.equal(compat.dispatch_attention(q, k, v), expected)
    assert [shape[0] for shape in calls] == [15, 15, 10]


def test_more_heads_than_a_grid_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places or characters that join the heads are taken in several calls, too."""
    q, k, v = torch.randn(3, 2, 6, 40, 8, generator=torch.Generator().manual_seed(0))
    expected = compat.dispatch_attention(q, k, v)
    monkeypatch.setattr(compat, "MAX_GRID_SIZE", 15)
    torch.testing.assert_close(compat.dispatch_attention(q, k, v), expected)
