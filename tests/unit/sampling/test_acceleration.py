"""Presets: skipped work, resuming, and restoring the transformer afterwards."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bya_core.config import RouterSchedule, SamplingConfig
from bya_core.errors import InputError
from bya_core.masks import MaskControl
from bya_core.memory.planner import offload_layers
from bya_core.models.transformer import BindYourAvatarTransformer3DModel as Model
from bya_core.sampling import Conditions, StepInfo, build_scheduler, denoise
from bya_core.sampling.acceleration import (
    PRESETS,
    Acceleration,
    _gpu_contexts,
    apply_preset,
    attention,
    attention_works,
    compiled,
    get_preset,
)
from bya_core.sampling.cfg_parallel import cache_context, set_guidance_mode
from bya_core.sampling.fp8 import block_linears, fp8_matmul
from tests.unit.sampling.test_denoise_small_model import _conditions, build, model  # noqa: F401 - a fixture

# ruff: noqa: F811 - tests take the fixture by its name

STEPS = 8
CACHED = Acceleration(mask_change=1e9, cache_threshold=1e9, max_skipped=STEPS)
"""Skips as many blocks as possible."""
FROZEN = Acceleration(router=RouterSchedule(freeze=True), mask_change=1e9)


@pytest.fixture
def preset(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A function that replaces the preset "fast"."""
    yield lambda acceleration: monkeypatch.setitem(PRESETS, "fast", acceleration)


def run(model: Model, conditions: Conditions, preset: str = "fast", seen: list[StepInfo] | None = None, **options):
    config = SamplingConfig(steps=STEPS, guidance_scale=3.0, audio_guidance_scale=3.0, preset=preset)
    callback = None if seen is None else lambda progress: seen.append(progress.info)
    return denoise(model, build_scheduler("dpm"), conditions, config, callback=callback, **options)


@contextmanager
def counted(model: Model) -> Iterator[SimpleNamespace]:
    """Counts blocks, router predictions and the batch size of each call."""
    counts = SimpleNamespace(blocks=0, routed=0, batches=[])

    def count(name: str) -> Callable[..., None]:
        return lambda *_: setattr(counts, name, getattr(counts, name) + 1)

    hooks = [
        model.register_forward_pre_hook(
            lambda _, __, kwargs: counts.batches.append(len(kwargs["hidden_states"])), with_kwargs=True
        ),
        model.router.register_forward_pre_hook(count("routed")),
        *(block.ff.register_forward_pre_hook(count("blocks")) for block in model.transformer_blocks),
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def assert_unchanged(model: Model) -> None:
    """No trace of a preset is left on the transformer."""
    assert not model.is_cache_enabled
    for block in model.transformer_blocks:
        assert "base_forward" not in vars(block) and block.attn1.processor._attention_backend is None


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_cached_call_equals_full_call(model: Model, name: str) -> None:
    conditions, acceleration = _conditions(model, 2), PRESETS[name]
    call = {
        "hidden_states": torch.randn(1, 2, 12, 4, 6, generator=torch.Generator().manual_seed(4)),
        "encoder_hidden_states": conditions.text,
        "timestep": torch.tensor([400]),
        "face_tokens": conditions.face_tokens,
        "audio_tokens": conditions.audio_tokens,
    }
    samples, blocks = [], []
    with apply_preset(model, acceleration):
        for _ in range(2):
            with counted(model) as counts, cache_context(model, "full"):
                samples.append(model(**call, **acceleration.arguments).sample)
            blocks.append(counts.blocks)
    layers = len(model.transformer_blocks)
    assert blocks == ([layers, layers] if name == "exact" else [layers, 1])
    torch.testing.assert_close(samples[1], samples[0], atol=1e-5, rtol=1e-5)


def test_exact_is_the_default_and_computes_everything(model: Model) -> None:
    assert SamplingConfig().preset == "exact" and get_preset("exact") == Acceleration() and not Acceleration().arguments
    conditions = _conditions(model, 2)
    plain = denoise(model, build_scheduler("dpm"), conditions, SamplingConfig(STEPS, 3.0, 3.0))
    with counted(model) as counts:
        exact = run(model, conditions, "exact")
    assert torch.equal(exact.latents, plain.latents) and torch.equal(exact.masks, plain.masks)
    assert exact.state.step_cache is None
    assert (counts.blocks, counts.routed) == (3 * STEPS, 3 * STEPS)
    assert counts.batches == [2] * STEPS


@pytest.mark.parametrize("name", ["balanced", "fast"])
def test_presets_are_undone(model: Model, name: str) -> None:
    conditions = _conditions(model, 2)
    before = run(model, conditions, "exact")
    run(model, conditions, name)
    assert_unchanged(model)
    with pytest.raises(ZeroDivisionError), apply_preset(model, PRESETS[name]):
        assert model.is_cache_enabled
        raise ZeroDivisionError
    assert_unchanged(model)
    after = run(model, conditions, "exact")
    assert torch.equal(before.latents, after.latents) and torch.equal(before.masks, after.masks)


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [
        ({}, 2 * 3 + (STEPS - 2)),  # masks have converged after two steps
        ({"mask_change": 0.0}, 3 * STEPS),  # they never converge
        ({"max_skipped": 2}, 3 * 4 + (STEPS - 4)),  # the first two steps and every third one after them
    ],
)
def test_blocks_are_skipped_after_convergence(model: Model, preset, changes, blocks: int) -> None:
    preset(replace(CACHED, **changes))
    seen: list[StepInfo] = []
    with counted(model) as counts:
        run(model, _conditions(model, 2), seen=seen)
    assert len(counts.batches) == STEPS and counts.blocks == blocks
    if not changes:  # masks are those of the last full step
        assert all(torch.equal(info.masks, seen[1].masks) for info in seen[2:])


