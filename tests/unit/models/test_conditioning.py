"""KV cache, router interval and token pruning against the full computation."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bya_core.errors import InputError
from bya_core.memory.offload import DeviceSlot
from bya_core.memory.planner import MEMORY_PLANS, MemoryPlan, place_transformer
from bya_core.models import token_pruning
from bya_core.models.audio_attention import AudioCrossAttention
from bya_core.models.face_attention import FaceCrossAttention
from bya_core.models.kv_cache import KVCache
from bya_core.models.router import OfficialRouter
from bya_core.models.router_layers import MAX_UNROLLED
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.sampling.cfg_parallel import set_guidance_mode
from bya_core.sampling.conditions import Conditions
from bya_core.sampling.denoise import denoise
from bya_core.sampling.schedulers import build_scheduler
from tests.fakes import BLOCKS, IDENTITY, SCALES, SOUND, TEXT, VIT, fake_bundle
from tests.unit.models.naive import naive
from tests.unit.models.test_transformer import build, inputs

FLAVOURS = ["official", "paper"]


def given(
    model: BindYourAvatarTransformer3DModel, characters: int = 2, seed: int = 0, batch: int = 2
) -> dict[str, Any]:
    """Inputs for a model of `test_transformer.build`: three latent frames of 3 x 4 tokens."""
    made = inputs(characters, seed=seed, batch=batch)
    faces, speech = (made.pop("identity"), made.pop("hidden")), made.pop("features")
    return made | {"face_tokens": model.encode_faces(*faces), "audio_tokens": model.encode_speech(speech)}


def count_tokens(model: BindYourAvatarTransformer3DModel, pattern: str, call: Callable[[], Any]) -> list[int]:
    """Number of tokens passed to each module whose name matches `pattern` while `call` runs."""
    counts: list[int] = []
    modules = [module for name, module in model.named_modules() if fnmatch.fnmatch(name, pattern)]
    hooks = [m.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[1])) for m in modules]
    call()
    for hook in hooks:
        hook.remove()
    return counts


def left_and_right(middle: float = 0.0) -> Tensor:
    """Masks of the left column (character 1) and the right column (2); both are `middle` in the two columns between."""
    masks = torch.full((2, 2, 3, 3, 4), middle)
    masks[..., 0], masks[..., 3] = 0, 0
    masks[:, 0, ..., 0], masks[:, 1, ..., 3] = 1, 1
    return masks


@pytest.mark.parametrize("flavour", FLAVOURS)
@torch.no_grad()
def test_kv_cache_is_bit_exact(flavour: str) -> None:
    model, kv_cache = build(flavour), KVCache()
    call = given(model)
    for seed in (1, 2):
        noisy = {"hidden_states": inputs(seed=seed)["hidden_states"]}
        expected, made = model(**call | noisy), model(**call | noisy, kv_cache=kv_cache)
        assert torch.equal(made.sample, expected.sample) and torch.equal(made.used_masks, expected.used_masks)
        step = functools.partial(model, **call | noisy)
        for name in ("audio_model.layers.*.to_k", "audio_model.layers.*.to_v", "perceiver_cross_attention.*.to_kv"):
            assert count_tokens(model, name, step) and not count_tokens(
                model, name, functools.partial(step, kv_cache=kv_cache)
            )
    other = given(model, seed=5)
    assert torch.equal(model(**other, kv_cache=kv_cache).sample, model(**other).sample)
    assert kv_cache.bytes > 0
    kv_cache.clear()
    assert kv_cache.bytes == 0 and torch.equal(model(**call, kv_cache=kv_cache).sample, model(**call).sample)


def test_kv_cache_is_unused_with_gradients() -> None:
    model, kv_cache = build("paper"), KVCache()
    call = {name: value.detach() for name, value in given(model).items()}
    for _ in range(2):  # a cached autograd graph could not be used twice
        model(**call, kv_cache=kv_cache).sample.sum().backward()
    assert kv_cache.bytes == 0


@pytest.mark.parametrize("plan", MEMORY_PLANS[1:3], ids=lambda plan: plan.name)
@torch.no_grad()
def test_kv_cache_is_unused_with_offloading(plan: MemoryPlan) -> None:
    model, kv_cache = build("paper"), KVCache()
    call = given(model)
    expected = model(**call).sample
    place_transformer(model, plan, torch.device("cpu"), DeviceSlot())
    assert torch.equal(model(**call, kv_cache=kv_cache).sample, expected) and kv_cache.bytes == 0


@pytest.mark.parametrize(("mode", "branches"), [("batch", 1), ("sequential", 2)])
@torch.no_grad()
def test_a_run_computes_keys_once_per_batch(monkeypatch: pytest.MonkeyPatch, mode: Any, branches: int) -> None:
    bundle = fake_bundle()
    model = bundle.transformer
    draw = torch.Generator().manual_seed(0)
    speech = torch.randn(1, 2, 9 + 4, BLOCKS, SOUND, generator=draw)
    faces = torch.randn(1, 2, IDENTITY, generator=draw), torch.randn(1, 2, SCALES, 7, VIT, generator=draw)
    conditions = Conditions(
        text=torch.ones(1, 5, TEXT),
        negative_text=torch.zeros(1, 5, TEXT),
        latent_shape=(3, 3, 8, 12),
        face_tokens=model.encode_faces(*faces),
        audio_tokens=model.encode_speech(speech),
        silent_audio_tokens=model.encode_speech(0 * speech),
    )
    config = dataclasses.replace(bundle.sampling, steps=3, drop_identity=False)
    set_guidance_mode(model, mode)
    results: list[Tensor] = []

    def run() -> None:
        results.append(denoise(model, build_scheduler(), conditions, config).latents)

    assert len(count_tokens(model, "audio_model.layers.0.attn.to_k", run)) == branches
    monkeypatch.setattr(type(model), "use_kv_cache", False)
    assert len(count_tokens(model, "audio_model.layers.0.attn.to_k", run)) == branches * 3
    assert torch.equal(*results)


@torch.no_grad()
def test_documented_cache_sizes() -> None:
    """At published sizes: two branches, characters and streams, 49 frames."""
    sizes: dict[str, Any] = {"heads": 16, "dim_head": 128, "num_queries": 32, "st_heads": 8, "num_blocks": 1}
    with torch.device("meta"):
        faces = FaceCrossAttention(3072, 128, 16, 2048).to(torch.bfloat16)
        speech = AudioCrossAttention(3072, 768, 48, 64).to(torch.bfloat16)
        router = OfficialRouter(num_layers=1, grid=(1, 1, 1), **sizes).to(torch.bfloat16)
        face_tokens = torch.empty(2, 2, 32, 2048, dtype=torch.bfloat16)
        audio_tokens = torch.empty(2, 2, 13, 32, 768, dtype=torch.bfloat16)
    key, value = faces.keys_values(face_tokens)
    parts: dict[str, tuple[int, Callable[[], tuple[Tensor, ...]]]] = {
        "faces": (21, lambda: (key, value)),
        "router": (21, lambda: router.prepare_keys(key, 0, 17550)),
        "speech": (42, lambda: speech.keys_values(audio_tokens)),
    }
    for name, (layers, make) in parts.items():
        kv_cache = KVCache()
        kv_cache.get(name, 0, make)
        assert f"- {name}: {layers} layers" in str(KVCache.__doc__)
        assert f" = {layers * kv_cache.bytes / 1e6:.0f} MB" in str(KVCache.__doc__)


@pytest.mark.parametrize("flavour", FLAVOURS)
@torch.no_grad()
def test_router_interval(flavour: str) -> None:
    changes = {"num_layers": 9, "cross_attn_interval": 2, "injection_start": 0, "num_router_layers": None}
    model = build(flavour, **changes)
    call = given(model)
    every = model(**call)
    assert torch.equal(model(**call, router_interval=1).sample, every.sample) and len(every.masks) == 5
    for k, predicted in ((2, 3), (3, 2), (5, 1)):
        made = model(**call, router_interval=k)
        assert len(made.masks) == predicted and torch.equal(made.masks[0], every.masks[0])
        # the other layers use the masks of the nearest layer before them
        used = [made.masks[layer // k] for layer in range(5)]
        same = model(**call, mask_override=torch.stack(used))
        torch.testing.assert_close(made.sample, same.sample)
        assert torch.equal(made.used_masks, used[-1])
    with pytest.raises(InputError, match="router_interval = 0"):
        model(**call, router_interval=0)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("inflate", [False, True])
@torch.no_grad()
def test_pruning_is_exact_where_masks_are_zero(flavour: str, inflate: bool) -> None:
    model = build(flavour)
    strength = {"speech_strength": torch.tensor([[0.5, 1.0], [1.0, 2.0]])}
    for more in ({}, strength):
        call = given(model) | more | {"mask_override": left_and_right(), "inflate_audio_masks": inflate}
        whole = model(**call).sample
        torch.testing.assert_close(model(**call, prune_tokens=True).sample, whole, atol=1e-5, rtol=1e-5)
        assert torch.equal(model(**call, prune_tokens=False).sample, whole)


@torch.no_grad()
def test_number_of_pruned_tokens() -> None:
    model = build("official")
    call = given(model) | {"mask_override": left_and_right(), "inflate_audio_masks": False, "prune_tokens": True}

    def counts(name: str, **changes: Any) -> set[int]:
        return set(count_tokens(model, name, lambda: model(**call | changes)))

    tokens, inside = 36, 3 * 3 * 2
    face, speech = "perceiver_cross_attention.*.", "audio_model.layers.*.attn."
    for name in (face + "to_q", face + "to_out", speech + "to_q"):
        assert counts(name) == {inside} and counts(name, prune_tokens=False) == {tokens}
    # background tokens attend to every stream
    assert counts(speech + "to_q", inflate_audio_masks=True) == {tokens}
    # the frame with most tokens determines the number of all frames
    uneven = left_and_right()
    uneven[0, 0, 1, 0, 1] = 1
    assert counts(face + "to_q", mask_override=uneven) == {3 * 7}
    assert counts(face + "to_out", mask_override=torch.zeros(2, 2, 3, 3, 4)) == {3}
    # the router needs the queries of all tokens
    call |= {"mask_override_strength": 1.0}
    assert counts(face + "to_q") == {tokens} and counts(face + "to_out") == {inside}
    assert counts("perceiver_cross_attention.1.to_q", router_interval=2) == {inside}


@torch.no_grad()
def test_tokens_are_selected_once_per_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The selection synchronizes with the GPU."""
    selections: list[Tensor] = []
    original = token_pruning.max_tokens_per_frame
    monkeypatch.setattr(
        token_pruning, "max_tokens_per_frame", lambda inside: selections.append(inside) or original(inside)
    )
    model = build("official", num_layers=8)
    call = given(model) | {"prune_tokens": True}
    model(**call, mask_override=left_and_right())
    assert len(selections) == 2  # for faces and for speech
    selections.clear()
    model(**call, router_interval=2)
    assert len(selections) == 2 * 2  # the router predicts in two of four face layers


