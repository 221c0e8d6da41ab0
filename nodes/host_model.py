"""How the parts of a model live in ComfyUI's memory; with host.py all that touches ComfyUI.

Each part (transformer, encoders, video codec) is held by a classic `ModelPatcher` and loaded whole whenever it is asked
for; ComfyUI moves other models away to make room. Loading layer by layer by ComfyUI was left out: layers that are no
ComfyUI operations would stay on the CPU without being cast, and `ModelPatcherDynamic` refuses to load whole.

Where the transformer is too large for the card, its blocks are streamed through it by `memory.offload`; ComfyUI keeps
the rest of it, and the room that two blocks and one step need.
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
from bya_core.memory import planner as memory
from bya_core.memory import sizes
from bya_core.memory.offload import BlockOffload, ComponentOffload, DeviceSlot, Offloadable, onload_before

if TYPE_CHECKING:
    from bya_core.scene.types import Scene
    from bya_core.weights.bundle import ModelBundle

log = logging.getLogger(__name__)

AWAY = ("transformer_blocks", "perceiver_cross_attention", "audio_model", "local_facial_extractor")
"""Parts of the transformer that are not on the device all the time while its blocks are streamed."""


class Holder(nn.Module):
    """What a `ModelPatcher` moves: it wants to set `device`, which the classes of diffusers do not allow."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Resident:
    """A part of a model that is on ComfyUI's device whenever something of it is called.

    Args:
        name: of the part in a bundle.
        part: the transformer, an encoder or the codec.
        module: its weights.
        seat: who else is on the device without ComfyUI knowing; leaves before this is loaded.
        guest: takes the seat then.
        device: None = ComfyUI's.
    """

    def __init__(
        self,
        name: str,
        part: Any,
        module: nn.Module,
        seat: DeviceSlot,
        guest: Offloadable | None = None,
        device: Any = None,
    ) -> None:
        self._part, self.name, self._seat, self._guest = part, name, seat, guest
        self.room = 0  # bytes beside the weights
        holder = type(type(module).__name__, (Holder,), {})(module)  # the log names what is loaded by its class
        self.patcher = ModelPatcher(
            holder,
            load_device=management.get_torch_device() if device is None else device,
            offload_device=management.unet_offload_device(),
        )

    def __getattr__(self, name: str) -> Any:
        if name == "_part":  # not there yet: while being copied
            raise AttributeError(name)
        value = getattr(self._part, name)
        if callable(value):
            self.load()
        return value

    def __call__(self, *given: Any, **named: Any) -> Any:
        self.load()
        return self._part(*given, **named)

    def load(self, *_: Any) -> None:
        """Onto the device, whole, with room for what it computes."""
        self._seat.acquire(self._guest)
        management.load_models_gpu([self.patcher], memory_required=self.room, force_full_load=True)

    def release(self) -> None:
        """Off the device, and off ComfyUI's list of what is loaded."""
        for index, loaded in reversed(list(enumerate(management.current_loaded_models))):
            if loaded.model is self.patcher:
                management.current_loaded_models.pop(index).model_unload()


class Visitor(ComponentOffload):
    """A part that reads its weights when it is asked for them: ComfyUI makes room, and gets it back afterwards."""

    def onload(self) -> None:
        if self.device.type != "cpu":
            management.free_memory(
                sizes.weight_bytes(self.component) + management.minimum_inference_memory(), self.device
            )
        super().onload()


@dataclass(frozen=True)
class HostModel:
    """BYA_MODEL: a model whose parts ComfyUI moves.

    Args:
        bundle: with residents as parts.
        residents: those of them that have weights.
        seat: of parts that ComfyUI does not move.
        plan: how the memory is shared out.
        low_memory: each part leaves the device as soon as a node is done with it.
    """

    bundle: ModelBundle
    residents: tuple[Resident, ...]
    seat: DeviceSlot
    plan: memory.MemoryPlan = memory.MEMORY_PLANS[0]
    low_memory: bool = False

    def make_room(self, scene: Scene) -> None:
        """Say what denoising and decoding a scene hold beside the weights."""
        from bya_core.sampling.guidance import guidance_branches

        bundle, sampling = self.bundle, scene.sampling
        config, size = bundle.transformer.config, bundle.dtype.itemsize
        passes = (
            1
            if self.plan.sequential_guidance
            else len(guidance_branches(sampling.guidance_scale, sampling.audio_guidance_scale))
        )
        grid = bundle.grid(scene.num_frames, scene.height, scene.width)
        width = config.num_attention_heads * config.attention_head_dim
        for resident in self.residents:
            if resident.name == "transformer":
                stream = resident._guest
                blocks = 2 * max(group.bytes for group in stream.groups) if isinstance(stream, BlockOffload) else 0
                resident.room = sizes.denoising_memory(grid, width, passes, size) + blocks
            elif resident.name == "codec":
                held = sizes.decoding_memory(grid, size)
                resident.room = round(sizes.TILING_SHARE * held) if self.plan.vae_tiling else held

    def rest(self) -> None:
        """After work: what ComfyUI does not know of leaves the device, and all else where memory is low."""
        self.seat.acquire(None)
        if self.low_memory:
            for resident in self.residents:
                resident.release()
            management.soft_empty_cache()


