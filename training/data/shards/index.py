"""Where every clip of a folder of tar shards lies, so that any of them can be read alone.

A table of numbers, 56 bytes a clip; reading a clip is one seek. Tables are kept in the feature cache, by path, size and
time of the shard.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from training.data.cache import FeatureCache, Tensors
from training.data.clip import ClipSample
from training.data.encode import Content
from training.data.shards.members import BrokenClip, check_head, unpack
from training.data.shards.reader import OnBroken, find_shards, members_of, split_name, tell_broken

UNREADABLE = (tarfile.TarError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError)
CODE = 1  # raised when the table changes
SIZES = ("characters", "frames", "height", "width", "fps")


@dataclass(frozen=True)
class Place:
    """One clip of a shard.

    Args:
        offset, length: the bytes of its files in the shard.
        frames, height, width, characters: of the clip.
        fps: frames a second.
    """

    offset: int
    length: int
    frames: int
    height: int
    width: int
    characters: int
    fps: float


class ShardIndex:
    """All clips of a folder of shards, by number.

    Args:
        source: a folder (with its subfolders), or one shard.
        cache: keeps the tables.
        on_broken: what to do with shards and clips that cannot be read.
        skipped: takes up what was skipped.

    Raises:
        InputError: no shards.
        BrokenClip: with "error".
    """

    def __init__(
        self, source: Path | str, cache: FeatureCache, on_broken: OnBroken = "error", skipped: list[str] | None = None
    ) -> None:
        self.paths = find_shards(source)
        tables = []
        for path in self.paths:
            state = path.stat()
            key = (CODE, str(path.absolute()), state.st_size, state.st_mtime_ns)
            kept = cache.get("index", key, lambda path=path: _tabulate(path))  # type: ignore[misc]
            for trouble in json.loads(bytes(kept["troubles"].tolist())):
                tell_broken(BrokenClip(trouble, "whole shards", "make it again or skip it"), path, on_broken, skipped)
            tables.append(kept["table"].numpy())
        self.table = np.concatenate(tables)
        self.shard = np.repeat(np.arange(len(tables)), [len(table) for table in tables])

    def __len__(self) -> int:
        return len(self.table)

    def place(self, number: int) -> Place:
        """Where clip `number` lies, and its sizes."""
        offset, length, frames, height, width, characters, fps = (int(value) for value in self.table[number])
        return Place(offset, length, frames, height, width, characters, float(np.int64(fps).view(np.float64)))

    def shape(self, number: int) -> tuple[int, int, int, int, float]:
        """(characters, frames, height, width, frames a second) of clip `number`."""
        place = self.place(number)
        return place.characters, place.frames, place.height, place.width, place.fps

    def content(self, number: int) -> Content:
        """Clip `number`, undecoded: only its JSON is read.

        Raises:
            BrokenClip: it cannot be read.
        """
        place, path = self.place(number), self.paths[self.shard[number]]
        try:
            with path.open("rb") as file:
                key, head = _head(file, place.offset)
            check_head(head)
            if self.shape(number) != tuple(head[name] for name in SIZES):
                raise ValueError("another clip is there now")
            return Content(key, head, head["sha256"], lambda: _load(path, place))
        except UNREADABLE as error:
            came = f"clip {number} of {path} cannot be read ({error})"
            raise BrokenClip(came, "the shard as it was when training began", "leave shards alone meanwhile") from error


def _load(path: Path, place: Place) -> ClipSample:
    """Decode a clip. Raises BrokenClip."""
    try:
        with path.open("rb") as file:
            file.seek(place.offset)
            content = io.BytesIO(file.read(place.length))
        return next(unpack(key, members) for key, members in members_of(content))
    except BrokenClip as error:
        raise BrokenClip(f"{path.name}: {error.problem}", error.expected, error.hint) from error
    except (OSError, StopIteration) as error:
        raise BrokenClip(f"{path} cannot be read ({error})", "the shard as it was", "leave shards alone") from error


def _head(file: BinaryIO, start: int) -> tuple[str, dict]:
    """(key, JSON) of the clip that begins at a byte."""
    file.seek(start)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for entry in tar:
            name, ending = split_name(entry.name)
            content = tar.extractfile(entry)
            if ending == "json" and content is not None:
                return name, json.loads(content.read())
    raise ValueError("no JSON")


def _heads(file: BinaryIO) -> Iterator[tuple[str, bytes, int, int]]:
    """(key, JSON, offset, length) of the clips of a shard; of one that breaks off, those before its last."""
    key, head, offset = "", b"", 0
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for entry in tar:
            if not entry.isfile():
                continue
            name, ending = split_name(entry.name)
            if name != key:
                if key:
                    yield key, head, offset, entry.offset - offset
                key, head, offset = name, b"", entry.offset
            if ending == "json":
                content = tar.extractfile(entry)
                head = b"" if content is None else content.read()
        if key:
            yield key, head, offset, tar.offset - offset


def _tabulate(path: Path) -> Tensors:
    """The table of one shard, and what is wrong with it as JSON."""
    rows, troubles = [], []
    try:
        with path.open("rb") as file:
            for key, text, offset, length in _heads(file):
                try:
                    rows.append([offset, length, *_sizes(json.loads(text))])
                except UNREADABLE as error:
                    troubles.append(f"clip {key!r} has no JSON of this format ({error})")
    except (tarfile.TarError, OSError, EOFError) as error:
        troubles.append(f"it cannot be read on after {len(rows)} clips ({error})")
    return {
        "table": torch.tensor(rows, dtype=torch.int64).reshape(-1, 7),
        "troubles": torch.tensor(list(json.dumps(troubles).encode()), dtype=torch.uint8),
    }


def _sizes(head: dict) -> list[int]:
    """The last columns of the table. Raises one of UNREADABLE."""
    check_head(head)
    return [head["frames"], head["height"], head["width"], head["characters"], _bits(head["fps"])]


def _bits(number: float) -> int:
    """A float64 as the int64 of the same bits, for a table of whole numbers."""
    return int(np.float64(number).view(np.int64))
