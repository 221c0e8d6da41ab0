"""Memory plans: how a model is placed to fit into the memory of a GPU.

Each plan of `MEMORY_PLANS` needs less memory than the previous one and takes more time. `plan_memory` selects the first
one that fits, based on component sizes; `apply_memory_plan` applies it. Except for `fp8_storage`, plans do not change
the result, apart from small differences at tile borders.

Sizes are weights plus activations; activations were counted with fake tensors.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from bya_core.errors import InputError
from bya_core.memory.offload import (
    BlockOffload,
    ComponentOffload,
    DeviceSlot,
    ModuleOffload,
    onload_before,
    onload_before_forward,
)
from bya_core.memory.sizes import ENCODERS, NOT_FP8, audio_projection, block_groups, component_sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bya_core.weights.bundle import ModelBundle

log = logging.getLogger(__name__)

GIB = 2**30
CONTEXT_BYTES = 0.6 * GIB  # driver and libraries
RESERVE = 0.06  # share of the memory left free for fragmentation


@dataclass(frozen=True)
class MemoryPlan:
    """One placement of a model.

    Args:
        name: Name of the plan.
        offload_components: Encoders, codec and transformer are on the device one at a time; components used once per
            clip (text encoder, audio projection, face extractor) are offloaded while denoising.
        blocks: Placement of the transformer blocks while denoising: "resident" keeps all on the device, "streamed" two
            of them, copying the next while one computes, "sequential" copies each layer when it is called.
        fp8_storage: Block weights are stored in float8 (e4m3) and cast when used. Changes the result.
        vae_tiling: The video codec decodes in tiles, and encodes the film of `bya dub` in tiles.
        text_encoder_on_cpu: The text encoder runs on the CPU.
        sequential_guidance: Guidance branches are computed one after the other instead of in one batch.
    """

    name: str
    offload_components: bool = True
    blocks: Literal["resident", "streamed", "sequential"] = "resident"
    fp8_storage: bool = False
    vae_tiling: bool = False
    text_encoder_on_cpu: bool = False
    sequential_guidance: bool = False


MEMORY_PLANS = (
    MemoryPlan("full", offload_components=False),
    MemoryPlan("component_offload"),
    MemoryPlan("block_offload", blocks="streamed"),
    MemoryPlan("block_offload_tiling", blocks="streamed", vae_tiling=True),
    MemoryPlan("block_offload_tiling_fp8", blocks="streamed", vae_tiling=True, fp8_storage=True),
    MemoryPlan("layer_offload", blocks="sequential", vae_tiling=True),
)
"""From fastest to smallest."""


def plan_memory(free: int | str, sizes: Mapping[str, int], host_free: int | None = None) -> MemoryPlan:
    """Select the first plan that fits.

    Args:
        free: Free bytes on the device, or the size of a GPU in GB ("8" to "80").
        sizes: Sizes in bytes, see `component_sizes`; missing ones count as 0.
        host_free: Free bytes on the host; `None` does not limit it.

    Raises:
        InputError: The size is not a number.
    """
    usable = _usable(free)
    for plan in MEMORY_PLANS:
        for on_cpu, sequential in product((False, True) if plan.offload_components else (False,), (False, True)):
            variant = replace(plan, text_encoder_on_cpu=on_cpu, sequential_guidance=sequential)
            fits_host = host_free is None or required_pinned_memory(variant, sizes) <= host_free
            if max(required_memory(variant, sizes).values()) <= usable and fits_host:
                return variant
    smallest = replace(MEMORY_PLANS[-1], text_encoder_on_cpu=True, sequential_guidance=True)
    log.warning(
        "%.1f GB of GPU memory are available, but the model needs about %.1f GB even with layer offload and may run "
        "out of memory; use a lower resolution or fewer frames",
        usable / 1e9,
        max(required_memory(smallest, sizes).values()) / 1e9,
    )
    return smallest


def _usable(free: int | str) -> float:
    if isinstance(free, str):
        if not free.strip().isdigit() or not int(free):
            expected = "an integer such as 8, 12, 16, 24, 48 or 80"
            raise InputError(f"a GPU of {free!r} GB", expected, "change the VRAM budget")
        return (1 - RESERVE) * (int(free) * GIB - CONTEXT_BYTES)
    return (1 - RESERVE) * free


def required_memory(plan: MemoryPlan, sizes: Mapping[str, int]) -> dict[str, int]:
    """Device bytes needed in each stage; the maximum decides."""
    size = Counter(sizes)  # missing sizes are 0
    blocks = size["blocks"] - (size["fp8_blocks"] // 2 if plan.fp8_storage else 0)
    block = size["block"] - (size["fp8_block"] // 2 if plan.fp8_storage else 0)
    on_device = {"resident": blocks, "streamed": 2 * block, "sequential": size["layer"]}[plan.blocks]
    sequential = plan.sequential_guidance and "denoising_sequential" in size
    step = size["denoising_sequential" if sequential else "denoising"]
    decoding = size["decoding_tiled" if plan.vae_tiling else "decoding"]
    if not plan.offload_components:
        weights = sum(size[name] for name in (*ENCODERS, "codec", "extractor", "projection", "other")) + on_device
        return {"Denoising": weights + size["kv_cache"] + step, "Decoding": weights + decoding}
    stages = {
        "Encoding prompt": 0 if plan.text_encoder_on_cpu else size["text"],
        "Encoding faces": max(size["face"], size["extractor"]),
        "Encoding audio": max(size["speech"], size["projection"]),
        "Denoising": on_device + step,
        "Decoding": size["codec"] + decoding,
    }
    return {stage: size["other"] + value for stage, value in stages.items()}


def required_pinned_memory(plan: MemoryPlan, sizes: Mapping[str, int]) -> int:
    """Bytes of pinned host memory needed."""
    size = Counter(sizes)
    return size["blocks"] - (size["fp8_blocks"] // 2 if plan.fp8_storage else 0) if plan.blocks == "streamed" else 0


def place_model(bundle: ModelBundle, vram: str | None = None, device: torch.device | str | None = None) -> MemoryPlan:
    """Select and apply a memory plan for a bundle that is on the CPU.

    Args:
        bundle: Bundle on the CPU.
        vram: VRAM budget in GB ("8" to "80"); `None` or "auto" uses the free memory of the GPU.
        device: Device to compute on; `None` selects the first GPU, or the CPU if there is none.
    """
    cpu = device is not None and torch.device(device).type == "cpu"
    free = free_vram(device) if vram in (None, "auto") and not cpu else vram
    plan = MEMORY_PLANS[0]
    if free not in (None, "auto"):
        plan = plan_memory(free, component_sizes(bundle), free_host_memory())
    apply_memory_plan(bundle, plan, device)
    text = ", text encoder on the CPU" if plan.text_encoder_on_cpu else ""
    log.info("memory plan: %s%s%s", plan.name, text, ", sequential guidance" if plan.sequential_guidance else "")
    return plan


def apply_memory_plan(bundle: ModelBundle, plan: MemoryPlan, device: torch.device | str | None = None) -> None:
    """Apply a plan, once per bundle. Afterwards the bundle is used as if it were on the device.

    Args:
        bundle: Bundle on the CPU, in its compute dtype.
        plan: Plan to apply.
        device: Device to compute on; `None` selects the first GPU, or the CPU if there is none.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    apply_compute_options(bundle, plan)
    if not plan.offload_components:
        bundle.to(device)
        return
    slot = DeviceSlot()
    for name in (*ENCODERS, "codec"):
        component = getattr(bundle, name)
        if hasattr(component, "to"):
            on_cpu = name == "text" and plan.text_encoder_on_cpu
            offload = ComponentOffload(component, torch.device("cpu") if on_cpu else device)
            onload_before(slot, offload, component, ("encode", "decode"))
            if name == "face" and bundle.character_finder is not None:  # it may share the weights of the encoder
                onload_before(slot, offload, bundle.character_finder, ("find",))
    place_transformer(bundle.transformer, plan, device, slot)


