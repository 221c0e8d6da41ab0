"""Presets of speed: what is left out, that it can be stopped and gone on with, and that nothing of it sticks."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bya_core.config import RouterSchedule, SamplingConfig
from bya_core.errors import InputError
from bya_core.masks import MaskControl
from bya_core.models.transformer import BindYourAvatarTransformer3DModel as Model
from bya_core.sampling import Conditions, DenoiseResult, StepInfo, build_scheduler, denoise
from bya_core.sampling.acceleration import PRESETS, Acceleration, apply_preset, attention, compiled, get_preset
from bya_core.sampling.cfg_parallel import cache_context, set_guidance_mode
from bya_core.sampling.fp8 import block_linears, fp8_matmul
from tests.unit.sampling.test_denoise_small_model import _conditions, build, model  # noqa: F401 - a fixture

# ruff: noqa: F811 - tests take the fixture by its name

STEPS = 8
CACHED = Acceleration(mask_change=1e9, cache_threshold=1e9, max_skipped=STEPS)
"""Skips whatever it may."""
FROZEN = Acceleration(router=RouterSchedule(freeze=True), mask_change=1e9)


@pytest.fixture
def preset(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A function that puts another preset in the place of "fast"."""
    yield lambda speed: monkeypatch.setitem(PRESETS, "fast", speed)


def run(model: Model, conditions: Conditions, speed: str = "fast", seen: list[StepInfo] | None = None, **how):
    settings = {"steps": STEPS, "guidance_scale": 3.0, "audio_guidance_scale": 3.0}
    config = SamplingConfig(**settings, preset=speed)
    callback = None if seen is None else lambda progress: seen.append(progress.info)
    return denoise(model, build_scheduler("dpm"), conditions, config, callback=callback, **how)


class Counted:
    """Counts what a transformer computes: calls of it, of its blocks, predictions of its router, sizes of batches."""

    def __init__(self, model: Model) -> None:
        self.calls, self.blocks, self.batches, self.routed = 0, 0, [], 0
        self._hooks = [
            model.register_forward_pre_hook(self._call, with_kwargs=True),
            model.router.register_forward_pre_hook(self._route),
            *(block.ff.register_forward_pre_hook(self._block) for block in model.transformer_blocks),
        ]

    def __enter__(self) -> Counted:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _call(self, _: object, __: object, given: dict[str, Tensor]) -> None:
        self.calls += 1
        self.batches.append(len(given["hidden_states"]))

    def _route(self, *_: object) -> None:
        self.routed += 1

    def _block(self, *_: object) -> None:
        self.blocks += 1


def twice(model: Model, speed: Acceleration) -> tuple[list[Tensor], list[int]]:
    """One call of the transformer made twice under a preset: what it says, and how many blocks it computed."""
    conditions = _conditions(model, 2)
    given = {
        "hidden_states": torch.randn(1, 2, 12, 4, 6, generator=torch.Generator().manual_seed(4)),
        "encoder_hidden_states": conditions.text,
        "timestep": torch.tensor([400]),
        "face_tokens": conditions.face_tokens,
        "audio_tokens": conditions.audio_tokens,
    }
    samples, blocks = [], []
    with apply_preset(model, speed), torch.no_grad():
        for _ in range(2):
            with Counted(model) as counted, cache_context(model, "full"):
                samples.append(model(**given, **speed.arguments).sample)
            blocks.append(counted.blocks)
    return samples, blocks


@pytest.mark.parametrize("name", PRESETS)
def test_a_cached_step_equals_the_full_step_on_equal_inputs(model: Model, name: str) -> None:
    (full, cached), blocks = twice(model, PRESETS[name])
    layers = len(model.transformer_blocks)
    assert blocks == ([layers, layers] if name == "exact" else [layers, 1])
    torch.testing.assert_close(cached, full, atol=1e-5, rtol=1e-5)


