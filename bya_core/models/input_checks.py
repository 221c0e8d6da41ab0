"""Inputs of the transformer against its configuration and against each other, before anything is computed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.models.conditioning import BlockConditioning


def expect(name: str, tensor: Tensor, shape: tuple[int | None, ...], do: str = "check what made it") -> None:
    """Raise InputError unless `tensor` has this shape; None = any size."""
    sizes = zip(shape, tensor.shape, strict=False)
    if tensor.dim() == len(shape) and all(want is None or want == got for want, got in sizes):
        return
    wanted = ", ".join("any" if size is None else str(size) for size in shape)
    raise InputError(f"{name} of shape {list(tensor.shape)}", f"[{wanted}]", do)


def check_path(part: object | None, came: str, path: str) -> None:
    """Raise InputError where the model was built without a path."""
    if part is None:
        raise InputError(came, f"a model with a {path} path", "load another model")


def latent_grid(latents: Tensor, config: Any) -> TokenGrid:
    """Token grid of latents [B, T, C, H, W].

    Raises:
        InputError: other axes, other channels, or sides that the patch size does not divide.
    """
    expect(
        "latents",
        latents,
        (None, None, config.in_channels, None, None),
        "concatenate noise, canvas and first frame along the channels",
    )
    (frames, height, width), patch = (latents.shape[i] for i in (1, 3, 4)), config.patch_size
    if height % patch or width % patch:
        came = f"latents of {height} x {width}"
        raise InputError(came, f"sides divisible by {patch}", "choose another video size")
    factor = config.temporal_compression_ratio
    return TokenGrid(frames, height // patch, width // patch, patch, time_factor=factor)


def check_inputs(latents: Tensor, text: Tensor, timestep: Tensor, given: BlockConditioning, config: Any) -> None:
    """Everything that one call of the transformer gets.

    Raises:
        InputError: the first thing that does not fit.
    """
    batch = latents.shape[0]
    expect("text", text, (batch, None, config.text_embed_dim))
    positions = config.use_learned_positional_embeddings or not config.use_rotary_positional_embeddings
    if positions and text.shape[1] > config.max_text_seq_length:
        limit = config.max_text_seq_length
        raise InputError(f"text of {text.shape[1]} tokens", f"at most {limit}", "shorten the prompt")
    expect("timestep", timestep, (batch,))
    if given.router_interval < 1:
        raise InputError(
            f"router_interval = {given.router_interval}", "a whole number of at least 1", "1 = in every layer"
        )
    characters = _check_faces(batch, given, config)
    if given.audio_tokens is not None:
        _check_speech(batch, characters, given, config)
        if given.speech_strength is not None:
            expect("speech_strength", given.speech_strength, (batch, characters))


def _check_faces(batch: int, given: BlockConditioning, config: Any) -> int | None:
    """Faces and masks; returns the number of characters, or None where neither is given."""
    characters = None
    if given.face_tokens is not None:
        check_path(given.face_layers, "face tokens", "face")
        kv_dim = config.cross_attn_kv_dim or config.lfe_output_dim
        expect("face_tokens", given.face_tokens, (batch, None, config.lfe_num_queries, kv_dim))
        characters = given.face_tokens.shape[1]
    if given.mask_override is not None:
        layers = (given.schedule.face_layers,) if given.mask_override.dim() == 6 else ()
        expect("mask_override", given.mask_override, (*layers, batch, characters, *given.grid.shape))
        characters = given.mask_override.shape[-4]
    elif given.face_tokens is not None and given.router is None:
        raise InputError("faces without masks", "mask_override, as this model has no router", "pass masks")
    if characters == 0:
        raise InputError("0 characters", "at least one", "leave faces and masks out, or give a character")
    return characters


def _check_speech(batch: int, characters: int | None, given: BlockConditioning, config: Any) -> None:
    """Speech against faces or masks, and the audio-character matrix."""
    tokens = given.audio_tokens
    assert tokens is not None
    check_path(given.audio_layers, "audio tokens", "speech")
    if characters is None:
        raise InputError("speech without faces or masks", "one of them", "pass face_tokens or mask_override")
    expect("audio_tokens", tokens, (batch, None, given.grid.frames, None, config.audio_dim))
    streams = tokens.shape[1]
    if given.matrix is not None:
        expect("audio_character_matrix", given.matrix, (batch, streams, characters))
    elif streams != characters:
        raise InputError(
            f"{streams} speech streams for {characters} characters",
            "one stream per character, or an audio-character matrix",
            "give silence for who is silent, or the matrix",
        )