def apply_compute_options(bundle: ModelBundle, plan: MemoryPlan) -> None:
    """Apply the options of a plan other than placement: float8 storage, tiling, sequential guidance."""
    from bya_core.sampling.cfg_parallel import set_guidance_mode

    if plan.sequential_guidance:
        set_guidance_mode(bundle.transformer, "sequential")
    if plan.fp8_storage:
        store_in_fp8(bundle.transformer)
    if plan.vae_tiling:
        enable_tiling(bundle.codec)


def place_transformer(transformer: Any, plan: MemoryPlan, device: torch.device, slot: DeviceSlot) -> None:
    """Apply a plan with component offload to the transformer. Weights used by every step stay on the device."""
    transformer.use_kv_cache = False  # the plan has no room for it
    groups = block_groups(transformer)
    blocks = list(chain(*groups))
    once = [m for m in (transformer.local_facial_extractor, audio_projection(transformer)) if m is not None]
    for module in once:
        onload_before_forward(slot, ModuleOffload([module], device), module)
    if plan.blocks == "resident":
        onload_before_forward(slot, ModuleOffload(blocks, device), transformer)
    elif plan.blocks == "streamed":
        onload_before_forward(slot, BlockOffload(groups, device), transformer)
    else:
        onload_before_forward(slot, None, transformer)
        offload_layers(blocks, device)
    offloaded = {id(t) for module in (*blocks, *once) for t in (*module.parameters(), *module.buffers())}
    for tensor in (*transformer.parameters(), *transformer.buffers()):
        if id(tensor) not in offloaded:
            with torch.inference_mode(tensor.is_inference()):
                tensor.data = tensor.data.to(device)


