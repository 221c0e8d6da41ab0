"""Clips ready for training: encoded once, kept on disk, read in batches of one shape.

A data folder holds `*.safetensors` shards. All clips of a shard have the same number of characters and frames; a
shard's tensors are (K clips, see the shape alphabet of the design):

    latents [K,T,C,H,W]   canvas [K,C,H,W]   first_frame [K,C,H,W]   text [K,L,text_dim]
    masks [K,N,T,h,w] uint8 (255 = covered)  emphasis [K,T,H,W] uint8 (255 = most important)
    identity [K,N,id_dim] hidden [K,N,layers,P,vit_dim] speech [K,N,F+4,blocks,channels] seed [K]

Stream k belongs to character k; a listener's stream is encoded silence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from bya_core.errors import InputError

Batch = dict[str, Tensor]


class ClipFolder:
    """All shards of a folder and its subfolders, in memory as they are stored.

    They are grouped by what must be equal in a batch: (characters, latent frames, latent rows, latent columns).

    Raises:
        InputError: a folder without shards.
    """

    def __init__(self, folder: Path | str) -> None:
        paths = sorted(Path(folder).rglob("*.safetensors"))
        if not paths:
            raise InputError(f"data folder {str(folder)!r} without shards", "*.safetensors files", "make them first")
        groups: dict[tuple[int, int, int, int], list[Batch]] = {}
        for path in paths:
            with safe_open(path, framework="pt") as shard:
                tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 - not a dict
            _, frames, _, height, width = tensors["latents"].shape
            key = (tensors["masks"].shape[1], frames, height, width)
            groups.setdefault(key, []).append(tensors)
        self.groups = {
            key: {name: torch.cat([part[name] for part in parts]) for name in parts[0]} for key, parts in groups.items()
        }

    @property
    def clips(self) -> int:
        """Number of clips."""
        return sum(len(group["latents"]) for group in self.groups.values())

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Endless batches in an order fixed by `seed`, beginning with batch number `start`.

        `size` is for the smallest clips; longer or larger ones come in batches with about as many latent cells. Groups
        are drawn by the number of their cells. Clips are taken as stored: their makers must not tie slots to sides.
        """
        keys = sorted(self.groups)
        cells = {key: math.prod(key[1:]) for key in keys}
        smallest = min(cells.values())
        weights = torch.tensor([len(self.groups[key]["latents"]) * cells[key] for key in keys], dtype=torch.float64)
        number = start
        while True:
            rng = torch.Generator().manual_seed(seed * 1_000_003 + number)
            key = keys[int(torch.multinomial(weights, 1, generator=rng))]
            group = self.groups[key]
            count = max(1, round(size * smallest / cells[key]))
            chosen = torch.randint(len(group["latents"]), (count,), generator=rng)
            yield {name: tensor[chosen] for name, tensor in group.items()}
            number += 1


def as_float(batch: Batch, device: torch.device | str = "cpu") -> Batch:
    """The batch as the trainer wants it: float32, masks and emphasis in 0..1."""
    ready = {}
    for name, tensor in batch.items():
        tensor = tensor.to(device)
        if name == "seed":
            continue
        ready[name] = tensor.float() / 255.0 if tensor.dtype == torch.uint8 else tensor.float()
    return ready
