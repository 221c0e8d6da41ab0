"""Memory plans: selection, equal results with every plan, and no use of offloaded weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor, nn

from bya_core.encoders.vae import CogVideoXCodec
from bya_core.errors import InputError
from bya_core.memory import planner as memory
from bya_core.memory.offload import BlockOffload, DeviceSlot, HostWeights, PinnedPool
from bya_core.memory.planner import (
    GIB,
    MEMORY_PLANS,
    MemoryPlan,
    apply_memory_plan,
    component_sizes,
    plan_memory,
    required_memory,
)
from bya_core.models.kv_cache import KVCache
from bya_core.models.transformer import BindYourAvatarTransformer3DModel
from bya_core.pipelines.full_size import VAE
from bya_core.weights.bundle import ModelBundle, NativeSize
from tests.fakes import FakeFace, FakeSpeech, FakeText

CPU = torch.device("cpu")


def small(flavour: str = "official") -> BindYourAvatarTransformer3DModel:
    """A small transformer with random weights in all modules."""
    torch.manual_seed(0)
    model = BindYourAvatarTransformer3DModel(
        flavour=flavour, num_attention_heads=2, attention_head_dim=16, in_channels=9, out_channels=3, time_embed_dim=16,
        text_embed_dim=8, num_layers=5, sample_width=12, sample_height=8, sample_frames=9, max_text_seq_length=5,
        cross_attn_interval=2, cross_attn_dim_head=8, cross_attn_num_heads=2, lfe_dim=16, lfe_depth=2, lfe_dim_head=8,
        lfe_heads=2, lfe_num_id_token=2, lfe_num_queries=4, lfe_output_dim=16, lfe_ff_mult=2, lfe_vit_dim=10,
        lfe_id_dim=6, lfe_hidden_dim=16, lfe_num_scale=2, router_heads=2, router_blocks=1, router_dim=16, audio_dim=12,
        audio_heads=2, audio_dim_head=16, audio_blocks=3, audio_channels=12, audio_hidden_dim=16,
        audio_context_tokens=4,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def call(model: BindYourAvatarTransformer3DModel, **options: Any) -> Tensor:
    """Prediction and masks of one step, as one tensor; faces and speech are encoded by the model."""
    generator = torch.Generator().manual_seed(1)
    faces = torch.randn(1, 2, 6, generator=generator), torch.randn(1, 2, 2, 7, 10, generator=generator)
    speech = torch.randn(1, 2, 9 + 4, 3, 12, generator=generator)
    output = model(
        hidden_states=torch.randn(2, 3, 9, 8, 12, generator=generator),
        encoder_hidden_states=torch.randn(2, 5, 8, generator=generator),
        timestep=torch.tensor([500, 500]),
        face_tokens=model.encode_faces(*faces).expand(2, -1, -1, -1),
        audio_tokens=model.encode_speech(speech).expand(2, -1, -1, -1, -1),
        **options,
    )
    return torch.cat([output.sample.flatten(), output.used_masks.flatten()])


def placed(plan: MemoryPlan, flavour: str = "official") -> BindYourAvatarTransformer3DModel:
    model = small(flavour)
    if plan.fp8_storage:
        memory.store_in_fp8(model)
    slot = DeviceSlot()
    memory.place_transformer(model, plan, CPU, slot)
    model.slot = slot
    return model


@pytest.fixture
def nan_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Offloaded weights are NaN, so that using them is noticed."""
    group = "diffusers.hooks.group_offloading.ModuleGroup"
    offloaded: dict[int, Tensor] = {}

    def all_tensors(self: Any) -> list[Tensor]:
        tensors = [t for module in self.modules for t in (*module.parameters(), *module.buffers())]
        return [*tensors, *self.parameters, *self.buffers]

    def offload(self: Any) -> None:
        for tensor in all_tensors(self):
            offloaded.setdefault(id(tensor), tensor.data)
            tensor.data = torch.full_like(tensor, torch.nan)

    def onload(self: Any) -> None:
        for tensor in all_tensors(self):
            tensor.data = offloaded.pop(id(tensor))

    monkeypatch.setattr(f"{group}.offload_", offload)
    monkeypatch.setattr(f"{group}.onload_", onload)
    monkeypatch.setattr(
        HostWeights, "offload", lambda self: self.use([torch.full_like(t, torch.nan) for t in self._host])
    )
    init = HostWeights.__init__

    def init_offloaded(self: HostWeights, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.offload()

    monkeypatch.setattr(HostWeights, "__init__", init_offloaded)
    yield


@pytest.mark.parametrize("flavour", ["official", "paper"])
@pytest.mark.parametrize("blocks", ["resident", "streamed", "sequential"])
@torch.no_grad()
def test_offloaded_weights_are_not_used(blocks: Any, flavour: str, nan_weights: None) -> None:
    """Including layers that a block calls through a closure, or by methods other than forward."""
    model = placed(MemoryPlan("", blocks=blocks), flavour)
    face_query = model.perceiver_cross_attention[0].to_q.weight
    assert face_query.isnan().all() and model.audio_model.layers[1].attn.to_k.weight.isnan().all()
    assert not model.patch_embed.proj.weight.isnan().any()
    expected = call(small(flavour))
    for _ in range(2):
        assert torch.equal(call(model), expected)
    model.slot.acquire(None)
    assert face_query.isnan().all()
    assert model.device == CPU and model.dtype == torch.float32


@pytest.mark.parametrize(("created", "used"), [(False, True), (True, True)])
@pytest.mark.parametrize(
    "plan", [MEMORY_PLANS[1], MEMORY_PLANS[2], MEMORY_PLANS[4], MEMORY_PLANS[5]], ids=lambda plan: plan.name
)
def test_inference_mode(plan: MemoryPlan, created: bool, used: bool) -> None:
    """ComfyUI loads and runs models in inference mode; others may load outside of it."""
    with torch.inference_mode(created):
        model = placed(plan)
    with torch.inference_mode(used), torch.no_grad():
        output = call(model)
        assert torch.equal(call(model), output)
        if not plan.fp8_storage:
            assert torch.allclose(output, call(small()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("blocks", ["streamed", "sequential"])
@torch.no_grad()
def test_calls_that_skip_modules(blocks: Any, nan_weights: None) -> None:
    """Given masks skip the router, and missing speech skips audio layers, between calls that use them."""
    model, reference = placed(MemoryPlan("", blocks=blocks)), small()
    given = {"mask_override": torch.rand(2, 2, 3, 4, 6, generator=torch.Generator().manual_seed(2))}
    for options in ({}, given, {}):
        assert torch.equal(call(model, **options), call(reference, **options))
    inputs = torch.ones(1, 3, 9, 8, 12), torch.ones(1, 5, 8), torch.tensor([1])
    assert torch.equal(model(*inputs).sample, reference(*inputs).sample)
    assert torch.equal(call(model), call(reference))


@torch.no_grad()
def test_block_offload_keeps_two_groups() -> None:
    layers = [nn.Linear(4, 4) for _ in range(5)]
    stream = BlockOffload([[layer] for layer in layers], CPU)
    x = torch.ones(1, 4)
    for layer in (*layers, *layers[:2], layers[4], layers[0]):  # skips 2 and 3
        x = layer(x)
        assert len(stream.on_device) == 2
    with pytest.raises(RuntimeError):
        layers[1](torch.ones(1, 3))
    host = stream.groups[1]._host  # offloaded after the error
    assert [t.data_ptr() for t in layers[1].parameters()] == [t.data_ptr() for t in host]
    stream.offload()
    assert stream.on_device == ()
    assert layers[2](torch.ones(1, 4)).shape == (1, 4)


@torch.no_grad()
def test_pinned_pool(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A few large buffers of pinned memory, or of pageable memory if pinning fails."""
    monkeypatch.setattr(PinnedPool, "buffer_bytes", 2**15)
    model, pool = small(), PinnedPool(pinned=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = HostWeights([model], pool)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert weights.bytes < pool.allocated < 1.3 * weights.bytes
    large = pool.copy(torch.arange(2**15).to(torch.float16))
    assert torch.equal(large, torch.arange(2**15).to(torch.float16))

    def empty(size: int, **options: Any) -> Tensor:
        if options.get("pin_memory"):
            raise RuntimeError("cannot pin memory")
        return torch.zeros(size, dtype=torch.uint8)

    monkeypatch.setattr(torch, "empty", empty)
    with caplog.at_level(logging.WARNING):
        pageable = PinnedPool()
        assert torch.equal(pageable.copy(torch.ones(3)), torch.ones(3)) and not pageable.pinned
    assert "block offload will be slower" in caplog.text


@torch.no_grad()
def test_fp8_storage() -> None:
    model, expected = placed(MEMORY_PLANS[4]), call(small())
    stored = {t.dtype for t in model.transformer_blocks[0].ff.parameters()}
    assert stored == {torch.float8_e4m3fn}
    assert model.transformer_blocks[0].norm1.linear.weight.dtype == model.dtype == torch.float32
    assert model.local_facial_extractor.id_embedding_mapping[0].weight.dtype == torch.float32
    output = call(model)
    error = (output - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 0 < error < 0.05
    assert torch.equal(call(model), output)  # casting back and forth is exact


class Encoder(nn.Module):
    """An encoder that records calls."""

    def __init__(self, log: list[str], name: str) -> None:
        super().__init__()
        self.log, self.name = log, name

    def to(self, device: Any) -> Encoder:  # type: ignore[override]
        self.log.append(f"{self.name} to {torch.device(device).type}")
        return self


class TextEncoder(Encoder):
    def encode(self, prompts: list[str]) -> Tensor:
        return torch.zeros(len(prompts), 5, 8)

    def release(self) -> None:
        self.log.append("text released")


class SpeechEncoder(Encoder):
    sample_rate = 16000

    def encode(self, waveform: Tensor, num_frames: int) -> Tensor:
        return torch.zeros(num_frames + 4, 3, 12)


def bundle(transformer: Any, codec: Any, **components: Any) -> ModelBundle:
    encoders: dict[str, Any] = {"text": FakeText(), "face": FakeFace(), "speech": FakeSpeech()} | components
    return ModelBundle("small", transformer, codec=codec, scheduler_config={}, native=NativeSize(64, 96, 9), **encoders)


def small_codec() -> CogVideoXCodec:
    torch.manual_seed(0)
    sizes = {"block_out_channels": (4, 4, 4, 8), "norm_num_groups": 2, "latent_channels": 3, "layers_per_block": 1}
    return CogVideoXCodec(AutoencoderKLCogVideoX(**VAE | sizes | {"sample_height": 64, "sample_width": 96}))


@torch.no_grad()
def test_component_offload() -> None:
    calls: list[str] = []
    model = bundle(small(), small_codec(), text=TextEncoder(calls, "text"), speech=SpeechEncoder(calls, "speech"))
    apply_memory_plan(model, MemoryPlan("", blocks="streamed", text_encoder_on_cpu=True), CPU)
    model.text.encode(["a", "b"])
    model.text.encode(["c"])
    model.speech.encode(torch.zeros(10), 9)
    call(model.transformer)
    model.speech.encode(torch.zeros(10), 9)
    assert calls == ["text to cpu", "text released", "speech to cpu", "speech to cpu", "speech to cpu"]
    # the second and third: offloaded for the face extractor, loaded again
    resident = bundle(small(), small_codec(), speech=SpeechEncoder(calls, "resident speech"))
    apply_memory_plan(resident, MEMORY_PLANS[0], "cpu")
    assert calls[-1] == "resident speech to cpu"


@torch.no_grad()
def test_videos_are_decoded_and_encoded_in_tiles_and_images_whole() -> None:
    whole, tiled = small_codec(), small_codec()
    memory.enable_tiling(tiled)
    assert tiled.vae.use_tiling and tiled.vae.use_slicing
    # tiles of half the size would not start at latent cells of 8 pixels
    assert (tiled.vae.tile_sample_min_height, tiled.vae.tile_sample_min_width) == (32, 64)
    video = torch.rand(1, 3, 9, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = whole.encode(video)
    assert torch.equal(tiled.encode(video[:, :, :1]), whole.encode(video[:, :, :1]))
    encoded = tiled.encode(video)
    assert encoded.shape == latents.shape and not torch.equal(encoded, latents)
    expected, decoded = whole.decode(latents), tiled.decode(latents)
    assert decoded.shape == expected.shape and not torch.equal(decoded, expected)
    # for random weights; less for trained ones, see docs/how-to/memory.md
    assert (decoded - expected).square().mean().sqrt() < 0.3 * expected.std()
    memory.enable_tiling(SimpleNamespace())  # codecs without tiling


def full_size(folder: Path) -> dict[str, int]:
    """Sizes of the released model in bfloat16; T5-XXL is a sparse file of its size."""
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(9_524_000_000)
    face, speech = (SimpleNamespace(network=nn.Linear(size, 1000, device="meta")) for size in (225_000, 47_000))
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            transformer = BindYourAvatarTransformer3DModel()
            codec = SimpleNamespace(vae=AutoencoderKLCogVideoX(**VAE), space_factor=8, time_factor=4)
    finally:
        torch.set_default_dtype(torch.float32)
    encoders = {"text": SimpleNamespace(folder=folder), "face": face, "speech": speech}
    return component_sizes(replace(bundle(transformer, codec, **encoders), native=NativeSize(480, 720, 49)))


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    return full_size(tmp_path_factory.mktemp("t5"))


@pytest.mark.parametrize(("gigabytes", "tiled"), [("24", False), ("12", True)])
@torch.no_grad()
def test_the_memory_budget_decides_whether_videos_are_encoded_in_tiles(
    gigabytes: str, tiled: bool, sizes: dict[str, int]
) -> None:
    model = bundle(small(), small_codec())
    memory.apply_compute_options(model, plan_memory(gigabytes, sizes))
    video = torch.rand(1, 3, 9, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(model.codec.encode(video), small_codec().encode(video)) is not tiled


def test_sizes_of_the_released_model(sizes: dict[str, int]) -> None:
    """Compared with the released files: 5.571 billion parameters plus added modules."""
    parameters = {name: size / 2e9 for name, size in sizes.items()}
    # base without patch, time and output layers; 21 face layers; 42 audio layers
    assert parameters["blocks"] == pytest.approx(5.57 + 0.4406 + 0.991, rel=0.01)
    assert parameters["projection"] == pytest.approx(1.245, rel=0.01)
    assert parameters["extractor"] == pytest.approx(0.1514, rel=0.01)
    assert parameters["codec"] == pytest.approx(0.2156, rel=0.01)
    assert (sizes["text"], sizes["face"]) == (9_524_000_000, 900_004_000)
    assert sizes["block"] < 0.03 * sizes["blocks"]
    assert 0.8 < sizes["fp8_blocks"] / sizes["blocks"] < 0.95
    assert sizes["kv_cache"] == pytest.approx((22 + 176 + 859) * 1e6, rel=0.01)


@pytest.mark.parametrize("flavour", ["official", "paper"])
def test_size_of_the_kv_cache(flavour: str) -> None:
    """Compared with the cache of a real step, with guidance and two speech streams."""
    model, kv_cache = small(flavour), KVCache()
    sizes = component_sizes(replace(bundle(model, small_codec()), native=NativeSize(64, 96, 9)))
    with torch.no_grad():
        call(model, kv_cache=kv_cache)
    assert sizes["kv_cache"] == kv_cache.bytes > 0
    four = component_sizes(replace(bundle(model, small_codec()), native=NativeSize(64, 96, 9)), characters=4)
    assert four["kv_cache"] > 1.5 * sizes["kv_cache"]
    without = sizes | {"kv_cache": 0}
    added = [
        required_memory(plan, sizes)["Denoising"] - required_memory(plan, without)["Denoising"] for plan in MEMORY_PLANS
    ]
    assert added == [kv_cache.bytes, 0, 0, 0, 0, 0]  # only the first plan uses it


@pytest.mark.parametrize(
    ("vram", "name", "on_cpu"),
    [
        ("80", "full", False),
        ("48", "full", False),
        ("24", "component_offload", False),
        ("16", "block_offload_tiling", False),
        ("12", "block_offload_tiling", False),
        ("8", "block_offload_tiling", True),
    ],
)
def test_plan_memory(vram: str, name: str, on_cpu: bool, sizes: dict[str, int]) -> None:
    plan = plan_memory(vram, sizes)
    assert (plan.name, plan.text_encoder_on_cpu) == (name, on_cpu)
    assert max(required_memory(plan, sizes).values()) < int(vram) * GIB


def test_each_plan_needs_less_memory(sizes: dict[str, int]) -> None:
    peaks = [
        max(required_memory(replace(plan, text_encoder_on_cpu=plan.offload_components), sizes).values())
        for plan in MEMORY_PLANS
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert plan_memory(10**12, sizes) == MEMORY_PLANS[0] and plan_memory(10**12, {}) == MEMORY_PLANS[0]


def test_plan_memory_with_little_host_memory(sizes: dict[str, int], caplog: pytest.LogCaptureFixture) -> None:
    """14 GB cannot be pinned with 10 GB of free host memory, float8 weights can."""
    assert plan_memory("12", sizes, host_free=10 * GIB).name == "block_offload_tiling_fp8"
    assert plan_memory("12", sizes, host_free=2 * GIB).name == "layer_offload"
    with caplog.at_level(logging.WARNING):
        assert plan_memory(2 * GIB, sizes).name == "layer_offload"
    assert "may run out of memory" in caplog.text


@pytest.mark.parametrize("vram", ["much", "0", "-8", "7.5"])
def test_invalid_vram_raises(vram: str) -> None:
    with pytest.raises(InputError, match="8, 12, 16, 24, 48 or 80"):
        plan_memory(vram, {})


def test_place_model_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for options in ((), ("8", "cpu")):
        assert memory.place_model(bundle(small(), small_codec()), *options).name == "full"
