"""Encoded conditions of a denoising run, the prepared scene, and the batch of guidance branches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bya_core.errors import InputError
from bya_core.grid import TokenGrid
from bya_core.masks import MaskControl
from bya_core.models.kv_cache import KVCache
from bya_core.sampling.guidance import Branch
from bya_core.scene.types import Scene


@dataclass(frozen=True)
class Conditions:
    """Conditions of one clip, encoded once. Every tensor has a leading axis of 1.

    Args:
        text: prompt tokens [1, L, text_dim].
        latent_shape: (T, C, H, W) of the clip.
        negative_text: tokens of the negative prompt [1, L, text_dim]; required by guidance.
        face_tokens: [1, N, Q, kv] from `encode_faces`; None = no faces.
        dropped_face_tokens: tokens of all-zero face features; required by `drop_identity`.
        audio_tokens: [1, M, T, A, Da] from `encode_speech`; None = no speech.
        silent_audio_tokens: tokens of all-zero features, for branches without speech.
        audio_character_matrix: [1, M, N], 1 where a speech stream drives a character; None = identity.
        canvas_latents: reference portraits side by side [1, T, C, H, W]; None = zeros.
        first_frame_latents: first frame of the video [1, T, C, H, W]; None = zeros.
        mask_control: masks that override the router's; None = the router decides.
        speech_strength: [1, N], scale of the speech output per character; None = 1, as in training.
        inflate_audio_masks: whether background tokens attend to every speech; None = as in training.
        known_latents: clean latents [1, T, C, H, W] that are known: frames carried over from the previous window, or
            footage; None = none.
        known_mask: bool [T] or [T, H, W], the latent frames or cells of `known_latents` that are fixed.
        start: fraction of the steps that are skipped: the run starts from noisy `known_latents`; 0 = from noise.
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
    mask_control: MaskControl | None = None
    speech_strength: Tensor | None = None
    inflate_audio_masks: bool | None = None
    known_latents: Tensor | None = None
    known_mask: Tensor | None = None
    start: float = 0.0

    def __post_init__(self) -> None:
        for name in ("canvas_latents", "first_frame_latents", "known_latents"):
            latents = getattr(self, name)
            if latents is not None and tuple(latents.shape) != (1, *self.latent_shape):
                problem = f"{name} of shape {list(latents.shape)}"
                raise InputError(problem, f"{[1, *self.latent_shape]}", "encode it at the size of the video")
        matrix = self.audio_character_matrix
        if matrix is not None and self.face_tokens is not None and self.audio_tokens is not None:
            expected = (1, self.audio_tokens.shape[1], self.face_tokens.shape[1])
            if tuple(matrix.shape) != expected:
                problem = f"audio-character matrix of shape {list(matrix.shape[1:])}"
                hint = "provide one row per speech stream and one column per character"
                raise InputError(problem, f"{list(expected[1:])} (speech streams, characters)", hint)

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


@dataclass(frozen=True)
class Prepared:
    """An encoded scene, shared by router and sampler.

    Args:
        scene: the scene, with its final audio-character matrix.
        grid: token grid of the video.
        conditions: encoded inputs of the denoiser, without masks.
    """

    scene: Scene
    grid: TokenGrid
    conditions: Conditions


PER_BRANCH = frozenset(
    {"encoder_hidden_states", "face_tokens", "audio_tokens", "audio_character_matrix", "speech_strength"}
)
"""Keyword arguments of the transformer with a batch axis."""


@dataclass(frozen=True)
class BranchInputs:
    """Inputs of the transformer for K guidance branches, stacked along the batch axis.

    Args:
        image_latents: canvas and first-frame latents [K, T, 2 C, H, W], concatenated to the noisy latents.
        kwargs: keyword arguments of the transformer that are the same in every step.
        names: names of the branches.
    """

    image_latents: Tensor
    kwargs: dict[str, Any]
    names: tuple[str, ...]

    @cached_property
    def per_branch(self) -> tuple[BranchInputs, ...]:
        """Inputs of each branch alone."""
        return tuple(self._select(k) for k in range(len(self.names)))

    def _select(self, k: int) -> BranchInputs:
        kwargs = dict(self.kwargs)
        for name in PER_BRANCH & kwargs.keys():
            kwargs[name] = None if kwargs[name] is None else kwargs[name][k : k + 1]
        if kwargs.get("kv_cache") is not None:
            kwargs["kv_cache"] = type(kwargs["kv_cache"])()  # one cache per branch
        return BranchInputs(self.image_latents[k : k + 1], kwargs, self.names[k : k + 1])


def build_branch_inputs(
    conditions: Conditions,
    branches: tuple[Branch, ...],
    *,
    drop_identity: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> BranchInputs:
    """Stack the conditions of all guidance branches.

    Args:
        drop_identity: branches with the negative prompt also lose canvas, faces and audio-character matrix, but keep
            the first frame (`zero2cond` of the released code).

    Raises:
        InputError: a condition that a branch needs is missing.
    """
    prompt, speech = [branch.prompt for branch in branches], [branch.speech for branch in branches]
    identity = [branch.prompt or not drop_identity for branch in branches]
    texts = [_required(conditions, "text" if own else "negative_text")[0] for own in prompt]  # may differ in length

    def stack(name: str, fallback: str, present: list[bool]) -> Tensor | None:
        if getattr(conditions, name) is None:
            return None
        return torch.cat([_required(conditions, name if own else fallback) for own in present]).to(device, dtype)

    kwargs: dict[str, Any] = {
        "encoder_hidden_states": pad_sequence(texts, batch_first=True).to(device, dtype),
        "face_tokens": stack("face_tokens", "dropped_face_tokens", identity),
        "audio_tokens": stack("audio_tokens", "silent_audio_tokens", speech),
        "audio_character_matrix": None,
        "kv_cache": KVCache(),
    }
    if conditions.audio_tokens is not None:
        kwargs["audio_character_matrix"] = _matrices(conditions, identity, device)
        if conditions.speech_strength is not None:
            kwargs["speech_strength"] = conditions.speech_strength.to(device).expand(len(branches), -1)
        if conditions.inflate_audio_masks is not None:
            kwargs["inflate_audio_masks"] = conditions.inflate_audio_masks
    zeros = torch.zeros(1, *conditions.latent_shape)
    canvas = zeros if conditions.canvas_latents is None else conditions.canvas_latents
    frame = zeros if conditions.first_frame_latents is None else conditions.first_frame_latents
    canvases = torch.cat([canvas if own else torch.zeros_like(canvas) for own in identity])
    image_latents = torch.cat([canvases, frame.to(canvases).expand_as(canvases)], dim=2)
    return BranchInputs(image_latents.to(device, dtype), kwargs, tuple(branch.name for branch in branches))


def _matrices(conditions: Conditions, identity: list[bool], device: torch.device) -> Tensor | None:
    """Audio-character matrix of each branch [K, M, N]; zeros where the identity is dropped."""
    matrix = conditions.audio_character_matrix
    if matrix is None:
        if all(identity):
            return None
        matrix = torch.eye(_required(conditions, "audio_tokens").shape[1], conditions.characters)[None]
    return torch.cat([matrix.float() * own for own in identity]).to(device)


def _required(conditions: Conditions, name: str) -> Tensor:
    value = getattr(conditions, name)
    if value is None:
        raise InputError(f"conditions without {name}", f"{name}, required by guidance", "encode it or disable guidance")
    return value
