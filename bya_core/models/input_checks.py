"""Validation of the transformer's inputs."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn

from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.models.conditioning import BlockConditioning

Module = TypeVar("Module", bound=nn.Module)


def check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...], hint: str = "check its encoder") -> None:
    """Raise InputError unless `tensor` has this shape; None = any size."""
    sizes = zip(shape, tensor.shape, strict=False)
    if tensor.dim() == len(shape) and all(size is None or size == actual for size, actual in sizes):
        return
    expected = ", ".join("any" if size is None else str(size) for size in shape)
    raise InputError(f"{name} of shape {list(tensor.shape)}", f"[{expected}]", hint)


def check_path(module: Module | None, name: str, path: str) -> Module:
    """The module; raises InputError if the model was built without the face or speech path that `name` needs."""
    if module is None:
        raise InputError(name, f"a model with a {path} path", "load another model")
    return module


def latent_grid(latents: Tensor, config: Any) -> TokenGrid:
    """Token grid of latents [B, T, C, H, W].

    Raises:
        InputError: other axes or channels, or a height or width not divisible by the patch size.
    """
    hint = "concatenate noise, canvas and first frame along the channels"
    check_shape("latents", latents, (None, None, config.in_channels, None, None), hint)
    (frames, height, width), patch = (latents.shape[i] for i in (1, 3, 4)), config.patch_size
    if height % patch or width % patch:
        raise InputError(f"latents of {height} x {width}", f"sides divisible by {patch}", "choose another video size")
    factor = config.temporal_compression_ratio
    return TokenGrid(frames, height // patch, width // patch, patch, time_factor=factor)


def check_inputs(latents: Tensor, text: Tensor, timestep: Tensor, inputs: BlockConditioning, config: Any) -> None:
    """Check all inputs of one call of the transformer.

    Raises:
        InputError: the first input that does not fit the model or the other inputs.
    """
    batch = latents.shape[0]
    check_shape("text", text, (batch, None, config.text_embed_dim))
    positions = config.use_learned_positional_embeddings or not config.use_rotary_positional_embeddings
    if positions and text.shape[1] > config.max_text_seq_length:
        limit = config.max_text_seq_length
        raise InputError(f"text of {text.shape[1]} tokens", f"at most {limit}", "shorten the prompt")
    check_shape("timestep", timestep, (batch,))
    if inputs.router_interval < 1:
        raise InputError(f"router_interval = {inputs.router_interval}", "an integer >= 1", "1 = in every layer")
    characters = _check_faces(batch, inputs, config)
    if inputs.audio_tokens is not None:
        _check_speech(batch, characters, inputs, config)
        if inputs.speech_strength is not None:
            check_shape("speech_strength", inputs.speech_strength, (batch, characters))


def _check_faces(batch: int, inputs: BlockConditioning, config: Any) -> int | None:
    """Check faces and masks; returns the number of characters, or None without either."""
    characters = None
    if inputs.face_tokens is not None:
        check_path(inputs.model.perceiver_cross_attention, "face tokens", "face")
        kv_dim = config.cross_attn_kv_dim or config.lfe_output_dim
        check_shape("face_tokens", inputs.face_tokens, (batch, None, config.lfe_num_queries, kv_dim))
        characters = inputs.face_tokens.shape[1]
    if inputs.mask_override is not None:
        layers = (inputs.model.schedule.face_layers,) if inputs.mask_override.dim() == 6 else ()
        check_shape("mask_override", inputs.mask_override, (*layers, batch, characters, *inputs.grid.shape))
        characters = inputs.mask_override.shape[-4]
    elif inputs.face_tokens is not None and inputs.model.router is None:
        raise InputError("faces without masks", "mask_override, as this model has no router", "pass masks")
    if characters == 0:
        raise InputError("0 characters", "at least one", "omit faces and masks, or add a character")
    return characters


def _check_speech(batch: int, characters: int | None, inputs: BlockConditioning, config: Any) -> None:
    """Check audio tokens and the audio-character matrix against faces or masks."""
    tokens = inputs.audio_tokens
    assert tokens is not None
    check_path(inputs.model.audio_model, "audio tokens", "speech")
    if characters is None:
        raise InputError("speech without faces or masks", "one of them", "pass face_tokens or mask_override")
    check_shape("audio_tokens", tokens, (batch, None, inputs.grid.frames, None, config.audio_dim))
    streams = tokens.shape[1]
    if inputs.matrix is not None:
        check_shape("audio_character_matrix", inputs.matrix, (batch, streams, characters))
    elif streams != characters:
        raise InputError(
            f"{streams} speech streams for {characters} characters",
            "one stream per character, or an audio-character matrix",
            "pass silence for silent characters, or the matrix",
        )