def offload_layers(modules: Sequence[nn.Module], device: torch.device) -> None:
    """Leaf-level group offloading of diffusers, without streams, which would record the order of the first call."""
    from diffusers.hooks import apply_group_offloading

    for module in modules:
        apply_group_offloading(module, device, torch.device("cpu"), offload_type="leaf_level")


def store_in_fp8(transformer: Any) -> None:
    """Layerwise casting of diffusers: large weights of the blocks are stored in float8 (e4m3)."""
    from diffusers.hooks import apply_layerwise_casting

    dtype = next(transformer.parameters()).dtype
    for module in chain(*block_groups(transformer)):
        apply_layerwise_casting(
            module, storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype, skip_modules_pattern=NOT_FP8
        )


def enable_tiling(codec: Any) -> bool:
    """Decode and encode videos in tiles of half height and width, one clip at a time.

    Single images are encoded whole: they need a ninth of the memory, and tiles in the conditioning would change the
    video from the first step on.

    Returns:
        Whether this changed anything: False if it is enabled already, or the codec has no tiles.
    """
    vae = getattr(codec, "vae", None)
    if vae is None or not hasattr(vae, "enable_tiling") or vae.use_tiling:
        return False
    vae.enable_slicing()
    vae.enable_tiling()
    tile, unit = (vae.tile_sample_min_height, vae.tile_sample_min_width), codec.space_factor
    overlap = (vae.tile_overlap_factor_height, vae.tile_overlap_factor_width)
    steps = [side // unit * (1 - share) for side, share in zip(tile, overlap, strict=True)]
    if any(side % unit for side in tile) or any(abs(step - round(step)) > 1e-6 for step in steps):
        # tiles have to start at latent cells
        height, width = (max(1, round(side / (4 * unit))) * 4 * unit for side in tile)
        vae.enable_tiling(height, width, tile_overlap_factor_height=0.25, tile_overlap_factor_width=0.25)
    encode = codec.encode

    @functools.wraps(encode)
    def encode_images_whole(video: Tensor) -> Tensor:
        vae.use_tiling = video.shape[2] > 1
        try:
            return encode(video)
        finally:
            vae.use_tiling = True

    codec.encode = encode_images_whole
    return True


def run_codec(codec: Any, function: Callable[[], Tensor], what: str) -> Tensor:
    """Call a function that encodes or decodes a video, and if memory runs out, again in tiles.

    Args:
        codec: Codec that it uses.
        function: Returns the result.
        what: Such as "Decoding", for the warning.
    """
    try:
        return function()
    except torch.OutOfMemoryError as error:
        if not enable_tiling(codec):
            raise
        log.warning("%s needed more memory than is free and was repeated in tiles (%s).", what, error)
    torch.cuda.empty_cache()  # outside of the handler, which keeps the tensors of the failed attempt alive
    return function()


def free_vram(device: torch.device | str | None = None) -> int | None:
    """Free bytes on the GPU, including those cached by this process; `None` without a GPU."""
    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_host_memory() -> int:
    """Available bytes of the machine, or of the container if it is limited."""
    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if not limit.isdigit():
            return free
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # inactive page cache counts as used in the container
        used = int((group / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
        return min(free, int(limit) - used)
    except OSError:  # no such container
        return free
