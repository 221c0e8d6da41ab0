"""Cache of the keys and values that face and speech layers read, valid for all denoising steps of a clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


class KVCache:
    """Keys and values of face tokens and audio tokens, and the router's projected face keys, per layer.

    They depend neither on the noise nor on the timestep. Create one cache per run and pass it to every call of the
    transformer as `kv_cache`. Entries are stored as computed, so that results are bit-identical with and without it.
    The cache is filled on first use and cleared as soon as other tensors or layers are passed. Do not modify the
    condition tensors or weights in place while it is in use. Calls with gradients neither read nor fill it.

    Memory in the compute dtype for batch size B (2 or 3 with guidance), N characters, M speech streams and T latent
    frames; published sizes in bfloat16, B = N = M = 2, T = 13 (49 frames):

    - faces: 21 layers x 2 B N x 32 x 2048 numbers = 22 MB
    - router: 21 layers x B N x 512 x 2048 numbers = 176 MB (for up to three characters; 5 MB each beyond)
    - speech: 42 layers x 2 B M T x 32 x 3072 numbers = 859 MB

    It saves about 1.1 of 800 TFLOP per step. If memory is short, pass None or set the transformer's `use_kv_cache` to
    False, as all offloading modes do.
    """

    def __init__(self) -> None:
        self._sources: tuple[Any, ...] = ()
        self._entries: dict[tuple[str, int], tuple[Tensor, ...]] = {}

    def begin(self, *sources: Any) -> None:
        """Start a call; clears the cache unless `sources` are the same objects as in the previous call."""
        same = len(sources) == len(self._sources)
        if not same or any(new is not old for new, old in zip(sources, self._sources, strict=True)):
            self.clear()
            self._sources = sources

    def get(self, kind: str, layer: int, compute: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Entry of layer `layer`, computed if it is missing."""
        if (kind, layer) not in self._entries:
            self._entries[kind, layer] = compute()
        return self._entries[kind, layer]

    def clear(self) -> None:
        """Release the memory."""
        self._sources = ()
        self._entries.clear()

    @property
    def bytes(self) -> int:
        """Size of all entries in bytes."""
        return sum(tensor.nbytes for entry in self._entries.values() for tensor in entry)