def test_no_step_is_skipped_where_mask_control_starts(model: Model, preset) -> None:
    preset(CACHED)
    masks = torch.zeros(2, 2, 2, 3)
    masks[0, ..., 0], masks[1, ..., 1] = 1, 1
    control = MaskControl(masks, start_percent=torch.tensor(0.5))
    seen: list[StepInfo] = []
    with counted(model) as counts:
        run(model, _conditions(model, 2, mask_control=control), seen=seen)
    half = STEPS // 2
    assert not torch.allclose(seen[half - 1].masks, masks, atol=0.1)
    assert torch.equal(seen[half].masks, masks)
    assert counts.blocks == 3 * 2 + (half - 2) + 3 + (half - 1)  # given masks have converged in their first step


def test_frozen_router(model: Model, preset) -> None:
    preset(FROZEN)
    conditions, seen = _conditions(model, 2), []
    with counted(model) as counts:
        run(model, conditions, seen=seen)
    assert counts.routed == 2 * 3  # two steps of three layers
    assert all(torch.equal(info.masks, seen[1].masks) for info in seen[2:])
    preset(replace(FROZEN, mask_change=0.0))
    with counted(model) as counts:
        moving = run(model, conditions)
    assert counts.routed == STEPS * 3
    assert torch.equal(moving.latents, run(model, conditions, "exact").latents)


def test_frozen_masks_are_blended_with_mask_control(model: Model, preset) -> None:
    preset(FROZEN)
    masks = torch.zeros(2, 2, 2, 3)
    masks[0, ..., 0] = 1
    seen: list[StepInfo] = []
    run(model, _conditions(model, 2, mask_control=MaskControl(masks, torch.tensor(0.5))), seen=seen)
    assert all(torch.allclose(info.masks, seen[1].masks) for info in seen[2:])
    assert seen[-1].masks[0, ..., 0].min() >= 0.5 and seen[-1].masks[1].max() <= 0.5


