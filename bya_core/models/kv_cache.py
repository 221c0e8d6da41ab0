"""What face and speech layers read of a clip, computed once for all its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


class KVCache:
    """Keys and values of faces and speech, and what the router reads of faces, per layer.

    They depend neither on the noise nor on the timestep. They are kept as they come, so that a step with them equals a
    step without to the bit. Make one for a run and give it to each call of the transformer: it fills at first use, on
    the device that computes, and starts anew when other tensors or layers come. Tensors that are given must not be
    changed in place meanwhile, nor weights. Calls with gradients neither use nor fill it.

    Memory, in the dtype that computes, for B versions of the video in a batch (guidance has 2 or 3), N characters, M
    voices and T latent frames; published sizes in bfloat16, B = N = M = 2, T = 13 (49 frames):

    - faces: 21 layers x 2 B N x 32 x 2048 numbers = 22 MB
    - router: 21 layers x B N x 512 x 2048 numbers = 176 MB (for up to three characters; 5 MB each beyond)
    - speech: 42 layers x 2 B M T x 32 x 3072 numbers = 859 MB

    What it saves there is about 1.1 of 800 TFLOP a step. Where memory is short, give None instead, or say so once by
    the transformer's `use_kv_cache`, as every rung of the memory ladder below the first does.
    """

    def __init__(self) -> None:
        self._of: tuple[Any, ...] = ()
        self._kept: dict[tuple[str, int], tuple[Tensor, ...]] = {}

    def begin(self, *of: Any) -> None:
        """A call with these tensors and layers; other ones than in the call before empty it."""
        if len(of) != len(self._of) or any(one is not other for one, other in zip(of, self._of, strict=True)):
            self.clear()
            self._of = of

    def get(self, part: str, layer: int, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What layer `layer` of `part` reads; made if it is not there."""
        if (part, layer) not in self._kept:
            self._kept[part, layer] = make()
        return self._kept[part, layer]

    def clear(self) -> None:
        """Give the memory back."""
        self._of = ()
        self._kept.clear()

    @property
    def bytes(self) -> int:
        """Bytes that are held now."""
        return sum(tensor.nbytes for kept in self._kept.values() for tensor in kept)
