"""Training data from one of three sources: encoded clips, shards of raw clips, or puppets (see `open_data`)."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bya_core.encoders.domains import CanvasLayout
from bya_core.errors import InputError
from training.data.batches import Batch, Clips, local_part, stack
from training.data.buckets import Bucket, Fit, Window, choose_bucket, native_bucket, window_starts
from training.data.cache import FeatureCache
from training.data.clip import resampled_length
from training.data.clip_folder import ClipFolder
from training.data.encode import FPS, ClipEncoder, Encoders, load_encoders
from training.data.files import list_files
from training.data.puppet_plan import PuppetPlan
from training.data.shards.index import ShardIndex
from training.data.shards.reader import OnBroken

log = logging.getLogger(__name__)


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
    if not puppets:
        if not folder.exists():
            raise _no_data(f"no data at {str(source)!r}")
        if folder.is_dir() and not list_files(folder, ".tar", []):
            if list_files(folder, ".safetensors", []):
                return ClipFolder(folder, length_fractions, in_memory, text_multiple)
            raise _no_data(f"no *.tar and no *.safetensors in {str(source)!r}")
    if encoders is None and not puppets:
        problem = f"raw clips in {str(source)!r} without encoders"
        raise InputError(problem, "the encoders of the model", "name the model, such as toy or official")
    name = str(source), str(encoders or "toy") if isinstance(encoders, str | Path | None) else "given"
    if encoders is None or isinstance(encoders, str | Path):
        encoders = load_encoders(encoders or "toy")
    if cache is None and not puppets:
        cache = (folder if folder.is_dir() else folder.parent) / "cache"
    features, skipped = FeatureCache(cache), list[str]()
    clips = PuppetPlan.parse(str(source)) if puppets else ShardIndex(folder, features, on_broken, skipped)
    encoder = ClipEncoder(encoders, features, patch, fit, device, canvas)
    chosen = [Bucket.parse(bucket) if isinstance(bucket, str) else bucket for bucket in buckets]
    return EncodedClips(clips, encoder, chosen, on_broken, skipped, name)


def _no_data(problem: str) -> InputError:
    return InputError(
        problem,
        "shards of clips, encoded clips, or puppets such as puppets:n=1-4",
        "draw example shards with: python -m training.data.puppet_plan --output FOLDER",
    )


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
        name: name of the source and of the encoders, for the record of a run.

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
        name: tuple[str, str] = ("", ""),
    ) -> None:
        self.name, self.buckets, self._held_out = name, tuple(buckets), 0.0
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

    def names(self) -> list[str]:
        """A name of each clip; windows of one clip share it."""
        return sorted({str(int(clip)) for views in self.groups.values() for clip in views[:, 0]}, key=int)

    def subset(self, names: Set[str], held_out: float) -> EncodedClips:
        """The clips with these names; `held_out` is the share of another part, for the description."""
        part, chosen = copy.copy(self), np.array(sorted(int(name) for name in names))
        groups = {key: views[np.isin(views[:, 0], chosen)] for key, views in self.groups.items()}
        part.groups = {key: views for key, views in groups.items() if len(views)}
        part._shape = {key: self._shape[key] for key in part.groups}
        part._order, part._held_out = lru_cache(2)(part._epoch), held_out
        return part

    @property
    def description(self) -> dict[str, Any]:
        """What the batches depend on, for the record of a run."""
        source, encoders = self.name
        held = {"held_out": self._held_out} if self._held_out else {}
        content = {"source": source, "fingerprint": self.source.fingerprint(), "clips": self.clips}
        return {**content, "encoders": encoders, "buckets": [str(bucket) for bucket in self.buckets], **held}

    @property
    def clips(self) -> int:
        """Number of clips; every window of a longer clip counts."""
        return sum(len(views) for views in self.groups.values())

    def batches(self, size: int, seed: int, start: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """See `Clips`."""
        for number in count(start):
            key, chosen = self._chosen(size, seed, number)
            yield stack([self._clip(key, int(view)) for view in local_part(chosen, rank, world_size)])

    def encode_all(self, rank: int = 0, world_size: int = 1) -> Iterator[tuple[int, int]]:
        """Encode every clip of a part once, to fill the cache; yields (done, total) after each."""
        everything = [(key, number) for key, views in self.groups.items() for number in range(len(views))]
        local = local_part(everything, rank, world_size)
        for done, (key, number) in enumerate(local, 1):
            self._clip(key, number)
            yield done, len(local)

    def _chosen(self, size: int, seed: int, number: int) -> tuple[tuple[int, Bucket], np.ndarray]:
        """Group and clips of batch `number`."""
        epoch, index = divmod(number, len(self._order(size, seed, 0)))
        return self._order(size, seed, epoch)[index]

    def _epoch(self, size: int, seed: int, epoch: int) -> list[tuple[tuple[int, Bucket], np.ndarray]]:
        """All batches of an epoch: (group, indices of clips in the group)."""
        rng = np.random.default_rng([seed, epoch])
        cells = {key: math.prod(shape) for key, shape in self._shape.items()}
        batches = []
        for key, views in self.groups.items():
            samples = max(1, round(size * min(cells.values()) / cells[key]))
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