@torch.no_grad()
def test_pruning_threshold() -> None:
    """Masks below the threshold act as zeros, masks above it in full."""
    model = build("official")
    call = given(model) | {"inflate_audio_masks": False}

    def sample(middle: float, prune_tokens: bool = False) -> Tensor:
        return model(**call, mask_override=left_and_right(middle), prune_tokens=prune_tokens).sample

    below, above = 0.9 * token_pruning.MASK_THRESHOLD, 1.1 * token_pruning.MASK_THRESHOLD
    pruned = sample(below, prune_tokens=True)
    torch.testing.assert_close(pruned, sample(0.0), atol=1e-5, rtol=1e-5)
    assert 0 < (pruned - sample(below)).abs().max() < 0.05 * (pruned - sample(1.0)).abs().max()
    assert torch.equal(sample(above, prune_tokens=True), sample(above))


@pytest.mark.parametrize("characters", [1, 2, 3])
@torch.no_grad()
def test_cache_and_pruning_equal_naive(characters: int) -> None:
    model, kv_cache = build("official"), KVCache()
    masks = torch.zeros(2, characters, 3, 3, 4)
    masks[:, :, 1:, 1:] = torch.rand(2, characters, 2, 2, 4, generator=torch.Generator().manual_seed(3)) + 0.1
    call = given(model, characters) | {"mask_override": masks.clamp(0, 1), "inflate_audio_masks": False}
    with naive():
        expected = model(**call).sample
    for prune_tokens in (False, True):
        made = model(**call, kv_cache=kv_cache, prune_tokens=prune_tokens).sample
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "sizes",
    [
        ((1, 2), (2, 2), (2, MAX_UNROLLED), (3, 3)),
        ((1, MAX_UNROLLED + 1), (2, MAX_UNROLLED + 1), (2, MAX_UNROLLED + 3)),
    ],
)
@pytest.mark.parametrize("override", [False, True])
@torch.no_grad()
def test_no_loop_over_batch_or_characters(override: bool, sizes: tuple[tuple[int, int], ...]) -> None:
    """The number of operations is the same; the router has one implementation for few characters and one for many."""

    class Calls(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.names += [part for part in ("mm", "softmax", "attention", "norm", "gelu") if part in str(func)]
            return func(*args, **(kwargs or {}))

    model = build("official")
    found = []
    for batch, characters in sizes:
        masks = torch.ones(batch, characters, 3, 3, 4) if override else None
        call = given(model, characters, batch=batch) | {"mask_override": masks}
        with Calls() as calls:
            model(**call)
        found.append(calls.names)
    assert found[0] and all(names == found[0] for names in found)
    with naive(), Calls() as calls:
        model(**call)
    assert len(calls.names) > 1.5 * len(found[0])


@torch.no_grad()
def test_hidden_states_are_not_copied_per_character() -> None:
    """No tensor with the width of the hidden states grows with the number of characters."""
    width = 48  # of the hidden states; no other tensor has it

    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, Tensor) and x.dim() and x.shape[-1] == width and x.is_contiguous():
                    Largest.rows = max(Largest.rows, x.numel() // width)
            return out

    model = build("official", num_attention_heads=3, cross_attn_interval=1)
    tokens = 2 * (36 + 5)  # batch of 2, video and text
    for characters in (1, 4):
        call = given(model, characters)
        Largest.rows = 0
        with Largest():
            model(**call)
        assert Largest.rows == tokens
