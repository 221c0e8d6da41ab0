"""Everything a denoising run is conditioned on, encoded once, and how it is laid out per guidance branch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bya_core.errors import InputError
from bya_core.masks import MaskControl
from bya_core.models.kv_cache import KVCache
from bya_core.sampling.guidance import Branch


@dataclass(frozen=True)
class Conditions:
    """Conditions of one clip. Every tensor has a leading axis of 1.

    Args:
        text: prompt tokens [1, L, text_dim].
        latent_shape: (T, C, H, W) of the clip.
        negative_text: tokens of the negative prompt [1, L, text_dim]; needed as soon as there is guidance.
        face_tokens: [1, N, Q, kv] from `encode_faces`; None = no faces.
        dropped_face_tokens: the same of all-zero face features; needed with `drop_identity` only.
        audio_tokens: [1, M, T, A, Da] from `encode_speech`; None = no speech.
        silent_audio_tokens: the same of all-zero features: what the branches without speech hear.
        audio_character_matrix: [1, M, N], which stream drives which character; None = stream k drives k.
        canvas_latents: reference portraits side by side [1, T, C, H, W]; None = zeros.
        first_frame_latents: the picture the video starts from [1, T, C, H, W]; None = zeros.
        image_rotary_emb: (cos, sin) of the token grid, each [S, head_dim].
        mask_control: masks that override the router's; None = the router decides.
        speech_strength: [1, N], scales what speech adds to each character; None = 1, as trained.
        inflate_audio_masks: whether tokens of nobody hear every voice; None = as the model was trained.
        known_latents: clean latents of frames that are done already [1, T, C, H, W]; None = none.
        known_mask: bool [T], the latent frames of `known_latents` that are fixed.
    """

    text: Tensor
    latent_shape: tuple[int, int, int, int]
    negative_text: Tensor | None = None
    face_tokens: Tensor | None = None
    dropped_face_tokens: Tensor | None = None
    audio_tokens: Tensor | None = None
    silent_audio_tokens: Tensor | None = None
    audio_character_matrix: Tensor | None = None
    canvas_latents: Tensor | None = None
    first_frame_latents: Tensor | None = None
    image_rotary_emb: tuple[Tensor, Tensor] | None = None
    mask_control: MaskControl | None = None
    speech_strength: Tensor | None = None
    inflate_audio_masks: bool | None = None
    known_latents: Tensor | None = None
    known_mask: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("canvas_latents", "first_frame_latents", "known_latents"):
            latents = getattr(self, name)
            if latents is not None and tuple(latents.shape) != (1, *self.latent_shape):
                raise InputError(
                    f"{name} of shape {tuple(latents.shape)}",
                    f"{(1, *self.latent_shape)}",
                    "encode it at the size of the video",
                )
        matrix = self.audio_character_matrix
        if matrix is not None and self.face_tokens is not None and self.audio_tokens is not None:
            expected = (1, self.audio_tokens.shape[1], self.face_tokens.shape[1])
            if tuple(matrix.shape) != expected:
                raise InputError(
                    f"audio-character matrix of shape {tuple(matrix.shape[1:])}",
                    f"{expected[1:]} (speech streams, characters)",
                    "give one row per speech stream and one column per character",
                )

    @property
    def has_speech(self) -> bool:
        return self.audio_tokens is not None

    @property
    def characters(self) -> int:
        """N; 0 without faces."""
        return 0 if self.face_tokens is None else self.face_tokens.shape[1]

    def mask_override(self, step: int, total: int) -> dict[str, Tensor | None]:
        """Arguments `mask_override` and `mask_override_strength` of the transformer in one step of `total`."""
        control = None if self.mask_control is None else self.mask_control.at(step / total)
        masks, strength = (None, None) if control is None else control
        return {
            "mask_override": None if masks is None else masks[None],
            "mask_override_strength": None if strength is None else strength[None],
        }


PER_BRANCH = frozenset(
    {"encoder_hidden_states", "face_tokens", "audio_tokens", "audio_character_matrix", "speech_strength"}
)
"""Keyword arguments of the transformer with one entry per branch."""


@dataclass(frozen=True)
class BranchInputs:
    """Conditions laid out along the batch, one entry per guidance branch (K of them).

    Args:
        images: canvas and first frame latents [K, T, 2 C, H, W], to be joined to the noisy latents.
        fixed: keyword arguments of the transformer that stay the same for every step.
        names: of the branches.
    """

    images: Tensor
    fixed: dict[str, Any]
    names: tuple[str, ...]

    @cached_property
    def apart(self) -> tuple[BranchInputs, ...]:
        """The same for each branch by itself; made once."""
        return tuple(self._only(k) for k in range(len(self.names)))

    def _only(self, k: int) -> BranchInputs:
        fixed = dict(self.fixed)
        for name in PER_BRANCH & fixed.keys():
            fixed[name] = None if fixed[name] is None else fixed[name][k : k + 1]
        if fixed.get("kv_cache") is not None:
            fixed["kv_cache"] = type(fixed["kv_cache"])()  # keys and values of one branch, not of all of them
        return BranchInputs(self.images[k : k + 1], fixed, self.names[k : k + 1])


def build_branch_inputs(
    conditions: Conditions,
    branches: tuple[Branch, ...],
    *,
    drop_identity: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> BranchInputs:
    """Batch of the conditions, one entry per branch.

    With `drop_identity` the branches with the negative prompt also lose the canvas, the faces and the
    audio-character matrix, but keep the first frame (as released).

    Raises:
        InputError: something a branch needs is missing.
    """
    dropped = [drop_identity and not branch.prompt for branch in branches]
    texts = [conditions.text if b.prompt else _needed(conditions, "negative_text") for b in branches]
    fixed: dict[str, Any] = {
        "encoder_hidden_states": torch.cat(texts).to(device, dtype),
        "image_rotary_emb": _rotary(conditions.image_rotary_emb, device),
        "face_tokens": None,
        "audio_tokens": None,
        "audio_character_matrix": None,
        "kv_cache": KVCache(),
    }
    if conditions.face_tokens is not None:
        faces = [_needed(conditions, "dropped_face_tokens") if d else conditions.face_tokens for d in dropped]
        fixed["face_tokens"] = torch.cat(faces).to(device, dtype)
    if conditions.audio_tokens is not None:
        heard = [conditions.audio_tokens if b.speech else _needed(conditions, "silent_audio_tokens") for b in branches]
        fixed["audio_tokens"] = torch.cat(heard).to(device, dtype)
        fixed["audio_character_matrix"] = _matrices(conditions, dropped, device)
        if conditions.speech_strength is not None:
            fixed["speech_strength"] = conditions.speech_strength.to(device).expand(len(branches), -1)
        if conditions.inflate_audio_masks is not None:
            fixed["inflate_audio_masks"] = conditions.inflate_audio_masks
    zeros = torch.zeros(1, *conditions.latent_shape)
    canvas = zeros if conditions.canvas_latents is None else conditions.canvas_latents
    frame = zeros if conditions.first_frame_latents is None else conditions.first_frame_latents
    canvases = torch.cat([torch.zeros_like(canvas) if d else canvas for d in dropped])
    images = torch.cat([canvases, frame.to(canvases).expand_as(canvases)], dim=2)
    return BranchInputs(images.to(device, dtype), fixed, tuple(branch.name for branch in branches))


def _matrices(conditions: Conditions, dropped: list[bool], device: torch.device) -> Tensor | None:
    matrix = conditions.audio_character_matrix
    if matrix is None:
        if not any(dropped):
            return None
        assert conditions.audio_tokens is not None
        matrix = torch.eye(conditions.audio_tokens.shape[1], conditions.characters)[None]
    matrix = matrix.float()
    return torch.cat([torch.zeros_like(matrix) if d else matrix for d in dropped]).to(device)


def _needed(conditions: Conditions, name: str) -> Tensor:
    value = getattr(conditions, name)
    if value is None:
        raise InputError(
            f"conditions without {name}", f"{name}, as guidance needs it", "encode it or turn guidance off"
        )
    return value


def _rotary(tables: tuple[Tensor, Tensor] | None, device: torch.device) -> tuple[Tensor, Tensor] | None:
    return None if tables is None else (tables[0].to(device), tables[1].to(device))
