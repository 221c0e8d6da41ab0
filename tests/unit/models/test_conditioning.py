"""What is kept, predicted less often or skipped, and that it is the same all the same."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bya_core.errors import InputError
from bya_core.memory.offload import DeviceSlot
from bya_core.memory.planner import MEMORY_PLANS, place_transformer
from bya_core.models import token_pruning as reach
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
    """A call of a model of `test_transformer.build`: three latent frames of 3 x 4 tokens."""
    made = inputs(characters, seed=seed, batch=batch)
    faces, voices = (made.pop("identity"), made.pop("hidden")), made.pop("features")
    return made | {"face_tokens": model.encode_faces(*faces), "audio_tokens": model.encode_speech(voices)}


def seen(model: BindYourAvatarTransformer3DModel, name: str, act: Callable[[], Any]) -> list[int]:
    """Tokens that went through each module of that name (a pattern) while `act` ran."""
    counts: list[int] = []
    modules = [module for full, module in model.named_modules() if fnmatch.fnmatch(full, name)]
    hooks = [m.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[1])) for m in modules]
    act()
    for hook in hooks:
        hook.remove()
    return counts


def left_and_right(middle: float = 0.0) -> Tensor:
    """The first character has the left column, the second the right one, and both `middle` of the two between."""
    masks = torch.full((2, 2, 3, 3, 4), middle)
    masks[..., 0], masks[..., 3] = 0, 0
    masks[:, 0, ..., 0], masks[:, 1, ..., 3] = 1, 1
    return masks


@pytest.mark.parametrize("flavour", FLAVOURS)
@torch.no_grad()
def test_with_what_is_kept_every_step_is_the_same_to_the_bit(flavour: str) -> None:
    model, kv_cache = build(flavour), KVCache()
    told = given(model)
    for seed in (1, 2):
        noisy = {"hidden_states": inputs(seed=seed)["hidden_states"]}
        expected, made = model(**told | noisy), model(**told | noisy, kv_cache=kv_cache)
        assert torch.equal(made.sample, expected.sample) and torch.equal(made.used_masks, expected.used_masks)
        step = functools.partial(model, **told | noisy)
        for name in ("audio_model.layers.*.to_k", "audio_model.layers.*.to_v", "perceiver_cross_attention.*.to_kv"):
            assert seen(model, name, step) and not seen(model, name, functools.partial(step, kv_cache=kv_cache))
    other = given(model, seed=5)
    assert torch.equal(model(**other, kv_cache=kv_cache).sample, model(**other).sample)
    assert kv_cache.bytes > 0
    kv_cache.clear()
    assert kv_cache.bytes == 0 and torch.equal(model(**told, kv_cache=kv_cache).sample, model(**told).sample)


def test_with_gradients_nothing_is_kept() -> None:
    model, kv_cache = build("paper"), KVCache()
    told = {name: value.detach() for name, value in given(model).items()}
    for _ in range(2):  # a graph kept from the first step could not be run through again
        model(**told, kv_cache=kv_cache).sample.sum().backward()
    assert kv_cache.bytes == 0


@torch.no_grad()
def test_where_memory_is_short_nothing_is_kept() -> None:
    """The rungs below the first take what they are given and keep nothing."""
    for plan in MEMORY_PLANS[1:3]:
        model, kv_cache = build("paper"), KVCache()
        told = given(model)
        expected = model(**told).sample
        place_transformer(model, plan, torch.device("cpu"), DeviceSlot())
        assert torch.equal(model(**told, kv_cache=kv_cache).sample, expected) and kv_cache.bytes == 0


@torch.no_grad()
def test_a_run_computes_keys_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first step to the last, of one version of the video or of several, together or in turns."""
    bundle = fake_bundle()
    model = bundle.transformer
    speech = torch.randn(1, 2, 9 + 4, BLOCKS, SOUND, generator=torch.Generator().manual_seed(0))
    voices = model.encode_speech(torch.cat([speech, torch.zeros_like(speech)]))
    faces = torch.randn(2, 2, IDENTITY), torch.randn(2, 2, SCALES, 7, VIT)
    conditions = Conditions(
        text=torch.ones(1, 5, TEXT),
        negative_text=torch.zeros(1, 5, TEXT),
        latent_shape=(3, 3, 8, 12),
        face_tokens=model.encode_faces(*faces)[:1],
        audio_tokens=voices[:1],
        silent_audio_tokens=voices[1:],
    )
    config = dataclasses.replace(bundle.sampling, steps=3, drop_identity=False)
    results = []
    for way, times in (("batch", 1), ("sequential", 2)):
        set_guidance_mode(model, way)
        run = functools.partial(denoise, model, build_scheduler(), conditions, config)
        count = functools.partial(seen, model, "audio_model.layers.0.attn.to_k")
        assert len(count(lambda run=run: results.append(run().latents))) == times
        monkeypatch.setattr(type(model), "use_kv_cache", False)
        assert len(count(run)) == times * 3
        assert torch.equal(run().latents, results[-1])
        monkeypatch.undo()