def adopt(bundle: ModelBundle, low_memory: bool = False, vram: str = "auto") -> HostModel:
    """Hand a model that was loaded on the CPU over to ComfyUI.

    Args:
        vram: "auto", or GB of the card to make do with, "8" ... "80".

    Raises:
        InputError: it holds parts of ComfyUI that do not fit its transformer.
    """
    bundle = _suited(bundle)
    plan = _memory_plan(bundle, vram)
    if plan.sequential_guidance:
        from bya_core.sampling.cfg_parallel import set_guidance_mode

        set_guidance_mode(bundle.transformer, "sequential")
    if plan.fp8_storage:
        memory.store_in_fp8(bundle.transformer)
    if plan.vae_tiling:
        memory.enable_tiled_decoding(bundle.codec)
    seat, parts, residents = DeviceSlot(), dict[str, Any](), list[Resident]()
    for name in ("text", "face", "speech", "codec"):
        part = getattr(bundle, name)
        on_cpu = torch.device("cpu") if name == "text" and plan.text_encoder_on_cpu else None
        module = _weights(part)
        if module is not None:
            parts[name] = Resident(name, part, module, seat, device=on_cpu)
            residents.append(parts[name])
        elif hasattr(part, "to"):
            visitor = Visitor(part, on_cpu or management.get_torch_device())
            onload_before(seat, visitor, part, ("encode",))
            if name == "face" and bundle.character_finder is not None:  # it looks with the networks of the face encoder
                onload_before(seat, visitor, bundle.character_finder, ("find",))
    parts["transformer"], own = _transformer(bundle.transformer, plan, seat)
    log.info('Bind-Your-Avatar: memory is shared out as "%s"', plan.name)
    return HostModel(replace(bundle, **parts), (*own, *residents), seat, plan, low_memory)


def _memory_plan(bundle: ModelBundle, vram: str) -> memory.MemoryPlan:
    """What the card allows once ComfyUI has moved everything else away."""
    device = management.get_torch_device()
    if vram != "auto":
        return memory.plan_memory(vram, sizes.component_sizes(bundle), memory.free_host_memory())
    if device.type == "cpu":
        return memory.MEMORY_PLANS[0]
    total = management.get_total_memory(device) - management.extra_reserved_memory() - memory.CONTEXT_BYTES
    if management.vram_state in (management.VRAMState.LOW_VRAM, management.VRAMState.NO_VRAM):
        total = min(total, 8 * memory.GIB - memory.CONTEXT_BYTES)  # the user wants little of it to be taken
    return memory.plan_memory(int(total), sizes.component_sizes(bundle), memory.free_host_memory())


def _transformer(transformer: Any, plan: memory.MemoryPlan, seat: DeviceSlot) -> tuple[Resident, list[Resident]]:
    """The transformer as a part of the bundle, and all residents that it is made of."""
    if plan.blocks == "resident":
        whole = Resident("transformer", transformer, transformer, seat)
        return whole, [whole]
    device, groups = management.get_torch_device(), sizes.block_groups(transformer)
    stream: BlockOffload | None = None
    if plan.blocks == "streamed":
        stream = BlockOffload(groups, device)
    else:
        memory.offload_layers(list(chain(*groups)), device)
    always = nn.ModuleList(child for name, child in transformer.named_children() if name not in AWAY)
    rest = Resident("transformer", transformer, always, seat, stream)
    residents = [rest]
    projection = None if transformer.audio_model is None else transformer.audio_model.audio_proj_model
    for name, module in (("extractor", transformer.local_facial_extractor), ("projection", projection)):
        if module is not None:
            residents.append(Resident(name, module, module, seat))
            module.register_forward_pre_hook(residents[-1].load)
    return rest, residents