@pytest.mark.parametrize("layers", [2, 3])
def test_router_interval(model: Model, preset, layers: int) -> None:
    preset(Acceleration(router=RouterSchedule(every=layers)))
    with counted(model) as counts:
        run(model, _conditions(model, 2))
    assert counts.routed == STEPS * len(range(0, 3, layers))


@pytest.mark.parametrize(
    ("interval", "expected"), [((0.0, 0.5), [2, 2, 2, 2, 1, 1, 1, 1]), ((0.25, 0.5), [1, 1, 2, 2, 1, 1, 1, 1])]
)
def test_guidance_interval(model: Model, preset, interval, expected: list[int]) -> None:
    preset(Acceleration(guidance_interval=interval))
    with counted(model) as counts:
        run(model, _conditions(model, 2))
    assert counts.batches == expected


def test_guidance_interval_without_guidance(model: Model, preset) -> None:
    preset(Acceleration(guidance_interval=(0.0, 0.0)))
    plain, fast = (
        denoise(model, build_scheduler("dpm"), _conditions(model, 2), SamplingConfig(STEPS, 1.0, 1.0, preset=name))
        for name in ("exact", "fast")
    )
    assert torch.equal(plain.latents, fast.latents)


BOTH = replace(FROZEN, cache_threshold=1e9, guidance_interval=(0.0, 0.5))


@pytest.mark.parametrize("at", [1, 3, 6])
@pytest.mark.parametrize(
    ("acceleration", "mode"),
    [
        (PRESETS["balanced"], "batch"),
        (PRESETS["fast"], "batch"),
        (CACHED, "batch"),
        (FROZEN, "batch"),
        (BOTH, "batch"),
        (BOTH, "sequential"),
        (replace(CACHED, cache_threshold=0.3, mask_change=2.0, max_skipped=2), "sequential"),
    ],
)
def test_resumed_run_equals_uninterrupted_run(model: Model, preset, acceleration, at: int, mode) -> None:
    preset(acceleration)
    conditions = _conditions(model, 2)
    set_guidance_mode(model, mode)
    try:
        whole, part = run(model, conditions), run(model, conditions, stop_at=at)
        run(model, _conditions(model, 3))  # another run in between
        resumed = run(model, conditions, state=part.state)
    finally:
        set_guidance_mode(model, "batch")
    torch.testing.assert_close(resumed.latents, whole.latents, atol=1e-6, rtol=0)
    assert torch.equal(resumed.masks, whole.masks)


def test_resuming_with_another_matrix_recomputes_the_cache(model: Model, preset) -> None:
    preset(CACHED)
    swap = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    given, swapped = _conditions(model, 2), _conditions(model, 2, audio_character_matrix=swap)
    part = run(model, given, stop_at=STEPS // 2)
    same, other = (run(model, conditions, state=part.state) for conditions in (given, swapped))
    assert not torch.allclose(same.latents, other.latents, atol=1e-4)


def test_blocks_share_compiled_graphs(model: Model) -> None:
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    conditions = _conditions(model, 2)
    plain = run(model, conditions, "exact", stop_at=2)
    with compiled(model, backend):
        made = run(model, conditions, "exact", stop_at=2)
    assert len(graphs) == 1
    torch.testing.assert_close(made.latents, plain.latents, atol=1e-5, rtol=1e-4)
    assert_unchanged(model)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_inductor_equals_eager(model: Model) -> None:
    """Without complex numbers, which inductor does not support."""
    conditions = _conditions(model, 2)
    plain = run(model, conditions, "exact", stop_at=2)
    with warnings.catch_warnings(), compiled(model):
        warnings.filterwarnings("error", message=".*complex.*")
        made = run(model, conditions, "exact", stop_at=2)
    torch.testing.assert_close(made.latents, plain.latents, atol=1e-4, rtol=1e-4)


def _linears() -> list[torch.nn.Linear]:
    return [layer.to(torch.bfloat16) for layer in (torch.nn.Linear(64, 48), torch.nn.Linear(48, 32, bias=False))]


def test_block_linears(model: Model) -> None:
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
    assert "FP8 is not used" in caplog.text


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


@pytest.mark.parametrize("plan", ["streamed", "sequential", "resident"])
def test_fp8_is_reported_as_unused_with_offloading(plan: str, caplog: pytest.LogCaptureFixture) -> None:
    """The lowest memory plans keep the blocks on the host, where torchao cannot use them."""
    model = build().to(torch.bfloat16)
    if plan == "sequential":
        offload_layers(list(model.transformer_blocks), torch.device("cpu"))
    elif plan == "streamed":
        model.transformer_blocks.to("meta")  # another device than that of the rest
    used = list(_gpu_contexts(model, Acceleration(fp8=True), torch.bfloat16))
    reason = "too little GPU memory is free" if plan == "resident" else "the weights are offloaded"
    assert not used
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("bya_core")]
    assert messages == [f"FP8 is not used: {reason}."]