@torch.no_grad()
def test_bytes_as_the_docstring_counts_them() -> None:
    """Of one layer each at published sizes, times the layers: two versions, two characters and voices, 49 frames."""
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
def test_the_router_predicts_every_so_many_face_layers(flavour: str) -> None:
    changes = {"num_layers": 9, "cross_attn_interval": 2, "injection_start": 0, "num_router_layers": None}
    model = build(flavour, **changes)
    told = given(model)
    every = model(**told)
    assert torch.equal(model(**told, router_interval=1).sample, every.sample) and len(every.masks) == 5
    for k, predicted in ((2, 3), (3, 2), (5, 1)):
        made = model(**told, router_interval=k)
        assert len(made.masks) == predicted and torch.equal(made.masks[0], every.masks[0])
        # the others act with the masks of the nearest layer before
        acting = [made.masks[layer // k] for layer in range(5)]
        same = model(**told, mask_override=torch.stack(acting))
        torch.testing.assert_close(made.sample, same.sample)
        assert torch.equal(made.used_masks, acting[-1])
    with pytest.raises(InputError, match="router_interval = 0"):
        model(**told, router_interval=0)


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("inflate", [False, True])
@torch.no_grad()
def test_skipping_is_exact_where_masks_are_zero(flavour: str, inflate: bool) -> None:
    model = build(flavour)
    strength = {"speech_strength": torch.tensor([[0.5, 1.0], [1.0, 2.0]])}
    for more in ({}, strength):
        told = given(model) | more | {"mask_override": left_and_right(), "inflate_audio_masks": inflate}
        whole = model(**told).sample
        torch.testing.assert_close(model(**told, prune_tokens=True).sample, whole, atol=1e-5, rtol=1e-5)
        assert torch.equal(model(**told, prune_tokens=False).sample, whole)


@torch.no_grad()
def test_tokens_that_go_through_each_layer() -> None:
    model = build("official")
    told = given(model) | {"mask_override": left_and_right(), "inflate_audio_masks": False}
    faces, voices = len(model.perceiver_cross_attention), len(model.audio_model.layers)

    def counts(name: str, **more: Any) -> list[int]:
        return seen(model, name, lambda: model(**told | {"prune_tokens": True} | more))

    everything, reached = 36, 3 * 3 * 2
    for name, layers in (("perceiver_cross_attention.*.to_q", faces), ("audio_model.layers.*.attn.to_q", voices)):
        assert counts(name) == [reached] * layers
        assert counts(name, prune_tokens=False) == [everything] * layers
    assert counts("perceiver_cross_attention.0.to_out") == [reached]
    # nobody's tokens hear every voice
    assert counts("audio_model.layers.0.attn.to_q", inflate_audio_masks=True) == [everything]
    # a frame that has more decides for all of them
    uneven = left_and_right()
    uneven[0, 0, 1, 0, 1] = 1
    assert counts("perceiver_cross_attention.0.to_q", mask_override=uneven) == [3 * 7]
    # the router wants every token's query, what follows does not
    told |= {"mask_override_strength": 1.0}
    assert counts("perceiver_cross_attention.0.to_q") == [everything]
    assert counts("perceiver_cross_attention.0.to_out") == [reached]
    assert counts("perceiver_cross_attention.1.to_q", router_interval=2) == [reached]
    # and where nobody is, one token is left of each frame
    assert counts("perceiver_cross_attention.0.to_out", mask_override=torch.zeros(2, 2, 3, 3, 4)) == [3]


@torch.no_grad()
def test_reached_tokens_are_looked_for_once_per_set_of_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU waits there."""
    looks: list[Tensor] = []
    fullest = reach.max_tokens_per_frame
    monkeypatch.setattr(reach, "max_tokens_per_frame", lambda reached: looks.append(reached) or fullest(reached))
    model = build("official", num_layers=8)
    told = given(model) | {"prune_tokens": True}
    model(**told, mask_override=left_and_right())
    assert len(looks) == 2  # for faces and for speech
    looks.clear()
    model(**told, router_interval=2)
    assert len(looks) == 2 * 2  # four face layers, two of which predict


@torch.no_grad()
def test_skipping_leaves_out_no_more_than_the_threshold() -> None:
    """Masks that hardly reach a token are left out: as if they were zero there. Stronger ones are not."""
    model = build("official")
    told = given(model) | {"inflate_audio_masks": False}
    faint, strong = left_and_right(0.9 * reach.MASK_THRESHOLD), left_and_right(1.1 * reach.MASK_THRESHOLD)
    skipped = model(**told, mask_override=faint, prune_tokens=True).sample
    torch.testing.assert_close(skipped, model(**told, mask_override=left_and_right()).sample, atol=1e-5, rtol=1e-5)
    none = (skipped - model(**told, mask_override=faint).sample).abs().max()
    full = (skipped - model(**told, mask_override=left_and_right(1.0)).sample).abs().max()
    assert 0 < none < 0.05 * full
    assert torch.equal(
        model(**told, mask_override=strong, prune_tokens=True).sample, model(**told, mask_override=strong).sample
    )


@pytest.mark.parametrize("characters", [1, 2, 3])
@torch.no_grad()
def test_every_way_is_the_plain_way(characters: int) -> None:
    """Kept keys and skipped tokens against tests/unit/models/naive.py, which shares and keeps nothing."""
    model, kv_cache = build("official"), KVCache()
    masks = torch.zeros(2, characters, 3, 3, 4)
    masks[:, :, 1:, 1:] = torch.rand(2, characters, 2, 2, 4, generator=torch.Generator().manual_seed(3)) + 0.1
    ways: list[tuple[AbstractContextManager[None], dict[str, Any]]] = [
        (naive(), {}),
        (nullcontext(), {"kv_cache": kv_cache}),
        (nullcontext(), {"kv_cache": kv_cache, "prune_tokens": True}),
    ]
    made = []
    for way, more in ways:
        with way:
            told = given(model, characters) | {"mask_override": masks.clamp(0, 1), "inflate_audio_masks": False}
            made.append(model(**told, **more).sample)
    for other in made[1:]:
        torch.testing.assert_close(other, made[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "sizes",
    [
        ((1, 2), (2, 2), (2, MAX_UNROLLED), (3, 3)),
        ((1, MAX_UNROLLED + 1), (2, MAX_UNROLLED + 1), (2, MAX_UNROLLED + 3)),
    ],
)
@pytest.mark.parametrize("forced", [False, True])
@torch.no_grad()
def test_calls_do_not_grow_with_batch_or_characters(forced: bool, sizes: tuple[tuple[int, int], ...]) -> None:
    """No loop over versions or characters: the same work in equally many operations, however many there are (the router
    has two ways, one for few characters and one for many)."""

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
        masks = torch.ones(batch, characters, 3, 3, 4) if forced else None
        told = given(model, characters, batch=batch) | {"mask_override": masks}
        with Calls() as calls:
            model(**told)
        found.append(calls.names)
    assert found[0] and all(names == found[0] for names in found)
    with naive(), Calls() as calls:
        model(**told)
    assert len(calls.names) > 1.5 * len(found[0])


@torch.no_grad()
def test_the_video_is_not_copied_per_character() -> None:
    """Nothing that has a row per token and the width of the video grows with the characters, in one layer."""
    width = 48  # of the video; no other part has it

    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, Tensor) and x.dim() and x.shape[-1] == width and x.is_contiguous():
                    Largest.rows = max(Largest.rows, x.numel() // width)
            return out

    model = build("official", num_attention_heads=3, cross_attn_interval=1)
    tokens = 2 * (36 + 5)  # two versions, video and text
    for characters in (1, 4):
        told = given(model, characters)
        Largest.rows = 0
        with Largest():
            model(**told)
        assert Largest.rows == tokens
