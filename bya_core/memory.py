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
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from bya_core.errors import InputError
from bya_core.grid import TokenGrid

if TYPE_CHECKING:
    from bya_core.checkpoints.bundle import ModelBundle

log = logging.getLogger(__name__)

GIB = 2**30
Vram = Literal["auto", "8", "12", "16", "24", "48", "80"]
KEPT = 14  # numbers held per token and channel while a block computes; counted: 13.2
DECODED = 20  # widest layers held at once while the video is decoded; counted: 19.9
AT_ONCE = 9  # video frames that are decoded together
WIDEST = 128  # channels of the decoder where it works on pixels
TILE = 0.26  # share of `DECODED` that is held when decoding in tiles of half the height and width; counted: 0.255
CONTEXT = 0.6 * GIB  # taken by the driver and the libraries before anything of ours
SPARE = 0.06  # share of the memory that is left alone: what is in use never fills the allocator's blocks entirely
ENCODERS = ("text", "face", "speech")
CAST = ("norm", "patch_embed")  # what stays as it is where weights are kept in 8 bits


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
    """

    name: str
    in_turns: bool = True
    blocks: Literal["whole", "streamed", "sequential"] = "whole"
    fp8: bool = False
    tiled: bool = False
    text_on_cpu: bool = False


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
        for on_cpu in (False, True) if rung.in_turns else (False,):
            tried = replace(rung, text_on_cpu=on_cpu)
            fits_host = host_free is None or host_needed(tried, parts) <= host_free
            if max(needed(tried, parts).values()) <= usable and fits_host:
                return tried
    last = replace(LADDER[-1], text_on_cpu=True)
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
    decoding = size["decoding_tiled"] if rung.tiled else size["decoding"]
    if rung.in_turns:
        text = 0 if rung.text_on_cpu else size["text"]
        phases = {
            "reading": text,
            "looking": max(size["face"], size["extractor"]),
            "listening": max(size["speech"], size["projection"]),
            "denoising": held + size["denoising"],
            "decoding": size["codec"] + decoding,
        }
        return {phase: size["rest"] + value for phase, value in phases.items()}
    everything = sum(size[name] for name in (*ENCODERS, "codec", "extractor", "projection", "rest")) + held
    return {"denoising": everything + size["denoising"], "decoding": everything + decoding}


def host_needed(rung: Rung, parts: Mapping[str, int]) -> int:
    """Page-locked bytes of the host that a rung takes."""
    size = _Sizes(parts)
    return size["blocks"] - (size["castable"] // 2 if rung.fp8 else 0) if rung.blocks == "streamed" else 0


class _Sizes(dict[str, int]):
    def __missing__(self, key: str) -> int:
        return 0


def part_sizes(bundle: ModelBundle, characters: int = 2) -> dict[str, int]:
    """What `plan_memory` wants to know of a model, in bytes, at the size it was trained at and with guidance.

    Weights: text, face, speech, codec; of the transformer: "blocks" (with all that they call), the largest "group" of
    one block, the largest "leaf" layer, "extractor" and "projection" (used once per clip), "rest"; "castable" and
    "castable_group": of the blocks and of the group, what can be kept in 8 bits. Held while computing: "denoising",
    "decoding", "decoding_tiled".
    """
    transformer, native = bundle.transformer, bundle.native
    config, number = transformer.config, _number(transformer)
    grid = bundle.grid(native.num_frames, native.height, native.width)
    groups = block_groups(transformer)
    once = {"extractor": transformer.local_facial_extractor, "projection": _projection(transformer)}
    blocks = sum(_bytes(group) for group in groups)
    used_once = {name: _bytes([module]) if module is not None else 0 for name, module in once.items()}
    leaves = [_bytes([module]) for module in chain(*groups) for module in module.modules() if _is_leaf(module)]
    castable = [_bytes(_castable(group)) if number > 1 else 0 for group in groups]
    decoding = held_while_decoding(grid, _number_of(bundle.codec, number), _widest(bundle.codec))
    return {
        **{name: bytes_of(getattr(bundle, name)) for name in (*ENCODERS, "codec")},
        **used_once,
        "blocks": blocks,
        "group": max(_bytes(group) for group in groups),
        "leaf": max(leaves),
        "castable": sum(castable),
        "castable_group": max(castable),
        "rest": _bytes([transformer]) - blocks - sum(used_once.values()),
        "denoising": held_while_denoising(grid, config.num_attention_heads * config.attention_head_dim, 2, number),
        "decoding": decoding,
        "decoding_tiled": round(TILE * decoding),
    }


def held_while_denoising(grid: TokenGrid, width: int, passes: int, size: int) -> int:
    """Bytes that a step holds beside the weights.

    Args:
        width: channels of a token.
        passes: versions of the video that guidance needs.
        size: bytes of a number.
    """
    return KEPT * passes * grid.tokens * width * size


def held_while_decoding(grid: TokenGrid, size: int, channels: int = WIDEST) -> int:
    """Bytes that decoding holds beside the weights; `size` as above."""
    height, width = grid.pixels
    return DECODED * channels * min(AT_ONCE, grid.video_frames) * height * width * size


def block_groups(transformer: Any) -> list[list[nn.Module]]:
    """Each block with the face and speech layers that it calls, which lie elsewhere in the transformer."""
    schedule, groups = transformer.schedule, []
    faces, audio = transformer.perceiver_cross_attention, transformer.audio_model
    for index, block in enumerate(transformer.transformer_blocks):
        group = [block]
        face, voice = schedule.face(index), schedule.audio(index)
        if faces is not None and face is not None:
            group.append(faces[face])
        if audio is not None and voice is not None:
            group.append(audio.layers[voice])
        groups.append(group)
    return groups


def _projection(transformer: Any) -> nn.Module | None:
    return None if transformer.audio_model is None else transformer.audio_model.audio_proj_model


def apply_rung(bundle: ModelBundle, rung: Rung, device: torch.device | str | None = None) -> None:
    """Put a rung into effect, once per bundle; afterwards the bundle is used as if all of it were on the device.

    Args:
        bundle: on the CPU, in the dtype it shall compute in.
        device: where it computes; None = the first GPU, or the CPU where there is none.
    """
    from bya_core.offload import PartGuest, Seat, take_before

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
            if name == "face" and bundle.faces is not None:  # it may look with the weights of the face encoder
                take_before(seat, guest, bundle.faces, ("find",))
    place_transformer(bundle.transformer, rung, device, seat)


def place_transformer(transformer: Any, rung: Rung, device: torch.device, seat: Any) -> None:
    """The transformer's part of a rung: what every step needs is on the device, all else comes when it is called."""
    from bya_core.offload import BlockStream, WeightsGuest, take_before_forward

    groups = block_groups(transformer)
    for module in (transformer.local_facial_extractor, _projection(transformer)):
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
    yield from (m for m in (transformer.local_facial_extractor, _projection(transformer)) if m is not None)


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
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text()))
    return free


