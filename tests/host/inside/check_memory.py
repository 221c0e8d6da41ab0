"""Memory management in ComfyUI, and ComfyUI's own VAE and text encoder as components."""

from __future__ import annotations

import gc
import sys
import weakref
from types import ModuleType
from typing import Any

import comfy.model_management as management
import comfy.sd
import comfy.text_encoders.cogvideo as cogvideo
import pytest
import torch
from conftest import FIXED, Run, short

F, H, W = 9, 64, 96


@pytest.fixture(scope="session")
def host_model(pack: ModuleType) -> ModuleType:
    return sys.modules[f"{pack.__name__}.nodes.host_model"]


@pytest.fixture(scope="module")
def expected(run: Run, routing: Any) -> torch.Tensor:
    return run("Sampler", routing=routing)[0]


def generate(run: Run, cast: Any, demo: dict[str, Any], model: Any) -> torch.Tensor:
    """The frames of the scene in conftest, with another model."""
    options = {"prompt": demo["prompt"], "first_frame": demo["first_frame"], "seed": 2_000_001}
    scene, _ = run("Scene", model=model, cast=cast, **options, **short(9, steps=4))
    routing, _, _ = run("EmbeddingRouter", scene=scene, **FIXED, probe_steps=2)
    return run("Sampler", routing=routing)[0]


@pytest.mark.parametrize("blocks", ["streamed", "sequential"])
def test_block_offload_does_not_change_the_result(
    blocks: Any, run: Run, cast: Any, demo: dict[str, Any], expected: Any, host_model: Any, monkeypatch: Any
) -> None:
    plan = host_model.planner.MemoryPlan("small", blocks=blocks, text_encoder_on_cpu=True)
    monkeypatch.setattr(host_model, "_select_plan", lambda *_: plan)
    (model,) = run("Loader", vram_gb="8")
    names = [managed.name for managed in model.managed]
    assert names == ["transformer", "extractor", "projection", "face", "speech", "codec"]
    assert torch.equal(generate(run, cast, demo, model), expected)
    assert model.slot.active is None
    loaded = {id(entry.model) for entry in management.current_loaded_models}
    assert {id(managed.patcher) for managed in model.managed} <= loaded
    transformer = model.managed[0]
    stream = transformer.offloadable
    if blocks == "streamed":
        assert stream.on_device == ()
        assert transformer.activation_bytes > 2 * max(group.bytes for group in stream.groups)
    management.unload_all_models()
    assert torch.equal(generate(run, cast, demo, model), expected)
    weights = weakref.ref(model.bundle.transformer.component)
    del model, transformer, stream
    gc.collect()
    assert weights() is None
    management.cleanup_models()


def test_plan_selection(run: Run, host_model: Any, monkeypatch: Any) -> None:
    (model,) = run("Loader", vram_gb="8")
    full = host_model.planner.MEMORY_PLANS[0]
    assert model.plan == full
    large = {"blocks": 14 * 10**9, "block": 4 * 10**8, "text": 10**10, "denoising": 3 * 10**9, "decoding": 16 * 10**9}
    monkeypatch.setattr(host_model.sizes, "component_sizes", lambda bundle: large)
    monkeypatch.setattr(host_model.planner, "free_host_memory", lambda: 64 * 10**9)
    assert [host_model._select_plan(None, vram).name for vram in ("80", "24", "12")] == [
        "full", "component_offload", "block_offload_tiling",
    ]  # fmt: skip
    assert host_model._select_plan(None, "auto") == full  # without a GPU
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(management, "get_torch_device", lambda: gpu)
    monkeypatch.setattr(management, "get_total_memory", lambda device: 24 * 2**30)
    assert host_model._select_plan(None, "auto").name == "component_offload"
    monkeypatch.setattr(management, "vram_state", management.VRAMState.LOW_VRAM)
    assert host_model._select_plan(None, "auto").blocks == "streamed"


