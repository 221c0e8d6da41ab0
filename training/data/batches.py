"""Batches of encoded clips.

A batch is a dictionary of tensors of K clips:

    latents [K,T,C,H,W]   canvas [K,C,H,W]   first_frame [K,C,H,W]   text [K,L,text_dim]
    masks [K,N,T,h,w] uint8 (255 = inside)   emphasis [K,T,H,W] uint8 (255 = most important)
    identity [K,N,id_dim] hidden [K,N,layers,P,vit_dim] speech [K,N,F+4,blocks,channels] seed [K]

Audio stream k belongs to character k; listeners have encoded silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Batch = dict[str, Tensor]


class Clips(Protocol):
    """A source of batches. Batch k depends on (seed, k) alone, so that runs can resume at any step."""

    @property
    def clips(self) -> int:
        """Number of clips."""
        ...

    def batches(self, size: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Iterate over batches without end.

        Args:
            size: batch size of the smallest clips; larger clips come in batches with about as many latent cells.
            seed: random seed of the order.
            start: number of the first batch.
            rank, world_size: only load part `rank` of `world_size` nearly equal parts of every batch; part r of a batch
                of K clips starts at r * K // world_size.
        """
        ...


def local_part(items: Any, rank: int, world_size: int) -> Any:
    """Part `rank` of `world_size` nearly equal parts of a sequence."""
    return items[rank * len(items) // world_size : (rank + 1) * len(items) // world_size]


def stack(clips: Sequence[Batch]) -> Batch:
    """Stack clips of equal shape to a batch, which is empty for no clips."""
    return {name: torch.stack([clip[name] for clip in clips]) for name in (clips[0] if clips else ())}


def trim_padding(text: Tensor, multiple: int) -> Tensor:
    """Remove the zeros after the longest prompt of [B, L, C]; the length is rounded up to a multiple of `multiple`."""
    used = text.abs().amax((0, 2)).nonzero()
    longest = int(used.amax()) + 1 if len(used) else 1
    return text[:, : math.ceil(longest / multiple) * multiple]


def as_float(batch: Batch, device: torch.device | str = "cpu") -> Batch:
    """Convert a batch to float32, with masks and emphasis in 0..1."""
    moved = {name: tensor.to(device) for name, tensor in batch.items() if name != "seed"}
    return {name: t.float() / 255.0 if t.dtype == torch.uint8 else t.float() for name, t in moved.items()}