def test_the_default_is_exact_and_exact_leaves_nothing_out(model: Model) -> None:
    assert SamplingConfig().preset == "exact" and get_preset("exact") == Acceleration() and not Acceleration().arguments
    conditions = _conditions(model, 2)
    plain = denoise(model, build_scheduler("dpm"), conditions, SamplingConfig(STEPS, 3.0, 3.0))
    with Counted(model) as counted:
        exact = run(model, conditions, "exact")
    assert torch.equal(exact.latents, plain.latents) and torch.equal(exact.masks, plain.masks)
    assert exact.state.step_cache is None
    assert (counted.calls, counted.blocks, counted.routed) == (STEPS, 3 * STEPS, 3 * STEPS)
    assert counted.batches == [2] * STEPS


@pytest.mark.parametrize("name", ["balanced", "fast"])
def test_presets_come_off_again(model: Model, name: str) -> None:
    conditions = _conditions(model, 2)
    before = run(model, conditions, "exact")
    processors = [block.attn1.processor for block in model.transformer_blocks]
    run(model, conditions, name)
    assert not model.is_cache_enabled
    assert not any("base_forward" in vars(block) for block in model.transformer_blocks)
    assert [block.attn1.processor for block in model.transformer_blocks] == processors
    after = run(model, conditions, "exact")
    assert torch.equal(before.latents, after.latents) and torch.equal(before.masks, after.masks)


def test_presets_come_off_after_an_error_too(model: Model) -> None:
    with pytest.raises(ZeroDivisionError), apply_preset(model, CACHED):
        assert model.is_cache_enabled
        raise ZeroDivisionError
    assert not model.is_cache_enabled and not any("base_forward" in vars(block) for block in model.transformer_blocks)


def test_blocks_are_skipped_once_masks_have_settled(model: Model, preset) -> None:
    preset(CACHED)
    seen: list[StepInfo] = []
    with Counted(model) as counted:
        run(model, _conditions(model, 2), seen=seen)
    # two steps tell whether the masks moved; from then on the first block alone
    assert counted.calls == STEPS and counted.blocks == 2 * 3 + (STEPS - 2)
    assert all(torch.equal(info.masks, seen[1].masks) for info in seen[2:]), "masks are those that acted"
    preset(replace(CACHED, mask_change=0.0))
    with Counted(model) as counted:
        run(model, _conditions(model, 2))
    assert counted.blocks == 3 * STEPS, "masks that never settle let nothing be skipped"
    preset(replace(CACHED, max_skipped=2))
    with Counted(model) as counted:
        run(model, _conditions(model, 2))
    assert counted.blocks == 3 * 4 + (STEPS - 4), "the first two steps, and every third after them"


def test_given_masks_that_begin_to_act_are_never_skipped(model: Model, preset) -> None:
    preset(CACHED)
    masks = torch.zeros(1, 2, 2, 2, 3)
    masks[:, 0, ..., 0], masks[:, 1, ..., 1] = 1, 1
    seen: list[StepInfo] = []
    with Counted(model) as counted:
        run(
            model, _conditions(model, 2, mask_control=MaskControl(masks[0], start_percent=torch.tensor(0.5))), seen=seen
        )
    half = STEPS // 2
    assert not torch.allclose(seen[half - 1].masks, masks[0], atol=0.1)
    assert torch.equal(seen[half].masks, masks[0]), "they act at once"
    assert counted.blocks == 3 * 2 + (half - 2) + 3 + (half - 1), "given masks stand still from their first step"


def test_a_router_frozen_once_settled_is_not_asked_again(model: Model, preset) -> None:
    preset(FROZEN)
    conditions, seen = _conditions(model, 2), []
    with Counted(model) as counted:
        run(model, conditions, seen=seen)
    assert counted.routed == 2 * 3, "two steps of three layers"
    assert all(torch.equal(info.masks, seen[1].masks) for info in seen[2:])
    preset(replace(FROZEN, mask_change=0.0))
    with Counted(model) as counted:
        moving = run(model, conditions)
    assert counted.routed == STEPS * 3
    assert torch.equal(moving.latents, run(model, conditions, "exact").latents)


def test_frozen_masks_are_drawn_towards_given_ones_as_the_routers_are(model: Model, preset) -> None:
    preset(FROZEN)
    masks = torch.zeros(1, 2, 2, 2, 3)
    masks[:, 0, ..., 0] = 1
    half = _conditions(model, 2, mask_control=MaskControl(masks[0], torch.tensor(0.5)))
    seen: list[StepInfo] = []
    run(model, half, seen=seen)
    assert all(torch.allclose(info.masks, seen[1].masks) for info in seen[2:])
    assert seen[-1].masks[0, ..., 0].min() >= 0.5 and seen[-1].masks[1].max() <= 0.5


