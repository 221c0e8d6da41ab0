"""Where conditions meet the video: one object per forward call that hands each block what it injects.

It lives as long as one call of the transformer. What blocks record here (masks) is added, never replaced,
so a block that gradient checkpointing runs again leaves everything as it was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bya_core.grid import TokenGrid
from bya_core.masks import audio_masks, blend_masks
from bya_core.models.kv_cache import KVCache
from bya_core.models.token_pruning import TokenPruning


@dataclass(frozen=True)
class LayerSchedule:
    """Which blocks are injected.

    Args:
        num_blocks: blocks of the transformer.
        start: first block that may be injected.
        face_every, audio_every: intervals from there.
    """

    num_blocks: int
    start: int
    face_every: int
    audio_every: int

    def face(self, block: int) -> int | None:
        """Index of the face layer in `block`, or None."""
        step = block - self.start
        return step // self.face_every if step >= 0 and step % self.face_every == 0 else None

    def audio(self, block: int) -> int | None:
        """Index of the speech layer in `block`, or None."""
        step = block - self.start
        return step // self.audio_every if step >= 0 and step % self.audio_every == 0 else None

    def latest_face(self, block: int) -> int:
        """Index of the face layer in `block` or the nearest one before it."""
        return (block - self.start) // self.face_every

    @property
    def face_layers(self) -> int:
        """Number of face layers."""
        return max(0, -(-(self.num_blocks - self.start) // self.face_every))

    @property
    def audio_layers(self) -> int:
        """Number of speech layers."""
        return max(0, -(-(self.num_blocks - self.start) // self.audio_every))


@dataclass
class BlockConditioning:
    """Conditions of one forward call.

    Args:
        face_tokens: [B, N, Q, kv] or None.
        audio_tokens: [B, M, T, A, Da] or None.
        matrix: audio-character matrix [B, M, N] or None.
        mask_override: [B, N, T, h, w] or per face layer [R, B, N, T, h, w] or None.
        mask_override_strength: see `masks.blend_masks`.
        speech_strength: [B, N], how strongly speech acts on the tokens of each character; None = 1, as trained.
        kv_cache: keys and values of the clip; None = computed in this call.
        router_interval: the router predicts in every so many-th face layer, from the first; the others take over the most
            recent masks.
        prune_tokens: faces and speech act on tokens only that some mask reaches, see `TokenPruning`.
    """

    schedule: LayerSchedule
    grid: TokenGrid
    face_layers: nn.ModuleList | None
    audio_layers: nn.ModuleList | None
    router: Any
    router_layers: int
    router_detach: bool
    run_router: bool
    inflate: bool
    face_scale: float
    face_tokens: Tensor | None
    audio_tokens: Tensor | None
    matrix: Tensor | None
    mask_override: Tensor | None
    mask_override_strength: Tensor | float | None
    speech_strength: Tensor | None = None
    kv_cache: KVCache | None = None
    router_interval: int = 1
    prune_tokens: bool = False
    logits: dict[int, Tensor] = field(default_factory=dict)
    predicted: dict[int, Tensor] = field(default_factory=dict)
    used: dict[int, Tensor] = field(default_factory=dict)
    _reach: dict[tuple[str, int], tuple[Tensor, TokenPruning | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if torch.is_grad_enabled():  # what is kept would hold on to the graph of one step
            self.kv_cache = None
        if self.kv_cache is not None:
            self.kv_cache.begin(self.face_layers, self.audio_layers, self.router, self.face_tokens, self.audio_tokens)

    def for_block(self, block: int) -> Callable[[Tensor], Tensor] | None:
        """What block number `block` has to call on its output [B, S, D], or None."""
        face = self.schedule.face(block) if self.face_tokens is not None else None
        audio = self.schedule.audio(block) if self.audio_tokens is not None else None
        if face is None and audio is None:
            return None
        latest = self.schedule.latest_face(block)

        def inject(hidden_states: Tensor) -> Tensor:
            masks = None
            if face is not None:
                hidden_states, masks = self._inject_face(hidden_states, face)
            if audio is not None:
                masks = self._masks_at(latest) if masks is None else masks
                hidden_states = hidden_states + self._speech(hidden_states, audio, masks)
            return hidden_states

        return inject

    def _inject_face(self, hidden_states: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        assert self.face_layers is not None and self.face_tokens is not None
        attention: Any = self.face_layers[layer]
        tokens = self.face_tokens
        key, value = self._keep("face", layer, lambda: attention.keys_values(tokens))
        query = attention.queries(hidden_states) if self._predicts(layer) else None
        masks = self._route(query, key, layer)
        flat = self.grid.flatten(masks).to(hidden_states)
        reach = self._reached("face", masks, flat)
        if reach is None:
            query = attention.queries(hidden_states) if query is None else query
            out = attention(query, key, value, flat)
        else:
            query = attention.queries(reach.take(hidden_states)) if query is None else reach.take_query(query)
            out = reach.put(attention(query, key, value, reach.take_masks(flat)))
        self.used.setdefault(layer, masks)
        return hidden_states + (out if self.face_scale == 1.0 else self.face_scale * out), masks

    def _predicts(self, layer: int) -> bool:
        """Whether the router predicts in face layer `layer`."""
        if self.router is None or layer >= self.router_layers or layer % self.router_interval:
            return False
        return self.run_router or self._override_at(layer) is None or self.mask_override_strength is not None

    def _route(self, query: Tensor | None, key: Tensor, layer: int) -> Tensor:
        """Masks [B, N, T, h, w] that act in face layer `layer`; the query is needed where the router predicts."""
        override = self._override_at(layer)
        decided = override is not None and self.mask_override_strength is None
        routed: Tensor | None = None
        if self._predicts(layer):
            assert query is not None
            if self.router_detach:
                query, key = query.detach(), key.detach()
            logits, routed = self._ask(query, key, layer)
            self.logits.setdefault(layer, logits)
            self.predicted.setdefault(layer, routed)
        if decided:
            assert override is not None
            return override
        if routed is None:
            routed = self.predicted[max(index for index in self.predicted if index < layer)]
        # Where the router learns from its own loss only, the masks it acts with carry no gradient back to it.
        if self.router_detach and routed.requires_grad:
            routed = routed.detach()
        return blend_masks(routed, override, self.mask_override_strength)

    def _ask(self, query: Tensor, key: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Logits and masks by the router."""
        router, grid = self.router, self.grid
        if self.kv_cache is None or not hasattr(router, "prepare"):  # other things than our routers may stand there
            return router(query, key, layer, grid)
        prepared = self.kv_cache.get("router", layer, lambda: router.prepare(key, layer, grid.tokens))
        return router(query, key, layer, grid, prepared)

    def _keep(self, part: str, layer: int, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        return make() if self.kv_cache is None else self.kv_cache.get(part, layer, make)

    def _reached(self, what: str, masks: Tensor, acting: Tensor) -> TokenPruning | None:
        """Tokens that what acts [B, N, S] reaches; None = all. Found once per masks [B, N, T, h, w] behind it."""
        if not self.prune_tokens:
            return None
        known = self._reach.get((what, id(masks)))
        if known is None:  # the masks are held too, or their id could come again
            known = self._reach[what, id(masks)] = masks, TokenPruning.of(acting, self.grid.frames)
        return known[1]

    def _override_at(self, layer: int) -> Tensor | None:
        if self.mask_override is None:
            return None
        return self.mask_override[layer] if self.mask_override.dim() == 6 else self.mask_override

    def _masks_at(self, layer: int) -> Tensor:
        """Masks of face layer `layer`, or of the nearest before it that ran (a step cache may skip some)."""
        if self.face_tokens is None:
            override = self._override_at(layer)
            assert override is not None
            self.used.setdefault(layer, override)
            return override
        return self.used[max(index for index in self.used if index <= layer)]

    def _speech(self, hidden_states: Tensor, layer: int, masks: Tensor) -> Tensor:
        assert self.audio_layers is not None and self.audio_tokens is not None
        attention: Any = self.audio_layers[layer]
        tokens = self.audio_tokens
        pair = None  # then the layer computes them in its own forward pass, where its weights may be gathered (FSDP)
        if self.kv_cache is not None:
            pair = self.kv_cache.get("speech", layer, lambda: attention.keys_values(tokens))
        hearing = audio_masks(self.grid.flatten(masks).to(hidden_states), self.matrix, self.inflate)
        reach = self._reached("speech", masks, hearing)
        if reach is None:
            out = attention(hidden_states, tokens, hearing, pair=pair)
        else:
            out = reach.put(attention(reach.take(hidden_states), tokens, reach.take_masks(hearing), pair=pair))
        if self.speech_strength is None:
            return out
        change = torch.einsum("bn,bnthw->bthw", self.speech_strength - 1, masks.to(hidden_states))
        return out * (1 + self.grid.flatten(change)).unsqueeze(-1)

    def stacked(self, record: dict[int, Tensor]) -> Tensor | None:
        """[R, ...] in the order of the layers, or None where nothing was recorded."""
        return torch.stack([record[layer] for layer in sorted(record)]) if record else None
