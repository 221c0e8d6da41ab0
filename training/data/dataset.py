"""Batches of encoded clips from one of three sources (see `open_data`).

A batch is a dictionary of tensors of K clips:

    latents [K,T,C,H,W]   canvas [K,C,H,W]   first_frame [K,C,H,W]   text [K,L,text_dim]
    masks [K,N,T,h,w] uint8 (255 = inside)   emphasis [K,T,H,W] uint8 (255 = most important)
    identity [K,N,id_dim] hidden [K,N,layers,P,vit_dim] speech [K,N,F+4,blocks,channels] seed [K]

Audio stream k belongs to character k; listeners have encoded silence.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from bya_core.encoders.domains import CanvasLayout
from bya_core.errors import InputError
from training.data.buckets import Bucket, Fit, Window, choose_bucket, native_bucket, window_starts
from training.data.cache import FeatureCache
from training.data.clip import resampled_length
from training.data.encode import FPS, ClipEncoder, Encoders, load_encoders
from training.data.puppet_plan import PuppetPlan
from training.data.shards.index import ShardIndex
from training.data.shards.reader import OnBroken, list_files

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]
Group = tuple[int, int, int, int]  # shape of a batch: characters, latent frames, latent height and width
MAX_OPEN_FILES = 256


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
    length_fractions: Mapping[int, float] | None = None,
    in_memory: bool = False,
    text_multiple: int | None = None,
) -> Clips:
    """Open training data.

    Args:
        source: a folder of encoded clips (*.safetensors, for one model), a folder of tar shards of raw clips
            (docs/reference/shards.md), or puppets such as "puppets:n=1-4,frames=17" (see `PuppetPlan`).
        encoders: encoders of the model, for raw clips: a `ModelBundle`, or a name or folder for `load_encoders`. None =
            those of the toy model, for puppets only.
        buckets: lengths and sizes to train at, such as "49x480x720"; empty = the largest valid size of each clip (at
            most the native length of a `ModelBundle`).
        cache: folder of the encoded features; None = `cache` beside the shards, no cache for puppets.
        on_broken: "skip" replaces unusable clips by others and lists them in `.skipped`.
        fit: how images are fitted to a bucket.
        patch: patch size of the model.
        device: device of the encoders.
        canvas: "released" for a model of the official flavour.
        length_fractions, in_memory, text_multiple: see `ClipFolder`; ignored for raw clips and puppets.

    Raises:
        InputError: no data, no encoders, or no clip fits a bucket.
    """
    folder = Path(source)
    puppets = str(source).partition(":")[0] == "puppets" and not folder.is_dir()
    if not puppets and not list_files(folder, ".tar") and list_files(folder, ".safetensors"):
        return ClipFolder(folder, length_fractions, in_memory, text_multiple)
    if encoders is None and not puppets:
        problem = f"raw clips in {str(source)!r} without encoders"
        raise InputError(problem, "the encoders of the model", "name the model, such as toy or official")
    if encoders is None or isinstance(encoders, str | Path):
        encoders = load_encoders(encoders or "toy")
    if cache is None and not puppets:
        cache = (folder if folder.is_dir() else folder.parent) / "cache"
    features, skipped = FeatureCache(cache), list[str]()
    clips = PuppetPlan.parse(str(source)) if puppets else ShardIndex(folder, features, on_broken, skipped)
    encoder = ClipEncoder(encoders, features, patch, fit, device, canvas)
    chosen = [Bucket.parse(bucket) if isinstance(bucket, str) else bucket for bucket in buckets]
    return EncodedClips(clips, encoder, chosen, on_broken, skipped)


class ClipFolder:
    """Encoded clips in the `*.safetensors` files of a folder and its subfolders.

    All clips of a file have the same shapes. Files are memory-mapped, and only the clips of a batch are read.

    Args:
        folder: folder of the files.
        length_fractions: fraction of the batches by number of video frames; other lengths are ignored. Empty = in
            proportion to the latent cells.
        in_memory: load all clips at once.
        text_multiple: trim the zero padding of prompts to a multiple of this length, as the toy text encoder does with
            `pad_to_multiple_of`.

    Raises:
        InputError: no such file, an unreadable one, or a length without clips.
    """

    def __init__(
        self,
        folder: Path | str,
        length_fractions: Mapping[int, float] | None = None,
        in_memory: bool = False,
        text_multiple: int | None = None,
    ) -> None:
        paths = list_files(folder, ".safetensors")
        if not paths:
            raise InputError(f"data folder {str(folder)!r} without shards", "*.safetensors files", "create them first")
        self.groups: dict[Group, list[tuple[Path, int]]] = {}
        fractions = {length: fraction for length, fraction in (length_fractions or {}).items() if fraction > 0}
        lengths: dict[int, int] = {}  # latent frames -> video frames
        for path in paths:
            try:
                with safe_open(path, framework="pt") as file:
                    clips, frames, _, height, width = file.get_slice("latents").get_shape()
                    characters = file.get_slice("masks").get_shape()[1]
                    if fractions:
                        lengths[frames] = file.get_slice("speech").get_shape()[2] - 4
            except (SafetensorError, OSError, ValueError) as error:
                problem = f"{path} cannot be read ({error})"
                raise InputError(problem, "encoded clips", "create it again or remove it") from error
            if not fractions or lengths[frames] in fractions:
                self.groups.setdefault((characters, frames, height, width), []).append((path, clips))
        if missing := fractions.keys() - set(lengths.values()):
            problem = f"length_fractions with clips of {min(missing)} frames"
            known = ", ".join(map(str, sorted(set(lengths.values()))))
            raise InputError(problem, f"one of the lengths in {str(folder)!r}: {known}", "create such clips first")
        self._fractions = {frames: fractions[length] for frames, length in lengths.items() if length in fractions}
        self._text_multiple = text_multiple
        self._loaded: dict[Group, Batch] = {}
        for key, files in self.groups.items() if in_memory else ():
            parts = [load_file(path) for path, _ in files]
            self._loaded[key] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        self._open = lru_cache(MAX_OPEN_FILES)(lambda path: safe_open(path, framework="pt"))

    @property
    def clips(self) -> int:
        """Number of clips."""
        return sum(clips for files in self.groups.values() for _, clips in files)

    def batches(self, size: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """See `Clips`. Groups are sampled in proportion to their latent cells, clips with replacement.

        Characters are not shuffled: the data must not tie slots to positions.
        """
        keys = sorted(self.groups)
        ends = {key: list(accumulate(clips for _, clips in self.groups[key])) for key in keys}
        cells = {key: math.prod(key[1:]) for key in keys}
        smallest = min(cells.values())
        weights = torch.tensor([ends[key][-1] * cells[key] for key in keys], dtype=torch.float64)
        for frames, fraction in self._fractions.items():
            same_length = torch.tensor([key[1] == frames for key in keys])
            weights[same_length] *= fraction / weights[same_length].sum()
        for number in count(start):
            rng = torch.Generator().manual_seed(seed * 1_000_003 + number)
            key = keys[int(torch.multinomial(weights, 1, generator=rng))]
            samples = max(1, round(size * smallest / cells[key]))
            chosen = _local(torch.randint(ends[key][-1], (samples,), generator=rng).tolist(), rank, world_size)
            if self._loaded and chosen:
                batch = {name: tensor[torch.tensor(chosen)] for name, tensor in self._loaded[key].items()}
            else:
                batch = _stack([self._clip(key, ends[key], clip) for clip in chosen])
            if self._text_multiple is not None and batch:
                batch["text"] = trim_padding(batch["text"], self._text_multiple)
            yield batch

    def _clip(self, key: Group, ends: list[int], number: int) -> Batch:
        """The tensors of one clip of a group."""
        index = bisect_right(ends, number)
        path, clips = self.groups[key][index]
        row, file = number - (ends[index] - clips), self._open(path)
        return {name: file.get_slice(name)[row : row + 1][0] for name in file.keys()}  # noqa: SIM118 - not a dict


class EncodedClips:
    """Raw clips that are encoded on demand, each used once per epoch.

    Clips longer than their bucket are split into windows, which count as clips. The order of an epoch is drawn from
    (seed, epoch); the last batch of a group is filled up with its first clips.

    Args:
        source: raw clips by number.
        encoder: encodes them.
        buckets: lengths and sizes; empty = the size of each clip.
        on_broken: what to do with unusable clips.
        skipped: receives the reasons of skipped clips.

    Raises:
        InputError: no clip fits a bucket.
    """

    def __init__(
        self,
        source: PuppetPlan | ShardIndex,
        encoder: ClipEncoder,
        buckets: Sequence[Bucket] = (),
        on_broken: OnBroken = "error",
        skipped: list[str] | None = None,
    ) -> None:
        self.source, self.encoder, self.on_broken = source, encoder, on_broken
        self.skipped = [] if skipped is None else skipped
        self.cache = encoder.cache
        codec = encoder.encoders.codec
        longest = getattr(getattr(encoder.encoders, "native", None), "num_frames", None)
        unit = encoder.patch * codec.space_factor
        windows: dict[tuple[int, Bucket], list[tuple[int, int]]] = {}
        too_small = 0
        for number in range(len(source)):
            characters, frames, height, width, fps = source.shape(number)
            length = resampled_length(frames, fps, FPS)
            bucket = (
                choose_bucket(length, height, width, buckets)
                if buckets
                else native_bucket(length, height, width, unit, codec.time_factor, longest)
            )
            if bucket is None:
                too_small += 1
                continue
            group = windows.setdefault((characters, bucket), [])
            group.extend((number, start) for start in window_starts(length, bucket.frames))
        if too_small:
            log.warning("%d of %d clips are too short or too small and ignored", too_small, len(source))
        if not windows:
            problem = f"none of {len(source)} clips fits"
            raise InputError(problem, f"clips of at least {buckets or 'one token'}", "use smaller buckets")
        self.groups = {key: np.array(group, np.int64) for key, group in sorted(windows.items())}
        self._shape = {(n, b): encoder.grid(Window(0, b)).latent_shape(1) for n, b in self.groups}
        self._order = lru_cache(2)(self._epoch)

    @property
    def clips(self) -> int:
        """Number of clips; every window of a longer clip counts."""
        return sum(len(views) for views in self.groups.values())

    def batches(self, size: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """See `Clips`."""
        for number in count(start):
            key, chosen = self._chosen(size, seed, number)
            yield _stack([self._clip(key, int(view)) for view in _local(chosen, rank, world_size)])

    def encode_all(self, rank: int = 0, world_size: int = 1) -> Iterator[tuple[int, int]]:
        """Encode every clip of a part once, to fill the cache; yields (done, total) after each."""
        everything = [(key, number) for key, views in self.groups.items() for number in range(len(views))]
        local = _local(everything, rank, world_size)
        for done, (key, number) in enumerate(local, 1):
            self._clip(key, number)
            yield done, len(local)

    def _chosen(self, size: int, seed: int, number: int) -> tuple[tuple[int, Bucket], np.ndarray]:
        """Group and clips of batch `number`."""
        per_epoch = len(self._order(size, seed, 0))
        epoch, index = divmod(number, per_epoch)
        return self._order(size, seed, epoch)[index]

    def _epoch(self, size: int, seed: int, epoch: int) -> list[tuple[tuple[int, Bucket], np.ndarray]]:
        """All batches of an epoch: (group, indices of clips in the group)."""
        rng = np.random.default_rng([seed, epoch])
        cells = {key: math.prod(shape) for key, shape in self._shape.items()}
        smallest = min(cells.values())
        batches = []
        for key, views in self.groups.items():
            samples = max(1, round(size * smallest / cells[key]))
            order = np.resize(rng.permutation(len(views)), (-(-len(views) // samples), samples))
            batches += [(key, chosen) for chosen in order]
        return [batches[i] for i in rng.permutation(len(batches))]

    def _clip(self, key: tuple[int, Bucket], number: int) -> Batch:
        """The tensors of one clip; with "skip", of the next usable clip of its group."""
        views = self.groups[key]
        for step in range(len(views)):
            clip, start = (int(value) for value in views[(number + step) % len(views)])
            try:
                return self.encoder.encode(self.source.content(clip), Window(start, key[1]))
            except InputError as error:
                if self.on_broken == "error":
                    raise
                reason = f"clip {clip}: {error.problem}"
                if reason not in self.skipped:
                    self.skipped.append(reason)
                    log.warning("skipped: %s", reason)
        raise InputError(f"none of {len(views)} clips is usable", "at least one", "see the log")


def _local(items: Any, rank: int, world_size: int) -> Any:
    """Part `rank` of `world_size` nearly equal parts of a sequence."""
    return items[rank * len(items) // world_size : (rank + 1) * len(items) // world_size]


def _stack(clips: Sequence[Batch]) -> Batch:
    """Stack clips of equal shape to a batch, which is empty for no clips."""
    return {name: torch.stack([clip[name] for clip in clips]) for name in (clips[0] if clips else ())}


def trim_padding(text: Tensor, multiple: int) -> Tensor:
    """Remove the zeros after the longest prompt of [B, L, C]; the length is rounded up to a multiple of `multiple`."""
    used = text.abs().amax((0, 2)).nonzero()
    longest = int(used.amax()) + 1 if len(used) else 1
    return text[:, : math.ceil(longest / multiple) * multiple]


def as_float(batch: Batch, device: torch.device | str = "cpu") -> Batch:
    """Convert a batch to float32, with masks and emphasis in 0..1."""
    converted = {}
    for name, tensor in batch.items():
        tensor = tensor.to(device)
        if name == "seed":
            continue
        converted[name] = tensor.float() / 255.0 if tensor.dtype == torch.uint8 else tensor.float()
    return converted
