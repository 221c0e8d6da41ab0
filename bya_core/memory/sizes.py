"""Sizes of the components of a model and of their activations; input of the memory planner."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bya_core.grid import TokenGrid
from bya_core.models.kv_cache import KVCache

if TYPE_CHECKING:
    from bya_core.weights.bundle import ModelBundle

ACTIVATIONS = 14  # values per token and channel alive in a block; counted: 13.2
DECODER_ACTIVATIONS = 22  # layers of the widest kind alive while decoding; counted: 19.9, the rest is workspace
DECODER_FRAMES = 9  # video frames decoded together
DECODER_WIDTH = 128  # channels of the decoder at pixel resolution
TILING_SHARE = 0.26  # share of the activations alive when decoding tiles of half height and width; counted: 0.255
ENCODERS = ("text", "face", "speech")
ENCODER_BYTES = {"text": 9_524_000_000, "face": 900_000_000, "speech": 190_000_000}
"""Encoders of the released model: T5-XXL; face recognition and EVA02-CLIP; wav2vec2."""
NOT_FP8 = ("norm", "patch_embed")  # layers that keep their dtype when weights are stored in float8


def component_sizes(bundle: ModelBundle, characters: int = 2) -> dict[str, int]:
    """Sizes in bytes at the native resolution and with guidance, for `plan_memory`.

    Weights: "text", "face", "speech", "codec"; of the transformer, "blocks" (with all layers they call), "block" (the
    largest one), "layer" (the largest one), "extractor" and "projection" (used once per clip), "other"; "fp8_blocks"
    and "fp8_block": the part of "blocks" and "block" that can be stored in float8. Activations: "denoising" (all
    guidance branches in one batch), "denoising_sequential" (one at a time), "kv_cache", "decoding", "decoding_tiled".
    """
    transformer, native = bundle.transformer, bundle.native
    config, itemsize = transformer.config, int(next(transformer.parameters()).dtype.itemsize)
    width = config.num_attention_heads * config.attention_head_dim
    grid = bundle.grid(native.num_frames, native.height, native.width)
    groups = block_groups(transformer)
    once = {"extractor": transformer.local_facial_extractor, "projection": audio_projection(transformer)}
    used_once = {name: _bytes([module]) if module is not None else 0 for name, module in once.items()}
    blocks = [_bytes(group) for group in groups]
    leaves = [m for module in chain(*groups) for m in module.modules() if next(m.children(), None) is None]
    fp8 = [_bytes(_fp8_layers(group)) if itemsize > 1 else 0 for group in groups]
    vae: Any = getattr(bundle.codec, "vae", None)
    vae_itemsize = itemsize if getattr(vae, "dtype", None) is None else int(vae.dtype.itemsize)
    vae_width = int(vae.config.block_out_channels[0]) if hasattr(vae, "config") else DECODER_WIDTH
    decoding = decoding_memory(grid, vae_itemsize, vae_width)
    kv_cache = run_meta_step(build_meta_transformer(config), grid, characters, 2)
    return {
        **{name: weight_bytes(getattr(bundle, name)) for name in (*ENCODERS, "codec")},
        **used_once,
        "blocks": sum(blocks),
        "block": max(blocks),
        "layer": max(_bytes([leaf]) for leaf in leaves),
        "fp8_blocks": sum(fp8),
        "fp8_block": max(fp8),
        "other": _bytes([transformer]) - sum(blocks) - sum(used_once.values()),
        "denoising": denoising_memory(grid, width, 2, itemsize),
        "denoising_sequential": denoising_memory(grid, width, 1, itemsize),
        "kv_cache": kv_cache.bytes * itemsize // 4,
        "decoding": decoding,
        "decoding_tiled": round(TILING_SHARE * decoding),
    }


def denoising_memory(grid: TokenGrid, width: int, branches: int, itemsize: int) -> int:
    """Bytes of the activations of one denoising step.

    Args:
        grid: Token grid of the video.
        width: Channels of a token.
        branches: Guidance branches in the batch.
        itemsize: Bytes per value.
    """
    return ACTIVATIONS * branches * grid.tokens * width * itemsize


def decoding_memory(grid: TokenGrid, itemsize: int, channels: int = DECODER_WIDTH) -> int:
    """Bytes of the activations of decoding; arguments as in `denoising_memory`."""
    height, width = grid.pixels
    return DECODER_ACTIVATIONS * channels * min(DECODER_FRAMES, grid.video_frames) * height * width * itemsize


def build_meta_transformer(config: Any) -> Any:
    """A float32 transformer on the meta device, for counting."""
    from bya_core.models.transformer import BindYourAvatarTransformer3DModel

    with torch.device("meta"):
        return BindYourAvatarTransformer3DModel.from_config(config).float().eval()


@torch.no_grad()
def run_meta_step(transformer: Any, grid: TokenGrid, characters: int, branches: int = 1) -> KVCache:
    """One call of a `build_meta_transformer`.

    Args:
        transformer: Transformer on the meta device.
        grid: Token grid of the video.
        characters: Number of characters, each with a speech stream.
        branches: Guidance branches in the batch.

    Returns:
        KV cache filled by the call.
    """
    c, kv_cache = transformer.config, KVCache()
    frames, _, rows, columns = grid.latent_shape(c.out_channels)
    empty = functools.partial(torch.empty, dtype=torch.float32)
    face_tokens = audio_tokens = None
    with torch.device("meta"):
        if c.use_face:
            features = empty(branches, characters, c.lfe_num_scale, 16, c.lfe_vit_dim)
            face_tokens = transformer.encode_faces(empty(branches, characters, c.lfe_id_dim), features)
        if c.use_audio:
            features = empty(branches, characters, grid.video_frames + 4, c.audio_blocks, c.audio_channels)
            audio_tokens = transformer.encode_speech(features)
        transformer(
            hidden_states=empty(branches, frames, c.in_channels, rows, columns),
            timestep=torch.zeros(branches, dtype=torch.long),
            encoder_hidden_states=empty(branches, c.max_text_seq_length, c.text_embed_dim),
            face_tokens=face_tokens,
            audio_tokens=audio_tokens,
            kv_cache=kv_cache,
        )
    return kv_cache


def block_groups(transformer: Any) -> list[list[nn.Module]]:
    """Each block with the face and audio layers that it calls, which are in other module lists."""
    schedule, groups = transformer.schedule, []
    face_layers, audio_model = transformer.perceiver_cross_attention, transformer.audio_model
    for index, block in enumerate(transformer.transformer_blocks):
        group = [block]
        face, audio = schedule.face(index), schedule.audio(index)
        if face_layers is not None and face is not None:
            group.append(face_layers[face])
        if audio_model is not None and audio is not None:
            group.append(audio_model.layers[audio])
        groups.append(group)
    return groups


def audio_projection(transformer: Any) -> nn.Module | None:
    """The audio projection, which runs once per clip."""
    return None if transformer.audio_model is None else transformer.audio_model.audio_proj_model


def weight_bytes(component: Any) -> int:
    """Bytes of the weights of a component: of its modules or, if it loads them later, of its files."""
    modules = list(_modules_in(component))
    if modules:
        return _bytes(modules)
    folder = getattr(component, "weights_folder", None) or getattr(component, "folder", None)
    if folder is None:
        return 0
    for pattern in ("*.safetensors", "*.bin"):
        if files := list(Path(folder).glob(pattern)):
            return sum(file.stat().st_size for file in files)
    return 0


def _modules_in(component: Any, depth: int = 3) -> Iterator[nn.Module]:
    """Modules in the attributes of a component, and in those of our classes in it."""
    if isinstance(component, nn.Module):
        yield component
    elif depth and hasattr(component, "__dict__"):
        for value in vars(component).values():
            if isinstance(value, nn.Module) or type(value).__module__.startswith("bya_core."):
                yield from _modules_in(value, depth - 1)


def _bytes(modules: Sequence[nn.Module]) -> int:
    found = {id(t): t.nbytes for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(found.values())


def _fp8_layers(group: Sequence[nn.Module]) -> list[nn.Module]:
    """Layers whose weights can be stored in float8."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    named = chain.from_iterable(module.named_modules() for module in group)
    return [m for name, m in named if isinstance(m, kinds) and not any(part in name for part in NOT_FP8)]