def test_gpu_options_are_ignored_on_a_cpu(model: Model) -> None:
    with apply_preset(model, Acceleration(compile=True, attention="sage", fp8=True)) as monitor:
        assert not monitor.caching
        assert_unchanged(model)


def test_attention_backend(model: Model) -> None:
    conditions = _conditions(model, 2)
    plain = run(model, conditions, "exact", stop_at=1)
    with attention(model, "native"):
        assert all(block.attn1.processor._attention_backend == "native" for block in model.transformer_blocks)
        made = run(model, conditions, "exact", stop_at=1)
    torch.testing.assert_close(made.latents, plain.latents, atol=1e-5, rtol=1e-4)
    assert_unchanged(model)


def test_unusable_attention_backends_are_rejected(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing package, a call that fails, and wrong results."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    cpu = torch.device("cpu")
    attention_works.cache_clear()
    assert attention_works("native", 64, torch.bfloat16, cpu) and not caplog.records
    assert not attention_works("sage", 64, torch.bfloat16, cpu)
    assert "'sage' is not used" in caplog.text
    backends = _AttentionBackendRegistry._backends
    for name, function in (("flash", lambda **_: 1 / 0), ("_flash_3", lambda query, **_: torch.zeros_like(query))):
        monkeypatch.setitem(backends, AttentionBackendName(name), function)
        monkeypatch.setitem(_AttentionBackendRegistry._constraints, AttentionBackendName(name), [])
        monkeypatch.setitem(_AttentionBackendRegistry._supported_arg_names, AttentionBackendName(name), {"query"})
        assert not attention_works(name, 64, torch.bfloat16, cpu)
    assert "division by zero" in caplog.text and "relative error is 1" in caplog.text
    attention_works.cache_clear()


def test_failing_compiler_is_not_used(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no C compiler")

    conditions = _conditions(model, 2)
    plain = run(model, conditions, "exact", stop_at=1)
    with compiled(model, backend=broken):
        made = run(model, conditions, "exact", stop_at=1)
    torch.testing.assert_close(made.latents, plain.latents)
    assert caplog.text.count("Blocks are not compiled") == 1
    assert_unchanged(model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", ["balanced", "fast"])
def test_presets_on_a_gpu(name: str) -> None:
    """All options that this GPU supports, together."""
    model = build().to("cuda", torch.bfloat16).eval()
    conditions = _conditions(build(), 2)
    exact, made = (run(model, conditions, preset) for preset in ("exact", name))
    assert made.latents.isfinite().all()
    again = run(model, conditions, "exact")
    assert torch.equal(exact.latents, again.latents)


def test_unknown_preset_raises() -> None:
    with pytest.raises(InputError, match="exact"):
        get_preset("warp")
    with pytest.raises(InputError, match="preset"):
        SamplingConfig(preset="warp")
