"""Clips ready for training, in batches of one shape, from any of three sources (see `open_data`).

A batch is a dictionary of tensors of K clips (see the shape alphabet of the design):

    latents [K,T,C,H,W]   canvas [K,C,H,W]   first_frame [K,C,H,W]   text [K,L,text_dim]
    masks [K,N,T,h,w] uint8 (255 = covered)  emphasis [K,T,H,W] uint8 (255 = most important)
    identity [K,N,id_dim] hidden [K,N,layers,P,vit_dim] speech [K,N,F+4,blocks,channels] seed [K]

Stream k belongs to character k; a listener's stream is encoded silence.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bya_core.encoders.domains import CanvasLayout
from bya_core.errors import InputError
from training.data.buckets import Bucket, Fit, View, choose_bucket, own_bucket, resampled, window_starts
from training.data.cache import FeatureCache
from training.data.encode import FPS, ClipEncoder, Content, Encoders, content_of, load_encoders
from training.data.puppet_plan import PuppetPlan
from training.data.shards.index import ShardIndex
from training.data.shards.reader import OnBroken, files_of

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]
Group = tuple[int, int, int, int]  # what must be equal in a batch: characters, latent frames, latent rows and columns
OPEN_FILES = 256


class Clips(Protocol):
    """A source of batches. Batch number k depends on (seed, k) only, so order survives restarts."""

    @property
    def clips(self) -> int:
        """Number of clips."""
        ...

    def batches(self, size: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Endless batches from batch number `start` on.

        Args:
            size: clips in a batch of the smallest; longer or larger ones come in batches with about as many cells.
            seed: fixes the order.
            rank, world_size: only load part `rank` of `world_size` nearly equal parts of every batch; part r of a batch
                of K clips starts at r * K // world_size.
        """
        ...


def open_data(
    source: Path | str,
    encoders: Encoders | Path | str | None = None,
    *,
    buckets: Sequence[Bucket | str] = (),
    cache: Path | str | None = None,
    on_broken: OnBroken = "error",
    fit: Fit = "cover",
    patch: int = 2,
    device: torch.device | str = "cpu",
    canvas: CanvasLayout = "row",
) -> Clips:
    """Clips to train from.

    Args:
        source: a folder of encoded clips (*.safetensors, made for one model), a folder of tar shards of undecoded ones
            (docs/reference/shards.md), or drawn ones such as "puppets:n=1-4,frames=17" (`training.data.puppet_plan.PuppetPlan`).
        encoders: of the model that is trained, for the last two: a `ModelBundle` or the like, a name or folder for
            `load_encoders`, or None = those of the toy model for puppets.
        buckets: lengths and sizes to train at, such as "49x480x720"; none = each clip's own, as the grid allows (at
            most the native length of a `ModelBundle`).
        cache: folder for encoded features; None = `cache` beside the shards, nowhere for puppets.
        on_broken: "skip" replaces clips that cannot be used by others; how many and why is in `.skipped`.
        fit: how pictures get the shape of a bucket.
        patch: latent cells per token and side of the model.
        device: where the encoders run.
        canvas: "released" for a model of the official flavour.

    Raises:
        InputError: nothing there, no encoders, or clips that do not fit the buckets.
    """
    drawn = str(source).partition(":")[0] == "puppets" and not Path(source).is_dir()
    if not drawn and Path(source).is_dir() and not files_of(source, ".tar") and files_of(source, ".safetensors"):
        return ClipFolder(source)
    if encoders is None and not drawn:
        came = f"undecoded clips in {str(source)!r} without encoders"
        raise InputError(came, "those of the model that is trained", "name the model, such as toy or official")
    if encoders is None or isinstance(encoders, str | Path):
        encoders = load_encoders(encoders or "toy")
    folder = Path(source) if not drawn else None
    kept = FeatureCache(cache or (None if folder is None else (folder if folder.is_dir() else folder.parent) / "cache"))
    skipped: list[str] = []
    clips: _Drawn | ShardIndex
    clips = _Drawn(PuppetPlan.parse(str(source))) if folder is None else ShardIndex(folder, kept, on_broken, skipped)
    wanted = [Bucket.parse(b) if isinstance(b, str) else b for b in buckets]
    encoder = ClipEncoder(encoders, kept, patch, fit, device, canvas)
    return EncodedClips(clips, encoder, wanted, on_broken, skipped)