@pytest.mark.parametrize("state", ["NO_VRAM", "LOW_VRAM", "NORMAL_VRAM", "HIGH_VRAM"])
def test_components_are_loaded_completely(
    state: str, run: Run, cast: Any, demo: dict[str, Any], expected: Any, monkeypatch: Any
) -> None:
    """With every memory option of ComfyUI, also after other models have taken a part of the memory."""
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)  # as on a GPU
    monkeypatch.setattr(management, "vram_state", management.VRAMState[state])
    (model,) = run("Loader")
    for managed in model.managed:
        patcher = managed.patcher
        managed.load()
        assert patcher.loaded_size() == patcher.model_size() > 0, managed.name
        assert patcher.partially_unload(patcher.offload_device, patcher.model_size() // 2) > 0
        assert patcher.loaded_size() < patcher.model_size()
        managed.load()
        assert patcher.loaded_size() == patcher.model_size(), managed.name
    assert torch.equal(generate(run, cast, demo, model), expected)
    for managed in model.managed:
        managed.unload()
        assert managed.patcher.loaded_size() == 0
        assert all(entry.model is not managed.patcher for entry in management.current_loaded_models)


def test_components_on_the_cpu_stay_there(host_model: Any, monkeypatch: Any) -> None:
    """With --highvram ComfyUI keeps unloaded models on the GPU."""
    monkeypatch.setattr(management, "unet_offload_device", lambda: torch.device("cuda", 0))
    module, cpu = torch.nn.Linear(2, 2), torch.device("cpu")
    managed = host_model.ManagedComponent("text", module, module, host_model.DeviceSlot(), device=cpu)
    assert managed.patcher.offload_device == cpu


def test_component_with_lazily_loaded_weights(host_model: Any, run: Run, cast: Any, demo: dict[str, Any]) -> None:
    """Such as T5 and wav2vec2: moved to ComfyUI's device for encoding, and released after the node."""
    calls: list[str] = []

    class LazyText:
        def __init__(self, text: Any) -> None:
            self.text = text

        def to(self, device: Any) -> None:
            calls.append(f"to {device}")

        def release(self) -> None:
            calls.append("release")

        def encode(self, prompts: list[str]) -> torch.Tensor:
            calls.append("encode")
            return self.text.encode(prompts)

    from dataclasses import replace

    from bya_core.weights.loader import load_bundle

    bundle = load_bundle("toy")
    model = host_model.manage_model(replace(bundle, text=LazyText(bundle.text)))
    generate(run, cast, demo, model)
    assert calls[:4] == ["to cpu", "encode", "encode", "release"] and calls[-1] == "release"


@pytest.mark.parametrize("frames", [1, 9])
def test_host_vae_matches_diffusers(frames: int, host_model: Any, native: tuple[Any, Any]) -> None:
    vae, ours = native
    theirs = host_model.HostCodec(vae)
    video = torch.rand(1, 3, frames, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        expected, latents = ours.encode(video[:, :, :1]), theirs.encode(video[:, :, :1])
        assert latents.shape == expected.shape == (1, 1, 16, 4, 6)
        assert (latents - expected).abs().max() < 1e-3 * expected.abs().max()
        several = torch.randn(1, (frames - 1) // 4 + 1, 16, 4, 6, generator=torch.Generator().manual_seed(1))
        expected, pixels = ours.decode(several), theirs.decode(several)
    assert pixels.shape == expected.shape == (1, 3, frames, 32, 48)
    difference = (pixels - expected.clamp(-1, 1)).abs()
    # ComfyUI splits longer videos differently, which random weights amplify
    assert difference.mean() < (1e-4 if frames == 1 else 0.1) * expected.std()


@pytest.fixture(scope="module")
def native(pack: ModuleType) -> tuple[Any, Any]:
    """The published VAE with random weights, loaded by ComfyUI and by diffusers."""
    from diffusers import AutoencoderKLCogVideoX

    from bya_core.encoders.vae import CogVideoXCodec
    from bya_core.pipelines.full_size import VAE

    torch.manual_seed(0)
    vae = AutoencoderKLCogVideoX(**VAE).eval()
    return comfy.sd.VAE(sd={key: value.clone() for key, value in vae.state_dict().items()}), CogVideoXCodec(vae)


def small_clip(width: int) -> Any:
    """ComfyUI's CogVideoX text encoder with a T5 of one layer, random weights."""

    class Target:
        params: dict[str, Any] = {}
        clip, tokenizer = cogvideo.CogVideoXT5XXL, cogvideo.CogVideoXTokenizer

    small = {"d_ff": 16, "d_kv": 4, "d_model": width, "num_heads": 2, "num_layers": 1}
    clip = comfy.sd.CLIP(Target(), model_options={"t5xxl_model_config": small})
    torch.manual_seed(0)
    for parameter in clip.cond_stage_model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return clip


def test_host_text_encoder(run: Run, cast: Any, demo: dict[str, Any], expected: Any) -> None:
    (model,) = run("Loader", clip=small_clip(64))
    tokens = model.bundle.text.encode(["two puppets", ""])
    assert tokens.shape == (2, 48, 64) and not torch.equal(tokens[0], tokens[1])
    frames = generate(run, cast, demo, model)
    assert frames.shape == expected.shape and not torch.equal(frames, expected)


def test_unsuitable_host_components_raise(run: Run, cast: Any, native: tuple[Any, Any], host_model: Any) -> None:
    with pytest.raises(ValueError, match="4 pixels per latent cell"):
        run("Loader", vae=native[0])
    (model,) = run("Loader", clip=small_clip(32))
    with pytest.raises(ValueError, match='type "cogvideox"'):
        model.bundle.text.encode(["two puppets"])
    other = type("Other", (), {"latent_channels": 4, "latent_dim": 2})()
    with pytest.raises(ValueError, match="4 latent channels on 2 axes"):
        host_model.HostCodec(other)


def test_download_only_if_enabled(run: Run, monkeypatch: Any) -> None:
    from bya_core.weights import registry

    downloads: list[str] = []

    def fetch(name: str, *, callback: Any) -> None:
        downloads.append(name)
        from bya_core.progress import Progress

        callback(Progress("Downloading", 5 * 10**6, 10**7))

    monkeypatch.setattr(registry, "download_model", fetch)
    for download in (False, True):
        with pytest.raises(ValueError, match="download official"):
            run("Loader", model="official", download=download)
        run("Loader", model="toy", download=download)
    assert downloads == ["official"]
