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


def check_inputs(latents: Tensor, text: Tensor, timestep: Tensor, inputs: BlockConditioning) -> None:
    """Check all inputs of one call of the transformer.

    Raises:
        InputError: the first input that does not fit the model or the other inputs.
    """
    batch, config = latents.shape[0], inputs.model.config
    check_shape("text", text, (batch, None, config.text_embed_dim))
    positions = config.use_learned_positional_embeddings or not config.use_rotary_positional_embeddings
    if positions and text.shape[1] > config.max_text_seq_length:
        limit = config.max_text_seq_length
        raise InputError(f"text of {text.shape[1]} tokens", f"at most {limit}", "shorten the prompt")
    check_shape("timestep", timestep, (batch,))
    if inputs.router_interval < 1:
        raise InputError(f"router_interval = {inputs.router_interval}", "an integer >= 1", "1 = in every layer")
    characters = _check_faces(batch, inputs)
    if inputs.audio_tokens is not None:
        _check_speech(batch, characters, inputs.audio_tokens, inputs)


def _check_faces(batch: int, inputs: BlockConditioning) -> int | None:
    """Check faces and masks; returns the number of characters, or None without either."""
    characters, model, faces, masks = None, inputs.model, inputs.face_tokens, inputs.mask_override
    if faces is not None:
        check_path(model.perceiver_cross_attention, "face tokens", "face")
        kv_dim = model.config.cross_attn_kv_dim or model.config.lfe_output_dim
        check_shape("face_tokens", faces, (batch, None, model.config.lfe_num_queries, kv_dim))
        characters = faces.shape[1]
    if masks is not None:
        layers = (model.schedule.face_layers,) if masks.dim() == 6 else ()
        check_shape("mask_override", masks, (*layers, batch, characters, *inputs.grid.shape))
        characters = masks.shape[-4]
    elif faces is not None and model.router is None:
        raise InputError("faces without masks", "mask_override, as this model has no router", "pass masks")
    if characters == 0:
        raise InputError("0 characters", "at least one", "omit faces and masks, or add a character")
    return characters


def _check_speech(batch: int, characters: int | None, tokens: Tensor, inputs: BlockConditioning) -> None:
    """Check audio tokens, the audio-character matrix and the strength of speech against faces or masks."""
    check_path(inputs.model.audio_model, "audio tokens", "speech")
    if characters is None:
        raise InputError("speech without faces or masks", "one of them", "pass face_tokens or mask_override")
    check_shape("audio_tokens", tokens, (batch, None, inputs.grid.frames, None, inputs.model.config.audio_dim))
    streams = tokens.shape[1]
    if inputs.matrix is not None:
        check_shape("audio_character_matrix", inputs.matrix, (batch, streams, characters))
    elif streams != characters:
        problem = f"{streams} speech streams for {characters} characters"
        hint = "pass silence for silent characters, or the matrix"
        raise InputError(problem, "one stream per character, or an audio-character matrix", hint)
    if inputs.speech_strength is not None:
        check_shape("speech_strength", inputs.speech_strength, (batch, characters))
