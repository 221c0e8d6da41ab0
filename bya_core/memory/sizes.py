"""How large the parts of a model are, and what they hold while they compute: what the memory ladder reckons with."""

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

KEPT = 14  # numbers held per token and channel while a block computes; counted: 13.2
DECODED = 20  # widest layers held at once while the video is decoded; counted: 19.9
AT_ONCE = 9  # video frames that are decoded together
WIDEST = 128  # channels of the decoder where it works on pixels
TILE = 0.26  # share of `DECODED` that is held when decoding in tiles of half the height and width; counted: 0.255
ENCODERS = ("text", "face", "speech")
CAST = ("norm", "patch_embed")  # what stays as it is where weights are kept in 8 bits


def part_sizes(bundle: ModelBundle, characters: int = 2) -> dict[str, int]:
    """What `plan_memory` wants to know of a model, in bytes, at the size it was trained at and with guidance.

    Weights: text, face, speech, codec; of the transformer: "blocks" (with all that they call), the largest "group" of
    one block, the largest "leaf" layer, "extractor" and "projection" (used once per clip), "rest"; "castable" and
    "castable_group": of the blocks and of the group, what can be kept in 8 bits. Held while computing: "denoising"
    (both versions of the video), "denoising_apart" (one at a time), "clip_keys" (from step to step, of both versions),
    "decoding", "decoding_tiled".
    """
    transformer, native = bundle.transformer, bundle.native
    config, number = transformer.config, _number(transformer)
    width = config.num_attention_heads * config.attention_head_dim
    grid = bundle.grid(native.num_frames, native.height, native.width)
    groups = block_groups(transformer)
    once = {"extractor": transformer.local_facial_extractor, "projection": projection(transformer)}
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
        "denoising": held_while_denoising(grid, width, 2, number),
        "denoising_apart": held_while_denoising(grid, width, 1, number),
        "clip_keys": empty_call(empty_twin(config), grid, characters, 2).bytes * number // 4,
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


def empty_twin(config: Any) -> Any:
    """A transformer of these settings in float32 without memory (torch's "meta" device), to count what it would do."""
    from bya_core.models.transformer import BindYourAvatarTransformer3DModel

    with torch.device("meta"):
        return BindYourAvatarTransformer3DModel.from_config(config).float().eval()


@torch.no_grad()
def empty_call(twin: Any, grid: TokenGrid, characters: int, passes: int = 1) -> KVCache:
    """One call of an `empty_twin`; returns what it keeps for the next one.

    Args:
        characters: each has a voice.
        passes: versions of the video that guidance needs.
    """
    c, kv_cache = twin.config, KVCache()
    frames, _, rows, columns = grid.latent_shape(c.out_channels)
    empty = functools.partial(torch.empty, dtype=torch.float32)
    faces = speech = None
    with torch.device("meta"):
        if c.use_face:
            seen = empty(passes, characters, c.lfe_num_scale, 16, c.lfe_vit_dim)
            faces = twin.encode_faces(empty(passes, characters, c.lfe_id_dim), seen)
        if c.use_audio:
            heard = empty(passes, characters, grid.video_frames + 4, c.audio_blocks, c.audio_channels)
            speech = twin.encode_speech(heard)
        twin(
            hidden_states=empty(passes, frames, c.in_channels, rows, columns),
            timestep=torch.zeros(passes, dtype=torch.long),
            encoder_hidden_states=empty(passes, c.max_text_seq_length, c.text_embed_dim),
            face_tokens=faces,
            audio_tokens=speech,
            kv_cache=kv_cache,
        )
    return kv_cache


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


def projection(transformer: Any) -> nn.Module | None:
    return None if transformer.audio_model is None else transformer.audio_model.audio_proj_model


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
