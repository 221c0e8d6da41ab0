"""The memory ladder: what is chosen, that every plan computes the same, and that no weight is used while it is away."""

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
from bya_core.weights.bundle import ModelBundle, NativeSize
from tests.fakes import FakeFace, FakeSpeech, FakeText

CPU = torch.device("cpu")
OFFICIAL_VAE = {
    "block_out_channels": (128, 256, 256, 512),
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    "latent_channels": 16,
    "layers_per_block": 3,
    "sample_height": 480,
    "sample_width": 720,
}


def small(flavour: str = "official") -> BindYourAvatarTransformer3DModel:
    """The official architecture, small; every part has weights that matter."""
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


def call(model: BindYourAvatarTransformer3DModel, **more: Any) -> Tensor:
    """One step, faces and speech encoded by the model itself, as one tensor: prediction and masks that acted."""
    draw = torch.Generator().manual_seed(1)
    faces = torch.randn(1, 2, 6, generator=draw), torch.randn(1, 2, 2, 7, 10, generator=draw)
    voices = torch.randn(1, 2, 9 + 4, 3, 12, generator=draw)
    made = model(
        hidden_states=torch.randn(2, 3, 9, 8, 12, generator=draw),
        encoder_hidden_states=torch.randn(2, 5, 8, generator=draw),
        timestep=torch.tensor([500, 500]),
        face_tokens=model.encode_faces(*faces).expand(2, -1, -1, -1),
        audio_tokens=model.encode_speech(voices).expand(2, -1, -1, -1, -1),
        **more,
    )
    return torch.cat([made.sample.flatten(), made.used_masks.flatten()])


