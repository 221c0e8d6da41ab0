"""Conditioning without optimizations, as a reference for tests: equal up to rounding.

Queries are projected once per character and stream, outputs before their mask is applied, and nothing is cached.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from bya_core.masks import audio_masks
from bya_core.models import transformer as model_file
from bya_core.models.conditioning import BlockConditioning


class NaiveConditioning(BlockConditioning):
    """Applies conditions one character and one stream at a time."""

    def _add_face(self, hidden_states: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        assert self.face_tokens is not None
        attention: Any = self.model.perceiver_cross_attention[layer]
        count = self.face_tokens.shape[1]
        queries = [attention.queries(hidden_states) for _ in range(count)]
        pairs = [attention.keys_values(self.face_tokens[:, n : n + 1]) for n in range(count)]
        self._others = queries[1:]
        masks = self._masks(queries[0], torch.cat([key for key, _ in pairs], dim=1), layer)
        flat = self.grid.flatten(masks).to(hidden_states)
        added = torch.zeros_like(hidden_states)
        for n, (query, (key, value)) in enumerate(zip(queries, pairs, strict=True)):
            weights = (query @ key[:, 0].transpose(-1, -2) * attention.scale).softmax(dim=-1)
            out = attention.to_out(rearrange(weights @ value[:, 0], "b h s d -> b s (h d)"))
            added = added + flat[:, n].unsqueeze(-1) * out
        self.used.setdefault(layer, masks)
        return hidden_states + self.model.config.local_face_scale * added, masks

    def _run_router(self, query: Tensor, key: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        router: Any = self.model.router
        return router(query, key, layer, self.grid, router.prepare_keys(key, layer, 0))  # tokens = 0: no folding

    def _masks(self, query: Tensor | None, key: Tensor, layer: int) -> Tensor:
        if self._predicts(layer):
            router: Any = self.model.router
            for other in self._others:  # the router itself projects the first one
                router.to_q[layer](router.norm_q(rearrange(other, "b h s d -> b s (d h)")))
        return super()._masks(query, key, layer)

    def _speech(self, hidden_states: Tensor, layer: int, masks: Tensor) -> Tensor:
        assert self.audio_tokens is not None
        block: Any = self.model.audio_model.layers[layer]
        attn = block.attn
        stream_masks = audio_masks(self.grid.flatten(masks).to(hidden_states), self.matrix, self.inflate)
        added = torch.zeros_like(hidden_states)
        for m in range(self.audio_tokens.shape[1]):
            tokens = self.audio_tokens[:, m]  # [B, T, A, Da]
            query = attn.to_q(block.norm_q(hidden_states))
            query = rearrange(query, "b (t p) (h d) -> b t h p d", t=tokens.shape[1], h=attn.heads)
            key, value = (
                rearrange(f(tokens), "b t a (h d) -> b t h a d", h=attn.heads) for f in (attn.to_k, attn.to_v)
            )
            weights = (query @ key.transpose(-1, -2) * attn.scale).softmax(dim=-1)
            out = attn.to_out[0](rearrange(weights @ value, "b t h p d -> b (t p) (h d)"))
            added = added + stream_masks[:, m].unsqueeze(-1) * out
        return added


@contextmanager
def naive() -> Iterator[None]:
    """Transformers use `NaiveConditioning` inside the context."""
    original = model_file.BlockConditioning
    model_file.BlockConditioning = NaiveConditioning  # type: ignore[misc]
    try:
        yield
    finally:
        model_file.BlockConditioning = original  # type: ignore[misc]
