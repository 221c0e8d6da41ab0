"""The memory ladder: how a model fits into the memory of a GPU.

Each rung needs less memory than the one before it and takes more time. `plan_memory` picks the first that fits, from
the sizes of the parts; `apply_rung` puts it into effect. Rungs above `fp8` change nothing in what is computed, except
that a video decoded in tiles differs a little where tiles meet.

Sizes are of weights plus what is alive at once while a part computes; the latter were counted with fake tensors
(benchmarks/memory_ladder.py --count).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from bya_core.errors import InputError
from bya_core.memory.sizes import (
    CAST,
    ENCODERS,
    TILE,
    block_groups,
    bytes_of,
    held_while_decoding,
    held_while_denoising,
    part_sizes,
    projection,
)

if TYPE_CHECKING:
    from bya_core.weights.bundle import ModelBundle

__all__ = ["TILE", "bytes_of", "held_while_decoding", "held_while_denoising", "part_sizes"]  # of memory_sizes

log = logging.getLogger(__name__)

GIB = 2**30
CONTEXT = 0.6 * GIB  # taken by the driver and the libraries before anything of ours
SPARE = 0.06  # share of the memory that is left alone: what is in use never fills the allocator's blocks entirely


@dataclass(frozen=True)
class Rung:
    """One way to share out the memory.

    Args:
        name: for people.
        in_turns: encoders, codec and transformer are on the device one at a time; what is used once per clip (text
            encoder, speech projection, face extractor) is away while denoising.
        blocks: of the transformer: "whole" = all on the device while denoising; "streamed" = two of them, the next
            one copied while one computes; "sequential" = layer by layer, each copied when it is called.
        fp8: the blocks' weights are kept in 8 bits (float8 e4m3) and widened when they are used: changes the video.
        tiled: the video codec works on tiles.
        text_on_cpu: the text encoder works on the processor.
        apart: the versions of the video that guidance needs are computed one after the other.
    """

    name: str
    in_turns: bool = True
    blocks: Literal["whole", "streamed", "sequential"] = "whole"
    fp8: bool = False
    tiled: bool = False
    text_on_cpu: bool = False
    apart: bool = False


LADDER = (
    Rung("resident", in_turns=False),
    Rung("in turns"),
    Rung("streamed", blocks="streamed"),
    Rung("streamed, tiled", blocks="streamed", tiled=True),
    Rung("streamed, tiled, fp8", blocks="streamed", tiled=True, fp8=True),
    Rung("sequential", blocks="sequential", tiled=True),
)
"""From the fastest to the smallest."""


def plan_memory(free: int | str, parts: Mapping[str, int], host_free: int | None = None) -> Rung:
    """The first rung that fits.

    Args:
        free: bytes that are free on the device, or the size of a card in GB ("8" ... "80").
        parts: sizes in bytes, see `part_sizes`; what is not named counts as nothing.
        host_free: bytes that are free on the host; None = enough.

    Raises:
        InputError: a size that is no number.
    """
    usable = _usable(free)
    for rung in LADDER:
        for on_cpu, apart in product((False, True) if rung.in_turns else (False,), (False, True)):
            tried = replace(rung, text_on_cpu=on_cpu, apart=apart)
            fits_host = host_free is None or host_needed(tried, parts) <= host_free
            if max(needed(tried, parts).values()) <= usable and fits_host:
                return tried
    last = replace(LADDER[-1], text_on_cpu=True, apart=True)
    least = max(needed(last, parts).values())
    log.warning(
        "%.1f GB of memory are free on the device, and the model needs about %.1f GB even layer by layer: it may run "
        "out of memory; a smaller or shorter video needs less",
        usable / 1e9,
        least / 1e9,
    )
    return last


def _usable(free: int | str) -> float:
    if isinstance(free, str):
        if not free.strip().isdigit() or not int(free):
            raise InputError(f"a GPU of {free!r} GB", "a whole number such as 8, 12, 16, 24, 48 or 80", "give one")
        return (1 - SPARE) * (int(free) * GIB - CONTEXT)
    return (1 - SPARE) * free


def needed(rung: Rung, parts: Mapping[str, int]) -> dict[str, int]:
    """Bytes on the device in each phase of the work; the largest decides."""
    size = _Sizes(parts)
    blocks = size["blocks"] - (size["castable"] // 2 if rung.fp8 else 0)
    group = size["group"] - (size["castable_group"] // 2 if rung.fp8 else 0)
    held = {"whole": blocks, "streamed": 2 * group, "sequential": size["leaf"]}[rung.blocks]
    step = size["denoising_apart"] if rung.apart and "denoising_apart" in size else size["denoising"]
    decoding = size["decoding_tiled"] if rung.tiled else size["decoding"]
    if rung.in_turns:
        text = 0 if rung.text_on_cpu else size["text"]
        phases = {
            "reading": text,
            "looking": max(size["face"], size["extractor"]),
            "listening": max(size["speech"], size["projection"]),
            "denoising": held + step,
            "decoding": size["codec"] + decoding,
        }
        return {phase: size["rest"] + value for phase, value in phases.items()}
    everything = sum(size[name] for name in (*ENCODERS, "codec", "extractor", "projection", "rest")) + held
    return {"denoising": everything + size["clip_keys"] + step, "decoding": everything + decoding}


def host_needed(rung: Rung, parts: Mapping[str, int]) -> int:
    """Page-locked bytes of the host that a rung takes."""
    size = _Sizes(parts)
    return size["blocks"] - (size["castable"] // 2 if rung.fp8 else 0) if rung.blocks == "streamed" else 0


class _Sizes(dict[str, int]):
    def __missing__(self, key: str) -> int:
        return 0


def apply_rung(bundle: ModelBundle, rung: Rung, device: torch.device | str | None = None) -> None:
    """Put a rung into effect, once per bundle; afterwards the bundle is used as if all of it were on the device.

    Args:
        bundle: on the CPU, in the dtype it shall compute in.
        device: where it computes; None = the first GPU, or the CPU where there is none.
    """
    from bya_core.memory.offload import PartGuest, Seat, take_before
    from bya_core.sampling.cfg_parallel import set_guidance_mode

    if rung.apart:
        set_guidance_mode(bundle.transformer, "sequential")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if rung.fp8:
        keep_in_8_bits(bundle.transformer)
    if rung.tiled:
        decode_in_tiles(bundle.codec)
    if not rung.in_turns:
        bundle.to(device)
        return
    seat = Seat()
    methods = {"text": ("encode",), "face": ("encode",), "speech": ("encode",), "codec": ("encode", "decode")}
    for name, called in methods.items():
        part = getattr(bundle, name)
        if hasattr(part, "to"):
            there = torch.device("cpu") if name == "text" and rung.text_on_cpu else device
            guest = PartGuest(part, there)
            take_before(seat, guest, part, called)
            if name == "face" and bundle.character_finder is not None:  # it may share the weights of the encoder
                take_before(seat, guest, bundle.character_finder, ("find",))
    place_transformer(bundle.transformer, rung, device, seat)


def place_transformer(transformer: Any, rung: Rung, device: torch.device, seat: Any) -> None:
    """The transformer's part of a rung: what every step needs is on the device, all else comes when it is called."""
    from bya_core.memory.offload import BlockStream, WeightsGuest, take_before_forward

    transformer.use_kv_cache = False  # they would take more of the device than was planned
    groups = block_groups(transformer)
    for module in (transformer.local_facial_extractor, projection(transformer)):
        if module is not None:
            take_before_forward(seat, WeightsGuest([module], device), module)
    if rung.blocks == "whole":
        take_before_forward(seat, WeightsGuest(list(chain(*groups)), device), transformer)
    elif rung.blocks == "streamed":
        take_before_forward(seat, BlockStream(groups, device), transformer)
    else:
        take_before_forward(seat, None, transformer)
        offload_layers(list(chain(*groups)), device)
    away = {id(t) for module in _away(transformer, groups) for t in (*module.parameters(), *module.buffers())}
    for tensor in (*transformer.parameters(), *transformer.buffers()):
        if id(tensor) not in away:
            with torch.inference_mode(tensor.is_inference()):
                tensor.data = tensor.data.to(device)


