"""Model memory under ComfyUI's control; besides host.py the only module that touches ComfyUI.

Each component (transformer, encoders, video codec) is wrapped in a `ModelPatcher` and loaded completely when it is
used; ComfyUI unloads other models to make room. ComfyUI's partial loading is not used: layers that are not ComfyUI
operations would stay on the CPU without being cast, and `ModelPatcherDynamic` does not support full loads.

If the transformer does not fit on the GPU, `memory.offload` streams its blocks. ComfyUI then manages its other modules
and reserves memory for two blocks and one denoising step.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import comfy.model_management as management
import torch
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import Tensor, nn

from bya_core.errors import InputError
from bya_core.memory import planner, sizes
from bya_core.memory.offload import BlockOffload, ComponentOffload, DeviceSlot, Offloadable, onload_before

if TYPE_CHECKING:
    from bya_core.scene.types import Scene
    from bya_core.weights.bundle import ModelBundle

log = logging.getLogger(__name__)

OFFLOADED = ("transformer_blocks", "perceiver_cross_attention", "audio_model", "local_facial_extractor")
"""Modules of the transformer that are not always on the device when its blocks are streamed."""


class PatchedModule(nn.Module):
    """The module given to a `ModelPatcher`, which assigns `device`; diffusers classes do not allow that."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class ManagedComponent:
    """A component that ComfyUI loads to its device when one of its methods is called.

    Args:
        name: Name of the component in the bundle.
        component: Transformer, encoder or codec.
        module: Module with its weights.
        slot: Slot of components that ComfyUI does not manage; acquired before loading.
        offloadable: Acquires the slot; `None` only offloads the active one.
        device: Device it computes on; `None` is ComfyUI's.
    """

    def __init__(
        self,
        name: str,
        component: Any,
        module: nn.Module,
        slot: DeviceSlot,
        offloadable: Offloadable | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.component, self.name, self.slot, self.offloadable = component, name, slot, offloadable
        self.activation_bytes = 0  # memory reserved besides the weights
        patched = type(type(module).__name__, (PatchedModule,), {})(module)  # ComfyUI logs the class name
        load_device = management.get_torch_device() if device is None else device
        # with --highvram the offload device is the GPU, on which a component that computes on the CPU has no business
        offload_device = load_device if load_device.type == "cpu" else management.unet_offload_device()
        self.patcher = ModelPatcher(patched, load_device=load_device, offload_device=offload_device)

    def __getattr__(self, name: str) -> Any:
        if name == "component":  # not set yet while being copied
            raise AttributeError(name)
        value = getattr(self.component, name)
        if callable(value):
            self.load()
        return value

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.load()
        return self.component(*args, **kwargs)

    def load(self, *_: Any) -> None:
        """Load all weights to the device, with memory reserved for activations."""
        self.slot.acquire(self.offloadable)
        management.load_models_gpu([self.patcher], memory_required=self.activation_bytes, force_full_load=True)
        if self.patcher.loaded_size() < self.patcher.model_size():  # --novram loads nothing in spite of force_full_load
            self.patcher.load(self.patcher.load_device, full_load=True)

    def unload(self) -> None:
        """Unload from the device and from ComfyUI's list of loaded models."""
        for index, loaded in reversed(list(enumerate(management.current_loaded_models))):
            if loaded.model is self.patcher:
                management.current_loaded_models.pop(index).model_unload()


class LazyComponentOffload(ComponentOffload):
    """A component that reads its weights when it is used: ComfyUI only makes room for it."""

    def onload(self) -> None:
        if self.device.type != "cpu":
            required = sizes.weight_bytes(self.component) + management.minimum_inference_memory()
            management.free_memory(required, self.device)
        super().onload()


@dataclass(frozen=True)
class HostModel:
    """BYA_MODEL: a model whose components ComfyUI manages.

    Args:
        bundle: Bundle with managed components.
        managed: All managed components with weights.
        slot: Slot of the components that ComfyUI does not manage.
        plan: Memory plan.
        low_memory: Whether components are unloaded after each node.
    """

    bundle: ModelBundle
    managed: tuple[ManagedComponent, ...]
    slot: DeviceSlot
    plan: planner.MemoryPlan = planner.MEMORY_PLANS[0]
    low_memory: bool = False

    def reserve_memory(self, scene: Scene) -> None:
        """Set the memory to reserve for denoising and decoding a scene."""
        from bya_core.sampling.guidance import guidance_branches

        bundle, plan, sampling = self.bundle, self.plan, scene.sampling
        config, size = bundle.transformer.config, bundle.dtype.itemsize
        branches = guidance_branches(sampling.guidance_scale, sampling.audio_guidance_scale)
        passes = 1 if plan.sequential_guidance else len(branches)
        grid = bundle.grid(scene.num_frames, scene.height, scene.width)
        width = config.num_attention_heads * config.attention_head_dim
        for managed in self.managed:
            if managed.name == "transformer":
                stream = managed.offloadable
                blocks = 2 * max(group.bytes for group in stream.groups) if isinstance(stream, BlockOffload) else 0
                managed.activation_bytes = sizes.denoising_memory(grid, width, passes, size) + blocks
            elif managed.name == "codec":
                share = sizes.TILING_SHARE if plan.vae_tiling else 1
                managed.activation_bytes = round(share * sizes.decoding_memory(grid, size))

    def release_memory(self) -> None:
        """Offload what ComfyUI does not manage; with `low_memory`, unload all components."""
        self.slot.acquire(None)
        if self.low_memory:
            for managed in self.managed:
                managed.unload()
            management.soft_empty_cache()


def manage_model(bundle: ModelBundle, low_memory: bool = False, vram: str = "auto") -> HostModel:
    """Let ComfyUI manage the memory of a model that was loaded to the CPU.

    Args:
        bundle: Model.
        low_memory: Whether components are unloaded after each node.
        vram: "auto", or the VRAM budget in GB, "8" to "80".

    Raises:
        InputError: Components made by ComfyUI do not fit the transformer.
    """
    bundle = _fit_host_components(bundle)
    plan = _select_plan(bundle, vram)
    planner.apply_compute_options(bundle, plan)
    slot, replaced, managed = DeviceSlot(), dict[str, Any](), list[ManagedComponent]()
    for name in ("text", "face", "speech", "codec"):
        component = getattr(bundle, name)
        device = torch.device("cpu") if name == "text" and plan.text_encoder_on_cpu else None
        module = _module_of(component)
        if module is not None:
            replaced[name] = ManagedComponent(name, component, module, slot, device=device)
            managed.append(replaced[name])
        elif hasattr(component, "to"):
            offload = LazyComponentOffload(component, device or management.get_torch_device())
            onload_before(slot, offload, component, ("encode",))
            if name == "face" and bundle.character_finder is not None:  # uses the networks of the face encoder
                onload_before(slot, offload, bundle.character_finder, ("find",))
    transformer = _manage_transformer(bundle.transformer, plan, slot)
    log.info("Bind-Your-Avatar: memory plan %s", plan.name)
    bundle = replace(bundle, **replaced, transformer=transformer[0])
    return HostModel(bundle, (*transformer, *managed), slot, plan, low_memory)


def _select_plan(bundle: ModelBundle, vram: str) -> planner.MemoryPlan:
    """The memory plan for a budget, or for the GPU after ComfyUI has unloaded all other models."""
    device = management.get_torch_device()
    if vram != "auto":
        return planner.plan_memory(vram, sizes.component_sizes(bundle), planner.free_host_memory())
    if device.type == "cpu":
        return planner.MEMORY_PLANS[0]
    total = management.get_total_memory(device) - management.extra_reserved_memory() - planner.CONTEXT_BYTES
    if management.vram_state in (management.VRAMState.LOW_VRAM, management.VRAMState.NO_VRAM):
        total = min(total, 8 * planner.GIB - planner.CONTEXT_BYTES)
    return planner.plan_memory(int(total), sizes.component_sizes(bundle), planner.free_host_memory())


def _manage_transformer(transformer: Any, plan: planner.MemoryPlan, slot: DeviceSlot) -> list[ManagedComponent]:
    """The managed transformer, followed by those of its modules that are managed on their own."""
    if plan.blocks == "resident":
        return [ManagedComponent("transformer", transformer, transformer, slot)]
    device, groups = management.get_torch_device(), sizes.block_groups(transformer)
    stream = BlockOffload(groups, device) if plan.blocks == "streamed" else None
    if stream is None:
        planner.offload_layers(list(chain(*groups)), device)
    remaining = nn.ModuleList(child for name, child in transformer.named_children() if name not in OFFLOADED)
    managed = [ManagedComponent("transformer", transformer, remaining, slot, stream)]
    projection = None if transformer.audio_model is None else transformer.audio_model.audio_proj_model
    for name, module in (("extractor", transformer.local_facial_extractor), ("projection", projection)):
        if module is not None:
            managed.append(ManagedComponent(name, module, module, slot))
            module.register_forward_pre_hook(managed[-1].load)
    return managed


def _module_of(component: Any) -> nn.Module | None:
    """The module with a component's weights; `None` if it has none or moves them itself."""
    if isinstance(component, nn.Module):
        return component
    if hasattr(component, "release"):
        return None
    modules = [value for value in vars(component).values() if isinstance(value, nn.Module)]
    return nn.ModuleList(modules) if len(modules) > 1 else next(iter(modules), None)


def host_components(vae: Any = None, clip: Any = None) -> dict[str, Any]:
    """Bundle components from models that were loaded by ComfyUI.

    Raises:
        InputError: The VAE is not a CogVideoX VAE.
    """
    found = {"codec": None if vae is None else HostCodec(vae), "text": None if clip is None else HostText(clip)}
    return {name: component for name, component in found.items() if component is not None}


class HostCodec:
    """ComfyUI's CogVideoX VAE as a `VideoCodec`. ComfyUI moves its weights and tiles it.

    Args:
        vae: VAE from Load VAE.

    Raises:
        InputError: It is not a CogVideoX VAE.
    """

    space_factor, time_factor, latent_channels = 8, 4, 16
    scale = 0.7  # `scaling_factor` of CogVideoX-5B

    def __init__(self, vae: Any) -> None:
        found = getattr(vae, "latent_channels", None), getattr(vae, "latent_dim", None)
        if found != (self.latent_channels, 3) or vae.spacial_compression_encode() != self.space_factor:
            problem = f"a VAE with {found[0]} latent channels on {found[1]} axes"
            raise InputError(problem, "the CogVideoX VAE: 16 channels on 3 axes", "load cogvideox_vae with Load VAE")
        self.vae = vae

    def encode(self, video: Tensor) -> Tensor:
        """[B, 3, F, height, width] in [-1, 1] -> scaled latents [B, T, C, H, W]."""
        clips = rearrange(video.float() / 2 + 0.5, "b c f h w -> b f h w c")
        latents = torch.cat([self.vae.encode(clip) for clip in clips])  # a batch would be cropped
        return rearrange(latents * self.scale, "b c t h w -> b t c h w").to(video.device)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [B, T, C, H, W] -> [B, 3, F, height, width] in [-1, 1]."""
        frames = (latents.shape[1] - 1) * self.time_factor + 1
        pixels = self.vae.decode(rearrange(latents / self.scale, "b t c h w -> b c t h w"))
        return rearrange(pixels, "b f h w c -> b c f h w")[:, :, -frames:].to(latents.device) * 2 - 1


class HostText:
    """ComfyUI's text encoder (CLIP loader of type "cogvideox") as a `TextEncoder`.

    Args:
        clip: CLIP from Load CLIP.
        length: Number of tokens per prompt.
        width: Width of a token.
    """

    def __init__(self, clip: Any, length: int = 226, width: int = 4096) -> None:
        self.clip, self._length, self._width = clip, length, width

    def encode(self, prompts: list[str]) -> Tensor:
        """B prompts -> [B, L, width].

        Raises:
            InputError: The text encoder has another output shape.
        """
        from bya_core.encoders.text_t5 import PrecomputedTextEncoder

        known = {prompt: self.clip.encode_from_tokens(self.clip.tokenize(prompt)) for prompt in prompts}
        return PrecomputedTextEncoder(known, max_tokens=self._length, dim=self._width).encode(prompts)

    def truncation(self, prompt: str) -> str | None:
        """How a prompt is cut; None if it is read completely."""
        from bya_core.encoders.text_t5 import token_truncation

        batches = next(iter(self.clip.tokenize(prompt).values()))
        return token_truncation(sum(map(len, batches)), self._length)


def _fit_host_components(bundle: ModelBundle) -> ModelBundle:
    """Configure components made by ComfyUI for the transformer. Raises InputError if they do not fit."""
    config = bundle.transformer.config
    if isinstance(bundle.codec, HostCodec):
        pixels = bundle.native.height // config.sample_height
        if pixels != bundle.codec.space_factor:
            raise InputError(
                f"ComfyUI's VAE for the model {bundle.name}, which uses {pixels} pixels per latent cell",
                f"a model with {bundle.codec.space_factor} pixels per latent cell",
                "disconnect the VAE",
            )
    if isinstance(bundle.text, HostText):
        return replace(bundle, text=HostText(bundle.text.clip, config.max_text_seq_length, config.text_embed_dim))
    return bundle