def same(one: Tensor, other: Tensor) -> bool:
    """Equal to rounding: with a plan and without, two threads once differed in the last digits; why is not known."""
    return torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def placed(plan: MemoryPlan, flavour: str = "official") -> BindYourAvatarTransformer3DModel:
    model = small(flavour)
    if plan.fp8_storage:
        memory.store_in_fp8(model)
    slot = DeviceSlot()
    memory.place_transformer(model, plan, CPU, slot)
    model.slot = slot
    return model


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Weights that are away are not a number, so whatever is computed with one is not either."""
    group = "diffusers.hooks.group_offloading.ModuleGroup"
    away: dict[int, Tensor] = {}

    def tensors(self: Any) -> list[Tensor]:
        held = [t for module in self.modules for t in (*module.parameters(), *module.buffers())]
        return [*held, *self.parameters, *self.buffers]

    def leave(self: Any) -> None:
        for tensor in tensors(self):
            away.setdefault(id(tensor), tensor.data)
            tensor.data = torch.full_like(tensor, torch.nan)

    def come(self: Any) -> None:
        for tensor in tensors(self):
            tensor.data = away.pop(id(tensor))

    monkeypatch.setattr(f"{group}.offload_", leave)
    monkeypatch.setattr(f"{group}.onload_", come)
    monkeypatch.setattr(
        HostWeights, "offload", lambda self: self._assign([torch.full_like(t, torch.nan) for t in self._host])
    )
    init = HostWeights.__init__

    def start(self: HostWeights, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.offload()

    monkeypatch.setattr(HostWeights, "__init__", start)
    yield


@pytest.mark.parametrize("flavour", ["official", "paper"])
@pytest.mark.parametrize("blocks", ["resident", "streamed", "sequential"])
@torch.no_grad()
def test_weights_are_there_when_they_are_used(blocks: Any, flavour: str, poisoned: None) -> None:
    """Also those of layers that a block calls through a closure, or by other methods than forward."""
    model = placed(MemoryPlan("", blocks=blocks), flavour)
    adapter = model.perceiver_cross_attention[0].to_q.weight
    assert adapter.isnan().all() and model.audio_model.layers[1].attn.to_k.weight.isnan().all()
    assert not model.patch_embed.proj.weight.isnan().any()
    expected = call(small(flavour))
    for _ in range(2):
        assert torch.equal(call(model), expected)
    model.slot.acquire(None)
    assert adapter.isnan().all()
    assert model.device == CPU and model.dtype == torch.float32


@pytest.mark.parametrize(("made_in", "used_in"), [(False, True), (True, True)])
@pytest.mark.parametrize(
    "plan", [MEMORY_PLANS[1], MEMORY_PLANS[2], MEMORY_PLANS[4], MEMORY_PLANS[5]], ids=lambda plan: plan.name
)
def test_inference_mode(plan: MemoryPlan, made_in: bool, used_in: bool) -> None:
    """ComfyUI loads and runs in it; others may load outside and run inside."""
    with torch.inference_mode(made_in):
        model = placed(plan)
    with torch.inference_mode(used_in), torch.no_grad():
        made = call(model)
        assert torch.equal(call(model), made)
        if not plan.fp8_storage:
            assert same(made, call(small()))


@pytest.mark.parametrize("blocks", ["streamed", "sequential"])
@torch.no_grad()
def test_the_order_of_calls_may_change(blocks: Any, poisoned: None) -> None:
    """Forced masks leave the router out, no speech leaves layers out: between calls that used them."""
    model, reference = placed(MemoryPlan("", blocks=blocks)), small()
    forced = {"mask_override": torch.rand(2, 2, 3, 4, 6, generator=torch.Generator().manual_seed(2))}
    for more in ({}, forced, {}):
        assert torch.equal(call(model, **more), call(reference, **more))
    alone = dict(hidden_states=torch.ones(1, 3, 9, 8, 12), encoder_hidden_states=torch.ones(1, 5, 8))
    alone["timestep"] = torch.tensor([1])
    assert torch.equal(model(**alone).sample, reference(**alone).sample)
    assert torch.equal(call(model), call(reference))


@torch.no_grad()
def test_two_groups_are_on_the_device_and_after_an_error_they_leave() -> None:
    layers = [nn.Linear(4, 4) for _ in range(5)]
    stream, most = BlockOffload([[layer] for layer in layers], CPU), 0
    x = torch.ones(1, 4)
    for layer in (*layers, *layers[:2], layers[4], layers[0]):  # 2 and 3 are skipped, then it starts again
        x = layer(x)
        most = max(most, len(stream.on_device))
    assert most == 2
    with pytest.raises(RuntimeError):
        layers[1](torch.ones(1, 3))
    home = stream.groups[1]
    assert [t.data_ptr() for t in layers[1].parameters()] == [t.data_ptr() for t in home._host]
    stream.offload()
    assert stream.on_device == ()
    assert layers[2](torch.ones(1, 4)).shape == (1, 4)


@torch.no_grad()
def test_weights_lie_close_together(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """In few large pieces of page-locked memory; and in ordinary memory where the machine refuses to lock it."""
    monkeypatch.setattr(PinnedPool, "buffer_bytes", 2**15)
    model, slabs = small(), PinnedPool(pinned=False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = HostWeights([model], slabs)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert weights.bytes < slabs.allocated < 1.3 * weights.bytes
    large = slabs.copy(torch.arange(2**15).to(torch.float16))
    assert torch.equal(large, torch.arange(2**15).to(torch.float16))

    def refuse(size: int, **wish: Any) -> Tensor:
        if wish.get("pin_memory"):
            raise RuntimeError("cannot lock")
        return torch.zeros(size, dtype=torch.uint8)

    monkeypatch.setattr(torch, "empty", refuse)
    with caplog.at_level(logging.WARNING):
        refused = PinnedPool()
        assert torch.equal(refused.copy(torch.ones(3)), torch.ones(3)) and not refused.pinned
    assert "block offload will be slower" in caplog.text


@torch.no_grad()
def test_8_bits_change_little_and_only_large_weights() -> None:
    model, expected = placed(MEMORY_PLANS[4]), call(small())
    stored = {t.dtype for t in model.transformer_blocks[0].ff.parameters()}
    assert stored == {torch.float8_e4m3fn}
    assert model.transformer_blocks[0].norm1.linear.weight.dtype == model.dtype == torch.float32
    assert model.local_facial_extractor.id_embedding_mapping[0].weight.dtype == torch.float32
    made = call(model)
    error = (made - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 0 < error < 0.05
    assert torch.equal(call(model), made)  # widening and narrowing again loses nothing more


class Part(nn.Module):
    """An encoder that tells where it is."""

    def __init__(self, log: list[str], name: str) -> None:
        super().__init__()
        self.log, self.name = log, name

    def to(self, device: Any) -> Part:  # type: ignore[override]
        self.log.append(f"{self.name} to {torch.device(device).type}")
        return self


class TextPart(Part):
    def encode(self, prompts: list[str]) -> Tensor:
        return torch.zeros(len(prompts), 5, 8)

    def release(self) -> None:
        self.log.append("text forgotten")


class SpeechPart(Part):
    sample_rate = 16000

    def encode(self, waveform: Tensor, num_frames: int) -> Tensor:
        return torch.zeros(num_frames + 4, 3, 12)


def bundle(transformer: Any, codec: Any, **parts: Any) -> ModelBundle:
    shared: dict[str, Any] = {"text": FakeText(), "face": FakeFace(), "speech": FakeSpeech()} | parts
    return ModelBundle("small", transformer, codec=codec, scheduler_config={}, native=NativeSize(64, 96, 9), **shared)


def small_codec() -> CogVideoXCodec:
    torch.manual_seed(0)
    sizes = {"block_out_channels": (4, 4, 4, 8), "norm_num_groups": 2, "latent_channels": 3, "layers_per_block": 1}
    return CogVideoXCodec(AutoencoderKLCogVideoX(**OFFICIAL_VAE | sizes | {"sample_height": 64, "sample_width": 96}))


@torch.no_grad()
def test_one_part_at_a_time() -> None:
    told: list[str] = []
    model = bundle(small(), small_codec(), text=TextPart(told, "text"), speech=SpeechPart(told, "speech"))
    apply_memory_plan(model, MemoryPlan("", blocks="streamed", text_encoder_on_cpu=True), CPU)
    model.text.encode(["a", "b"])
    model.text.encode(["c"])
    model.speech.encode(torch.zeros(10), 9)
    call(model.transformer)
    model.speech.encode(torch.zeros(10), 9)
    assert told == ["text to cpu", "text forgotten", "speech to cpu", "speech to cpu", "speech to cpu"]
    # comes, leaves for the extractor, comes again
    resident = bundle(small(), small_codec(), speech=SpeechPart(told, "resident speech"))
    apply_memory_plan(resident, MEMORY_PLANS[0], "cpu")
    assert told[-1] == "resident speech to cpu"


@torch.no_grad()
def test_tiles_leave_what_is_encoded_as_it_is_and_meet_closely() -> None:
    whole, tiled = small_codec(), small_codec()
    memory.enable_tiled_decoding(tiled)
    assert tiled.vae.use_tiling and tiled.vae.use_slicing
    # halves of 64 x 96 pixels would not begin at latent cells of 8 pixels: other tiles are taken
    assert (tiled.vae.tile_sample_min_height, tiled.vae.tile_sample_min_width) == (32, 64)
    video = torch.rand(1, 3, 9, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = whole.encode(video)
    assert torch.equal(tiled.encode(video), latents)
    expected, made = whole.decode(latents), tiled.decode(latents)
    assert made.shape == expected.shape and not torch.equal(made, expected)
    # with random weights; with trained ones it is less, see docs/how-to/memory.md
    assert (made - expected).square().mean().sqrt() < 0.3 * expected.std()
    memory.enable_tiled_decoding(SimpleNamespace())  # a codec of another kind


def full_size(folder: Path) -> dict[str, int]:
    """Sizes of the released model in bfloat16; T5-XXL is a file of its size without content, to be read later."""
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(9_524_000_000)
    face, speech = (SimpleNamespace(network=nn.Linear(size, 1000, device="meta")) for size in (225_000, 47_000))
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            transformer = BindYourAvatarTransformer3DModel()
            codec = SimpleNamespace(vae=AutoencoderKLCogVideoX(**OFFICIAL_VAE), space_factor=8, time_factor=4)
    finally:
        torch.set_default_dtype(torch.float32)
    parts = {"text": SimpleNamespace(folder=folder), "face": face, "speech": speech}
    return component_sizes(replace(bundle(transformer, codec, **parts), native=NativeSize(480, 720, 49)))


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    return full_size(tmp_path_factory.mktemp("t5"))


def test_sizes_of_the_released_model(sizes: dict[str, int]) -> None:
    """Against the counts of the released files: 5.571 billion parameters and what was added to them."""
    parameters = {name: size / 2e9 for name, size in sizes.items()}
    # blocks: the base less patch, time and output layers; 21 face layers, 42 speech layers
    assert parameters["blocks"] == pytest.approx(5.57 + 0.4406 + 0.991, rel=0.01)
    assert parameters["projection"] == pytest.approx(1.245, rel=0.01)
    assert parameters["extractor"] == pytest.approx(0.1514, rel=0.01)
    assert parameters["codec"] == pytest.approx(0.2156, rel=0.01)
    assert (sizes["text"], sizes["face"]) == (9_524_000_000, 900_004_000)
    assert sizes["block"] < 0.03 * sizes["blocks"]
    assert 0.8 < sizes["fp8_blocks"] / sizes["blocks"] < 0.95
    assert sizes["kv_cache"] == pytest.approx((22 + 176 + 859) * 1e6, rel=0.01)  # as `KVCache` tells


@pytest.mark.parametrize("flavour", ["official", "paper"])
def test_what_a_clip_keeps_is_counted(flavour: str) -> None:
    """Against what a step really keeps, both versions of the video and two voices."""
    model, kv_cache = small(flavour), KVCache()
    parts = component_sizes(replace(bundle(model, small_codec()), native=NativeSize(64, 96, 9)))
    with torch.no_grad():
        call(model, kv_cache=kv_cache)
    assert parts["kv_cache"] == kv_cache.bytes > 0
    four = component_sizes(replace(bundle(model, small_codec()), native=NativeSize(64, 96, 9)), characters=4)
    assert four["kv_cache"] > 1.5 * parts["kv_cache"]
    without = parts | {"kv_cache": 0}
    more = [
        required_memory(plan, parts)["Denoising"] - required_memory(plan, without)["Denoising"] for plan in MEMORY_PLANS
    ]
    assert more == [kv_cache.bytes, 0, 0, 0, 0, 0]  # nothing is kept below the first plan


@pytest.mark.parametrize(
    ("card", "name", "on_cpu"),
    [
        ("80", "full", False),
        ("48", "full", False),
        ("24", "component_offload", False),
        ("16", "block_offload_tiling", False),
        ("12", "block_offload_tiling", False),
        ("8", "block_offload_tiling", True),
    ],
)
def test_what_is_chosen_for_a_card(card: str, name: str, on_cpu: bool, sizes: dict[str, int]) -> None:
    chosen = plan_memory(card, sizes)
    assert (chosen.name, chosen.text_encoder_on_cpu) == (name, on_cpu)
    assert max(required_memory(chosen, sizes).values()) < int(card) * GIB


def test_each_rung_needs_less(sizes: dict[str, int]) -> None:
    peaks = [
        max(required_memory(replace(plan, text_encoder_on_cpu=plan.offload_components), sizes).values())
        for plan in MEMORY_PLANS
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert plan_memory(10**12, sizes) == MEMORY_PLANS[0] and plan_memory(10**12, {}) == MEMORY_PLANS[0]


def test_little_memory_on_the_host(sizes: dict[str, int], caplog: pytest.LogCaptureFixture) -> None:
    """14 GB cannot be page-locked on a machine with 10 GB: weights of 8 bits can."""
    assert plan_memory("12", sizes, host_free=10 * GIB).name == "block_offload_tiling_fp8"
    assert plan_memory("12", sizes, host_free=2 * GIB).name == "layer_offload"
    with caplog.at_level(logging.WARNING):
        assert plan_memory(2 * GIB, sizes).name == "layer_offload"
    assert "may run out of memory" in caplog.text


@pytest.mark.parametrize("card", ["much", "0", "-8", "7.5"])
def test_a_card_of_no_size(card: str) -> None:
    with pytest.raises(InputError, match="8, 12, 16, 24, 48 or 80"):
        plan_memory(card, {})


def test_without_a_gpu_all_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = bundle(small(), small_codec())
    assert memory.place_model(model).name == "full"
    assert memory.place_model(bundle(small(), small_codec()), "8", "cpu").name == "full"  # so small that it fits