@pytest.mark.parametrize("layers", [2, 3])
def test_a_router_of_every_kth_layer(model: Model, preset, layers: int) -> None:
    preset(Acceleration(router=RouterSchedule(every=layers)))
    with Counted(model) as counted:
        run(model, _conditions(model, 2))
    assert counted.routed == STEPS * len(range(0, 3, layers))


@pytest.mark.parametrize(
    ("span", "expected"), [((0.0, 0.5), [2, 2, 2, 2, 1, 1, 1, 1]), ((0.25, 0.5), [1, 1, 2, 2, 1, 1, 1, 1])]
)
def test_guidance_in_a_span_of_the_run(model: Model, preset, span, expected: list[int]) -> None:
    preset(Acceleration(guidance_interval=span))
    with Counted(model) as counted:
        run(model, _conditions(model, 2))
    assert counted.batches == expected


def test_without_guidance_a_span_changes_nothing(model: Model, preset) -> None:
    preset(Acceleration(guidance_interval=(0.0, 0.0)))
    conditions = _conditions(model, 2)
    config = SamplingConfig(STEPS, 1.0, 1.0)
    plain, spared = (
        denoise(model, build_scheduler("dpm"), conditions, replace(config, preset=name)) for name in ("exact", "fast")
    )
    assert torch.equal(plain.latents, spared.latents)


def interrupted(model: Model, conditions: Conditions, at: int) -> DenoiseResult:
    """A run that stopped and, after another one, goes on."""
    part = run(model, conditions, stop_at=at)
    run(model, _conditions(model, 3))
    return run(model, conditions, state=part.state)


BOTH = replace(FROZEN, cache_threshold=1e9, guidance_interval=(0.0, 0.5))


@pytest.mark.parametrize("at", [1, 3, 6])
@pytest.mark.parametrize(
    ("speed", "way"),
    [
        (CACHED, "batch"),
        (FROZEN, "batch"),
        (BOTH, "batch"),
        (BOTH, "sequential"),
        (replace(CACHED, cache_threshold=0.3, mask_change=2.0, max_skipped=2), "sequential"),
    ],
)
def test_stopped_and_gone_on_with_it_is_the_same_video(
    model: Model, preset, speed: Acceleration, at: int, way: str
) -> None:
    preset(speed)
    conditions = _conditions(model, 2)
    set_guidance_mode(model, way)
    try:
        whole, parts = run(model, conditions), interrupted(model, conditions, at)
    finally:
        set_guidance_mode(model, "batch")
    torch.testing.assert_close(parts.latents, whole.latents, atol=1e-6, rtol=0)
    assert torch.equal(parts.masks, whole.masks)


@pytest.mark.parametrize("name", ["balanced", "fast"])
def test_the_presets_themselves_can_be_stopped(model: Model, name: str) -> None:
    conditions = _conditions(model, 2)
    whole = run(model, conditions, name)
    for at in (2, 5):
        part = run(model, conditions, name, stop_at=at)
        parts = run(model, conditions, name, state=part.state)
        torch.testing.assert_close(parts.latents, whole.latents, atol=1e-6, rtol=0)


