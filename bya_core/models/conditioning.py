"""Face and speech conditioning of the transformer blocks: which block gets what, with which masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bya_core.grid import TokenGrid
from bya_core.masks import audio_masks, blend_masks
from bya_core.models.kv_cache import KVCache
from bya_core.models.token_pruning import TokenPruning


@dataclass(frozen=True)
class LayerSchedule:
    """Which blocks have a face layer or a speech layer.

    Args:
        num_blocks: blocks of the transformer.
        start: first block with conditioning.
        face_interval, audio_interval: a layer in every n-th block from there.
    """

    num_blocks: int
    start: int
    face_interval: int
    audio_interval: int

    def face(self, block: int) -> int | None:
        """Index of the face layer in `block`, or None."""
        return self._layer(block, self.face_interval)

    def audio(self, block: int) -> int | None:
        """Index of the speech layer in `block`, or None."""
        return self._layer(block, self.audio_interval)

    def latest_face(self, block: int) -> int:
        """Index of the face layer in `block` or the nearest one before it."""
        return (block - self.start) // self.face_interval

    @property
    def face_layers(self) -> int:
        """Number of face layers."""
        return len(range(self.start, self.num_blocks, self.face_interval))

    @property
    def audio_layers(self) -> int:
        """Number of speech layers."""
        return len(range(self.start, self.num_blocks, self.audio_interval))

    def _layer(self, block: int, interval: int) -> int | None:
        layer, remainder = divmod(block - self.start, interval)
        return layer if layer >= 0 and remainder == 0 else None


@dataclass
class BlockConditioning:
    """Conditions of one forward call, applied block by block.

    Masks are recorded with `setdefault`, so that a block recomputed by gradient checkpointing changes nothing.

    Args:
        model: the transformer.
        grid: token grid of the call.
        face_tokens: [B, N, Q, kv] or None.
        audio_tokens: [B, M, T, A, Da] or None.
        matrix: audio-character matrix [B, M, N] or None.
        mask_override: [B, N, T, h, w] or per face layer [R, B, N, T, h, w] or None.
        mask_override_strength: see `masks.blend_masks`.
        inflate: see `masks.audio_masks`.
        others: as in the `forward` of the transformer.
    """

    model: Any
    grid: TokenGrid
    face_tokens: Tensor | None
    audio_tokens: Tensor | None
    matrix: Tensor | None = None
    mask_override: Tensor | None = None
    mask_override_strength: Tensor | float | None = None
    speech_strength: Tensor | None = None
    inflate: bool = True
    run_router: bool = False
    router_interval: int = 1
    prune_tokens: bool = False
    kv_cache: KVCache | None = None
    logits: dict[int, Tensor] = field(default_factory=dict)
    predicted: dict[int, Tensor] = field(default_factory=dict)
    used: dict[int, Tensor] = field(default_factory=dict)
    _prunings: dict[tuple[str, int], tuple[Tensor, TokenPruning | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if torch.is_grad_enabled():  # cached tensors would keep the autograd graph of one step alive
            self.kv_cache = None
        if self.kv_cache is not None:
            self.kv_cache.begin(self.model, self.face_tokens, self.audio_tokens)

    def for_block(self, block: int) -> Callable[[Tensor], Tensor] | None:
        """Function that block number `block` applies to its output [B, S, D], or None."""
        face = self.model.schedule.face(block) if self.face_tokens is not None else None
        audio = self.model.schedule.audio(block) if self.audio_tokens is not None else None
        if face is None and audio is None:
            return None
        latest = self.model.schedule.latest_face(block)

        def inject(hidden_states: Tensor) -> Tensor:
            masks = None
            if face is not None:
                hidden_states, masks = self._add_face(hidden_states, face)
            if audio is not None:
                masks = self._masks_at(latest) if masks is None else masks
                hidden_states = hidden_states + self._speech(hidden_states, audio, masks)
            return hidden_states

        return inject

    def stacked(self, record: dict[int, Tensor]) -> Tensor | None:
        """[R, ...] in layer order, or None if nothing was recorded."""
        return torch.stack([record[layer] for layer in sorted(record)]) if record else None

    def _add_face(self, hidden_states: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Face cross-attention of one layer (eq. 7): hidden_states with its output added, and the masks."""
        attention, tokens = self.model.perceiver_cross_attention[layer], self.face_tokens
        key, value = self._cached("face", layer, lambda: attention.keys_values(tokens))
        query = attention.queries(hidden_states) if self._predicts(layer) else None
        masks = self._masks(query, key, layer)
        flat = self.grid.flatten(masks).to(hidden_states)
        pruning = self._pruning("face", masks, flat)
        if pruning is None:
            query = attention.queries(hidden_states) if query is None else query
            out = attention(query, key, value, flat)
        else:
            query = attention.queries(pruning.gather(hidden_states)) if query is None else pruning.gather_query(query)
            out = pruning.scatter(attention(query, key, value, pruning.gather_masks(flat)))
        self.used.setdefault(layer, masks)
        scale = self.model.config.local_face_scale
        return hidden_states + (out if scale == 1.0 else scale * out), masks

    def _predicts(self, layer: int) -> bool:
        """Whether the router predicts in face layer `layer`."""
        if self.model.router is None or layer >= self.model.router_layers or layer % self.router_interval:
            return False
        return self.run_router or self._override_at(layer) is None or self.mask_override_strength is not None

    def _masks(self, query: Tensor | None, key: Tensor, layer: int) -> Tensor:
        """Masks [B, N, T, h, w] of face layer `layer`; `query` is required where the router predicts."""
        override = self._override_at(layer)
        predicted: Tensor | None = None
        if self._predicts(layer):
            assert query is not None
            if self.model.config.router_detach:
                query, key = query.detach(), key.detach()
            logits, predicted = self._run_router(query, key, layer)
            self.logits.setdefault(layer, logits)
            self.predicted.setdefault(layer, predicted)
        if override is not None and self.mask_override_strength is None:
            return override
        if predicted is None:
            predicted = self.predicted[max(index for index in self.predicted if index < layer)]
        if self.model.config.router_detach and predicted.requires_grad:  # only its own loss trains the router
            predicted = predicted.detach()
        return blend_masks(predicted, override, self.mask_override_strength)

    def _run_router(self, query: Tensor, key: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Logits and masks predicted by the router."""
        router, grid = self.model.router, self.grid
        if self.kv_cache is None or not hasattr(router, "prepare_keys"):  # also works with other routers
            return router(query, key, layer, grid)
        prepared = self.kv_cache.get("router", layer, lambda: router.prepare_keys(key, layer, grid.tokens))
        return router(query, key, layer, grid, prepared)

    def _cached(self, kind: str, layer: int, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return compute() if self.kv_cache is None else self.kv_cache.get(kind, layer, compute)

    def _pruning(self, kind: str, masks: Tensor, flat: Tensor) -> TokenPruning | None:
        """Selection of the tokens inside `flat` [B, N, S]; None = all. Computed once per `masks` [B, N, T, h, w]."""
        if not self.prune_tokens:
            return None
        entry = self._prunings.get((kind, id(masks)))
        if entry is None:  # holds a reference to the masks, so that their id stays unique
            entry = self._prunings[kind, id(masks)] = masks, TokenPruning.of(flat, self.grid.frames)
        return entry[1]

    def _override_at(self, layer: int) -> Tensor | None:
        if self.mask_override is None:
            return None
        return self.mask_override[layer] if self.mask_override.dim() == 6 else self.mask_override

    def _masks_at(self, layer: int) -> Tensor:
        """Masks of face layer `layer`, or of the nearest earlier one that ran (a step cache may skip layers)."""
        if self.face_tokens is None:
            override = self._override_at(layer)
            assert override is not None
            self.used.setdefault(layer, override)
            return override
        return self.used[max(index for index in self.used if index <= layer)]

    def _speech(self, hidden_states: Tensor, layer: int, masks: Tensor) -> Tensor:
        """Output [B, S, D] of the audio cross-attention of one layer (eq. 8)."""
        attention, tokens = self.model.audio_model.layers[layer], self.audio_tokens
        pair = None  # computed inside the layer's forward, where FSDP gathers its weights
        if self.kv_cache is not None:
            pair = self.kv_cache.get("speech", layer, lambda: attention.keys_values(tokens))
        flat = audio_masks(self.grid.flatten(masks).to(hidden_states), self.matrix, self.inflate)
        pruning = self._pruning("speech", masks, flat)
        if pruning is None:
            out = attention(hidden_states, tokens, flat, pair=pair)
        else:
            out = attention(pruning.gather(hidden_states), tokens, pruning.gather_masks(flat), pair=pair)
            out = pruning.scatter(out)
        if self.speech_strength is None:
            return out
        change = torch.einsum("bn,bnthw->bthw", self.speech_strength - 1, masks.to(hidden_states))
        return out * (1 + self.grid.flatten(change)).unsqueeze(-1)