def _weights(part: Any) -> nn.Module | None:
    """The module of a part: itself, or what it holds; None where it has no weights, or moves them by itself."""
    if isinstance(part, nn.Module):
        return part
    if hasattr(part, "release"):
        return None
    held = [value for value in vars(part).values() if isinstance(value, nn.Module)]
    return nn.ModuleList(held) if len(held) > 1 else next(iter(held), None)


def components(vae: Any = None, clip: Any = None) -> dict[str, Any]:
    """Parts of a bundle that ComfyUI's own loaders made.

    Raises:
        InputError: a VAE of another kind.
    """
    parts = {"codec": None if vae is None else HostCodec(vae), "text": None if clip is None else HostText(clip)}
    return {name: part for name, part in parts.items() if part is not None}


class HostCodec:
    """ComfyUI's own CogVideoX VAE behind the `VideoCodec` Protocol; it moves its weights, and tiles, by itself.

    Args:
        vae: from Load VAE.

    Raises:
        InputError: a VAE of another kind.
    """

    space_factor, time_factor, latent_channels = 8, 4, 16
    scale = 0.7  # of the latents of CogVideoX-5B, `scaling_factor` in its settings

    def __init__(self, vae: Any) -> None:
        found = getattr(vae, "latent_channels", None), getattr(vae, "latent_dim", None)
        if found != (self.latent_channels, 3) or vae.spacial_compression_encode() != self.space_factor:
            came = f"a VAE with {found[0]} latent channels on {found[1]} axes"
            raise InputError(came, "the CogVideoX VAE: 16 channels on 3 axes", "load cogvideox_vae with Load VAE")
        self.vae = vae

    def encode(self, video: Tensor) -> Tensor:
        """[B, 3, F, height, width] in -1..1 -> [B, T, C, H, W], scaled as the transformer wants it."""
        clips = rearrange(video.float() / 2 + 0.5, "b c f h w -> b f h w c")
        latents = torch.cat([self.vae.encode(clip) for clip in clips])  # one by one: of several it crops the frames
        return rearrange(latents * self.scale, "b c t h w -> b t c h w").to(video.device)

    def decode(self, latents: Tensor) -> Tensor:
        """[B, T, C, H, W] scaled -> [B, 3, F, height, width] in -1..1."""
        frames = (latents.shape[1] - 1) * self.time_factor + 1
        pixels = self.vae.decode(rearrange(latents / self.scale, "b t c h w -> b c t h w"))
        return rearrange(pixels, "b f h w c -> b c f h w")[:, :, -frames:].to(latents.device) * 2 - 1


class HostText:
    """ComfyUI's own text encoder (CLIP loader of type "cogvideox") behind the `TextEncoder` Protocol.

    Args:
        clip: from Load CLIP.
        length, width: tokens of a prompt and their width, as the transformer reads them.
    """

    def __init__(self, clip: Any, length: int = 226, width: int = 4096) -> None:
        self.clip, self._length, self._width = clip, length, width

    def encode(self, prompts: list[str]) -> Tensor:
        """B prompts -> [B, L, width]. Raises InputError for a text encoder of another kind."""
        from bya_core.encoders.text_t5 import PrecomputedTextEncoder

        known = {prompt: self.clip.encode_from_tokens(self.clip.tokenize(prompt)) for prompt in prompts}
        return PrecomputedTextEncoder(known, max_tokens=self._length, dim=self._width).encode(prompts)


def _suited(bundle: ModelBundle) -> ModelBundle:
    """The bundle, its parts from ComfyUI fitted to its transformer. Raises InputError where they cannot be."""
    config = bundle.transformer.config
    if isinstance(bundle.codec, HostCodec):
        pixels = bundle.native.height // config.sample_height
        if pixels != bundle.codec.space_factor:
            came = f"ComfyUI's VAE for the model {bundle.name}, which was made for {pixels} pixels a latent cell"
            raise InputError(came, f"a model for {bundle.codec.space_factor}", "leave the VAE away")
    if isinstance(bundle.text, HostText):
        return replace(bundle, text=HostText(bundle.text.clip, config.max_text_seq_length, config.text_embed_dim))
    return bundle