def test_voices_exchanged_at_a_stop_are_heard_at_once(model: Model, preset) -> None:
    """What a cache kept was computed with the voices as they were before: it must not be added any more."""
    preset(CACHED)
    swap = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    given, swapped = _conditions(model, 2), _conditions(model, 2, audio_character_matrix=swap)
    part = run(model, given, stop_at=STEPS // 2)
    same, other = (run(model, conditions, state=part.state) for conditions in (given, swapped))
    assert not torch.allclose(same.latents, other.latents, atol=1e-4)


def test_blocks_share_their_compiled_graph(model: Model) -> None:
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    conditions = _conditions(model, 2)
    plain = run(model, conditions, "exact", stop_at=2)
    with compiled(model, backend):
        made = run(model, conditions, "exact", stop_at=2)
    assert len(graphs) == 2, "one for the first block, whose inputs are views of one tensor, one for all others"
    torch.testing.assert_close(made.latents, plain.latents, atol=1e-5, rtol=1e-4)
    assert not any("base_forward" in vars(block) for block in model.transformer_blocks)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler wants g++ on a processor")
def test_a_real_compiler_computes_the_same(model: Model) -> None:
    """Rotary positions are complex numbers where nothing compiles, which the compiler could not read."""
    conditions = _conditions(model, 2)
    plain = run(model, conditions, "exact", stop_at=2)
    with warnings.catch_warnings(), compiled(model):
        warnings.filterwarnings("error", message=".*complex.*")
        made = run(model, conditions, "exact", stop_at=2)
    torch.testing.assert_close(made.latents, plain.latents, atol=1e-4, rtol=1e-4)


def _linears() -> list[torch.nn.Linear]:
    return [layer.to(torch.bfloat16) for layer in (torch.nn.Linear(64, 48), torch.nn.Linear(48, 32, bias=False))]


def test_linears_of_the_blocks(model: Model) -> None:
    """Query, key, value, out and two of the feed-forward."""
    assert len(block_linears(model.transformer_blocks)) == 6 * len(model.transformer_blocks)


@pytest.mark.parametrize("installed", [True, False])
def test_fp8_fallback_notice(
    installed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without torchao, or on a CPU, layers stay as they are and a warning says why."""
    if installed:
        pytest.importorskip("torchao")
    else:
        monkeypatch.setitem(sys.modules, "torchao", None)
        monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    layers = _linears()
    weights = [layer.weight for layer in layers]
    with fp8_matmul(layers) as used:
        assert not used and all(layer.weight is weight for layer, weight in zip(layers, weights, strict=True))
    assert "float8 is not used" in caplog.text


@torch.no_grad()
def test_fp8_is_close_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where torchao multiplies the dequantized values."""
    quant_api = pytest.importorskip("torchao.quantization.quant_api")
    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda *_: None)
    layers = _linears()
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    weights, exact = [layer.weight for layer in layers], layers[1](layers[0](x))
    with fp8_matmul(layers) as used:
        quantized = layers[1](layers[0](x))
    assert used and quantized.dtype is torch.bfloat16 and not torch.equal(quantized, exact)
    error = (quantized.float() - exact.float()).norm() / exact.float().norm()
    assert error < 0.06, "three bits of mantissa"
    assert torch.equal(layers[1](layers[0](x)), exact)
    assert all(layer.weight is weight for layer, weight in zip(layers, weights, strict=True))


def test_what_the_machine_lacks_is_left_out(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor a preset that asks for everything computes what the parts it can have compute."""
    everything = Acceleration(compile=True, attention="sage", fp8=True)
    before = [block.attn1.processor._attention_backend for block in model.transformer_blocks]
    with apply_preset(model, everything) as watched:
        assert not watched.caching and not any("base_forward" in vars(block) for block in model.transformer_blocks)
        assert [block.attn1.processor._attention_backend for block in model.transformer_blocks] == before


def test_another_attention_is_dispatched_and_comes_off(model: Model) -> None:
    conditions = _conditions(model, 2)
    plain = run(model, conditions, "exact", stop_at=1)
    with attention(model, "native"):
        assert all(block.attn1.processor._attention_backend == "native" for block in model.transformer_blocks)
        made = run(model, conditions, "exact", stop_at=1)
    torch.testing.assert_close(made.latents, plain.latents, atol=1e-5, rtol=1e-4)
    assert all(block.attn1.processor._attention_backend is None for block in model.transformer_blocks)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", ["balanced", "fast"])
def test_presets_on_a_gpu(name: str) -> None:
    """Everything that this GPU has is put on at once, computes, and comes off again."""
    there = build().to("cuda", torch.bfloat16).eval()
    conditions = _conditions(build(), 2)
    exact, made = (run(there, conditions, speed) for speed in ("exact", name))
    assert made.latents.isfinite().all()
    again = run(there, conditions, "exact")
    assert torch.equal(exact.latents, again.latents)


def test_an_unknown_preset_is_told() -> None:
    with pytest.raises(InputError, match="exact"):
        get_preset("warp")
    with pytest.raises(InputError, match="preset"):
        SamplingConfig(preset="warp")