def _away(transformer: Any, groups: Sequence[Sequence[nn.Module]]) -> Iterator[nn.Module]:
    yield from chain(*groups)
    yield from (m for m in (transformer.local_facial_extractor, projection(transformer)) if m is not None)


def offload_layers(modules: Sequence[nn.Module], device: torch.device) -> None:
    """Layer by layer, by diffusers. Without its streams: it would prefetch in the order of the first call."""
    from diffusers.hooks import apply_group_offloading

    for module in modules:
        apply_group_offloading(module, device, torch.device("cpu"), offload_type="leaf_level")


def keep_in_8_bits(transformer: Any) -> None:
    """The blocks' large weights in float8 (e4m3), widened layer by layer when they are used, by diffusers."""
    from diffusers.hooks import apply_layerwise_casting

    dtype = next(transformer.parameters()).dtype
    for module in chain(*block_groups(transformer)):
        apply_layerwise_casting(
            module, storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype, skip_modules_pattern=CAST
        )


def decode_in_tiles(codec: Any) -> None:
    """Decode in tiles of half the height and width, one clip at a time.

    Encoding stays whole: it is about single pictures, takes a ninth of the memory, and tiles in what the denoiser is
    told would change the video from the first step on.
    """
    vae = getattr(codec, "vae", None)
    if vae is None or not hasattr(vae, "enable_tiling"):
        return
    vae.enable_slicing()
    vae.enable_tiling()
    tile, unit = (vae.tile_sample_min_height, vae.tile_sample_min_width), codec.space_factor
    overlap = (vae.tile_overlap_factor_height, vae.tile_overlap_factor_width)
    steps = [side // unit * (1 - share) for side, share in zip(tile, overlap, strict=True)]
    if any(side % unit for side in tile) or any(abs(step - round(step)) > 1e-6 for step in steps):
        # tiles that begin between two latent cells do not fit together again
        height, width = (max(1, round(side / (4 * unit))) * 4 * unit for side in tile)
        vae.enable_tiling(height, width, tile_overlap_factor_height=0.25, tile_overlap_factor_width=0.25)
    encode = codec.encode

    @functools.wraps(encode)
    def whole(video: Tensor) -> Tensor:
        vae.use_tiling = False
        try:
            return encode(video)
        finally:
            vae.use_tiling = True

    codec.encode = whole


def free_memory(device: torch.device | str | None = None) -> int | None:
    """Bytes that are free on the GPU, counting what this process holds and does not use; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_host_memory() -> int:
    """Bytes that programs can still take: of the machine, or of the container where that is less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        most = (group / "memory.max").read_text().strip()
        if not most.isdigit():
            return free
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # files that were read and may be forgotten count as used there
        used = int((group / "memory.current").read_text()) - int(stat.get("inactive_file", 0))
        return min(free, int(most) - used)
    except OSError:  # no such container
        return free


def place_model(bundle: ModelBundle, vram: str | None = None, device: torch.device | str | None = None) -> Rung:
    """Choose a rung for a bundle that is on the CPU, and put it into effect.

    Args:
        vram: "8" ... "80", GB of the card to plan for; None or "auto" = what is free on the GPU now.
        device: where it computes; None = the first GPU, or the CPU where there is none.
    """
    cpu = device is not None and torch.device(device).type == "cpu"
    free = free_memory(device) if vram in (None, "auto") and not cpu else vram
    rung = LADDER[0] if free in (None, "auto") else plan_memory(free, part_sizes(bundle), free_host_memory())
    apply_rung(bundle, rung, device)
    text = ", prompts read on the processor" if rung.text_on_cpu else ""
    log.info("memory: %s%s%s", rung.name, text, ", one version of the video at a time" if rung.apart else "")
    return rung