class ClipFolder:
    """Encoded clips: all `*.safetensors` of a folder and its subfolders, with the tensors of a batch.

    All clips of a file have the same number of characters and frames. Files stay on disk (memory-mapped); only what a
    batch needs is read.

    Raises:
        InputError: a folder without such files, or with one that cannot be read.
    """

    def __init__(self, folder: Path | str) -> None:
        paths = files_of(folder, ".safetensors")
        if not paths:
            raise InputError(f"data folder {str(folder)!r} without shards", "*.safetensors files", "make them first")
        self.groups: dict[Group, list[tuple[Path, int]]] = {}
        for path in paths:
            try:
                with safe_open(path, framework="pt") as file:
                    count, frames, _, height, width = file.get_slice("latents").get_shape()
                    characters = file.get_slice("masks").get_shape()[1]
            except (SafetensorError, OSError, ValueError) as error:
                came = f"the data file {path} cannot be read ({error})"
                raise InputError(came, "encoded clips", "make it again or take it out of the folder") from error
            self.groups.setdefault((characters, frames, height, width), []).append((path, count))
        self._open = lru_cache(OPEN_FILES)(lambda path: safe_open(path, framework="pt"))

    @property
    def clips(self) -> int:
        """Number of clips."""
        return sum(count for files in self.groups.values() for _, count in files)

    def batches(self, size: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """See `Clips`. Groups are drawn by the number of their cells, clips with replacement.

        Clips are taken as stored: their makers must not tie slots to sides.
        """
        keys = sorted(self.groups)
        ends = {key: list(accumulate(count for _, count in self.groups[key])) for key in keys}
        cells = {key: math.prod(key[1:]) for key in keys}
        smallest = min(cells.values())
        weights = torch.tensor([ends[key][-1] * cells[key] for key in keys], dtype=torch.float64)
        number = start
        while True:
            rng = torch.Generator().manual_seed(seed * 1_000_003 + number)
            key = keys[int(torch.multinomial(weights, 1, generator=rng))]
            count = max(1, round(size * smallest / cells[key]))
            chosen = torch.randint(ends[key][-1], (count,), generator=rng).tolist()
            yield _stack([self._clip(key, ends[key], clip) for clip in _local(chosen, rank, world_size)])
            number += 1

    def _clip(self, key: Group, ends: list[int], number: int) -> Batch:
        """The tensors of one clip of a group."""
        place = bisect_right(ends, number)
        path, count = self.groups[key][place]
        row = number - (ends[place] - count)
        file = self._open(path)
        return {name: file.get_slice(name)[row : row + 1][0] for name in file.keys()}  # noqa: SIM118 - not a dict


class _Drawn:
    """Puppets as `EncodedClips` wants its clips."""

    def __init__(self, plan: PuppetPlan) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return self.plan.clips

    def shape(self, number: int) -> tuple[int, int, int, int, float]:
        return (*self.plan.shape(number), FPS)

    def content(self, number: int) -> Content:
        return content_of(self.plan.clip(number))


class EncodedClips:
    """Clips that are encoded when they are needed, each seen once in every epoch.

    Clips longer than their bucket are seen through several windows, which count as clips. An epoch's order is drawn
    anew from (seed, epoch); a group's last batch is filled up from its first clips.

    Args:
        source: clips by number.
        encoder: makes their tensors.
        buckets: what they are brought to; none = each one's own size.
        on_broken: what to do with clips that cannot be used.
        skipped: takes up why clips were left out.

    Raises:
        InputError: no clip fits.
    """

    def __init__(
        self,
        source: _Drawn | ShardIndex,
        encoder: ClipEncoder,
        buckets: Sequence[Bucket] = (),
        on_broken: OnBroken = "error",
        skipped: list[str] | None = None,
    ) -> None:
        self.source, self.encoder, self.on_broken = source, encoder, on_broken
        self.skipped = [] if skipped is None else skipped
        self.cache = encoder.cache
        codec = encoder.encoders.codec
        native = getattr(encoder.encoders, "native", None)
        longest = None if native is None else int(native.num_frames)
        unit = encoder.patch * codec.space_factor
        found: dict[tuple[int, Bucket], list[tuple[int, int]]] = {}
        left_out = 0
        for number in range(len(source)):
            characters, frames, height, width, fps = source.shape(number)
            length = resampled(frames, fps, FPS)
            bucket = (
                choose_bucket(length, height, width, buckets)
                if buckets
                else own_bucket(length, height, width, unit, codec.time_factor, longest)
            )
            if bucket is None:
                left_out += 1
                continue
            views = found.setdefault((characters, bucket), [])
            views.extend((number, start) for start in window_starts(length, bucket.frames))
        if left_out:
            log.warning("%d of %d clips are too short or too small and left out", left_out, len(source))
        if not found:
            came = f"{len(source)} clips of which none fits"
            raise InputError(came, f"clips at least as long as one of {buckets or 'the grid'}", "give smaller buckets")
        self.groups = {key: np.array(views, np.int64) for key, views in sorted(found.items())}
        self._shape = {(n, b): encoder.grid(View(0, b)).latent_shape(1) for n, b in self.groups}
        self._order = lru_cache(2)(self._epoch)

    @property
    def clips(self) -> int:
        """Number of clips; every window of a longer one counts."""
        return sum(len(views) for views in self.groups.values())

    def batches(self, size: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """See `Clips`."""
        number = start
        while True:
            key, chosen = self._chosen(size, seed, number)
            yield _stack([self._clip(key, int(view)) for view in _local(chosen, rank, world_size)])
            number += 1

    def encode_all(self, rank: int = 0, world_size: int = 1) -> Iterator[tuple[int, int]]:
        """Encode every clip of a part once, to fill the cache; yields (done, total) after each."""
        everything = [(key, number) for key, views in self.groups.items() for number in range(len(views))]
        mine = _local(everything, rank, world_size)
        for done, (key, number) in enumerate(mine, 1):
            self._clip(key, number)
            yield done, len(mine)

    def _chosen(self, size: int, seed: int, number: int) -> tuple[tuple[int, Bucket], np.ndarray]:
        """Group and clips of batch `number`."""
        per_epoch = len(self._order(size, seed, 0))
        epoch, place = divmod(number, per_epoch)
        return self._order(size, seed, epoch)[place]

    def _epoch(self, size: int, seed: int, epoch: int) -> list[tuple[tuple[int, Bucket], np.ndarray]]:
        """All batches of one epoch: (group, numbers of clips in it)."""
        rng = np.random.default_rng([seed, epoch])
        cells = {key: math.prod(shape) for key, shape in self._shape.items()}
        smallest = min(cells.values())
        batches = []
        for key, views in self.groups.items():
            count = max(1, round(size * smallest / cells[key]))
            order = rng.permutation(len(views))
            order = np.resize(order, -(-len(order) // count) * count)
            batches += [(key, chosen) for chosen in order.reshape(-1, count)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def _clip(self, key: tuple[int, Bucket], number: int) -> Batch:
        """The tensors of one clip; with "skip", of the next one of its group that can be used."""
        views = self.groups[key]
        for step in range(len(views)):
            clip, start = (int(value) for value in views[(number + step) % len(views)])
            try:
                return self.encoder.encode(self.source.content(clip), View(start, key[1]))
            except InputError as error:
                if self.on_broken == "error":
                    raise
                told = f"clip {clip}: {error.problem}"
                if told not in self.skipped:
                    self.skipped.append(told)
                    log.warning("skipped: %s", told)
        raise InputError(f"{len(views)} clips of which none can be used", "at least one", "see the log")


def _local(items: Any, rank: int, world_size: int) -> Any:
    """Part `rank` of `world_size` nearly equal parts of a sequence."""
    return items[rank * len(items) // world_size : (rank + 1) * len(items) // world_size]


def _stack(clips: Sequence[Batch]) -> Batch:
    """Clips of one shape as a batch; of no clips, an empty one."""
    return {name: torch.stack([clip[name] for clip in clips]) for name in (clips[0] if clips else ())}


def as_float(batch: Batch, device: torch.device | str = "cpu") -> Batch:
    """The batch as the trainer wants it: float32, masks and emphasis in 0..1."""
    ready = {}
    for name, tensor in batch.items():
        tensor = tensor.to(device)
        if name == "seed":
            continue
        ready[name] = tensor.float() / 255.0 if tensor.dtype == torch.uint8 else tensor.float()
    return ready