def arrange(bundle: ModelBundle, vram: str | None = None, device: torch.device | str | None = None) -> Rung:
    """Choose a rung for a bundle that is on the CPU, and put it into effect.

    Args:
        vram: "8" ... "80", GB of the card to plan for; None or "auto" = what is free on the GPU now.
        device: where it computes; None = the first GPU, or the CPU where there is none.
    """
    cpu = device is not None and torch.device(device).type == "cpu"
    free = free_memory(device) if vram in (None, "auto") and not cpu else vram
    rung = LADDER[0] if free in (None, "auto") else plan_memory(free, part_sizes(bundle), free_host_memory())
    apply_rung(bundle, rung, device)
    log.info("memory: %s%s", rung.name, ", prompts read on the processor" if rung.text_on_cpu else "")
    return rung


def bytes_of(part: Any) -> int:
    """Bytes of a part's weights: of the modules it holds or, where it reads them later, of its files."""
    modules = list(_modules_in(part))
    if modules:
        return _bytes(modules)
    folder = getattr(part, "weights_folder", None) or getattr(part, "folder", None)
    if folder is None:
        return 0
    for pattern in ("*.safetensors", "*.bin"):
        if files := list(Path(folder).glob(pattern)):
            return sum(file.stat().st_size for file in files)
    return 0


def _modules_in(part: Any, depth: int = 3) -> Iterator[nn.Module]:
    """The part itself, what it holds, and what our classes in it hold."""
    if isinstance(part, nn.Module):
        yield part
    elif depth and hasattr(part, "__dict__"):
        for value in vars(part).values():
            if isinstance(value, nn.Module) or type(value).__module__.startswith("bya_core."):
                yield from _modules_in(value, depth - 1)


def _bytes(modules: Sequence[nn.Module]) -> int:
    found = {id(t): t.nbytes for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(found.values())


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _castable(group: Sequence[nn.Module]) -> list[nn.Module]:
    """Layers whose weights can be kept in 8 bits."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    named = chain.from_iterable(module.named_modules() for module in group)
    return [m for name, m in named if isinstance(m, kinds) and not any(part in name for part in CAST)]


def _number(transformer: Any) -> int:
    return int(next(transformer.parameters()).dtype.itemsize)


def _number_of(codec: Any, otherwise: int) -> int:
    dtype = getattr(getattr(codec, "vae", None), "dtype", None)
    return otherwise if dtype is None else int(dtype.itemsize)


def _widest(codec: Any) -> int:
    config = getattr(getattr(codec, "vae", None), "config", None)
    return WIDEST if config is None else int(config.block_out_channels[0])
